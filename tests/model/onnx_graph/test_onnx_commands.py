"""Commands take the ONNX file of any detector, and give one back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from detectors import DETECTORS, NAMES, SIZE, anchored, yolov8
from test_graph_detector import noise, run

import repq
from repq.cli import main
from repq.data import make_demo_set
from repq.recipe import DemoConfig

COMMON = ("--imgsz", SIZE)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A float file, its data set, and what `repq ptq` made of it."""
    folder = tmp_path_factory.mktemp("onnx")
    data = make_demo_set(folder / "set", DemoConfig(train_images=4, val_images=2, size=SIZE, classes=3))
    float_, int8 = folder / "float.onnx", folder / "int8.onnx"
    onnx.save(yolov8(), float_)
    done = invoke("ptq", float_, "--data", data, *COMMON, "--method", "max", "--images", 4, "--max-drop", 1, "-o", int8)
    assert done.exit_code == 0, done.output
    return float_, data, int8


def test_what_comes_out_is_the_graph_with_its_own_names(files: tuple[Path, Path, Path]) -> None:
    before, after = onnx.load(files[0]), onnx.load(files[2])
    added = {"QuantizeLinear", "DequantizeLinear"}
    assert {n.name for n in after.graph.node if n.op_type not in added} == {n.name for n in before.graph.node}
    assert after.graph.output[0].name == before.graph.output[0].name
    found = {entry.key: entry.value for entry in after.metadata_props}
    assert found.items() >= {entry.key: entry.value for entry in before.metadata_props}.items()


def test_float_and_int8_files_are_evaluated(files: tuple[Path, Path, Path]) -> None:
    for path in (files[0], files[2]):
        done = invoke("eval", path, "--data", files[1], *COMMON, "--json")
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["images"] == 2
    assert invoke("lint", files[2], "--fail-on", "error").exit_code == 0


def test_a_quantized_file_is_not_quantized_again(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "again.onnx"
    done = invoke("ptq", files[2], "--data", files[1], *COMMON, "-o", out)
    assert done.exit_code == 2 and "is quantized already" in done.output
    assert not out.exists() and not list(tmp_path.iterdir())


def test_the_same_in_python(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    model = repq.load(files[0])
    assert model.num_classes == 3 and model.names and model.layout.columns_first
    int8 = model.quantize(files[1], imgsz=SIZE, method="max", limit=4).export(tmp_path / "int8.onnx", imgsz=SIZE)
    assert int8.quantized and int8.layers == repq.load(files[2]).layers


def test_a_file_teaches_a_detector_of_another_family(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    out, settings = tmp_path / "run", ("batch=4", "workers=0", "warmup_steps=1", "distill.projector_weight=1")
    given = [part for setting in settings for part in ("--set", setting)]
    done = invoke("train", "--data", files[1], *COMMON, "--epochs", 1, "--teacher", files[0], *given, "-o", out)
    assert done.exit_code == 0, done.output
    losses = json.loads((out / "train.json").read_text())["epochs"][0]["losses"]
    assert {"distill_class", "distill_box", "distill_projected"} < losses.keys()
    done = invoke("train", "--data", files[1], "--imgsz", 2 * SIZE, "--teacher", files[0], "-o", tmp_path / "other")
    assert done.exit_code == 2 and f"takes images of {SIZE}x{SIZE}" in done.output


@pytest.mark.parametrize("command", ["describe", "eval", "ptq", "qat", "export", "diagnose"])
def test_an_operator_that_no_runtime_has_is_refused(
    command: str, files: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    model = yolov8()
    model.graph.node[-1].op_type, model.graph.node[-1].domain = "EfficientNMS_TRT", "TRT"
    model.opset_import.append(onnx.helper.make_opsetid("TRT", 1))
    onnx.save(model, tmp_path / "model.onnx")
    data = () if command in ("describe", "export") else ("--data", files[1])
    out = ("-o", tmp_path / "out.onnx") if command in ("ptq", "qat", "export") else ()
    done = invoke(command, tmp_path / "model.onnx", *data, *out)
    assert done.exit_code == 2 and "EfficientNMS_TRT" in done.output, done.output
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_graph_of_any_size_takes_the_size_that_is_given(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    model = yolov8()
    for axis, name in zip(model.graph.input[0].type.tensor_type.shape.dim[2:], "hw", strict=True):
        axis.dim_param = name
    path, data = tmp_path / "any.onnx", ("--data", files[1])
    onnx.save(model, path)
    for command in (("eval",), ("ptq", "-o", tmp_path / "int8.onnx")):
        done = invoke(command[0], path, *command[1:], *data)
        assert done.exit_code == 2 and "takes images of any size" in done.output
    for command in (("eval", *data), ("export", "-o", tmp_path / "out.onnx")):
        done = invoke(command[0], path, *command[1:], *COMMON)
        assert done.exit_code == 0, done.output
    onnx.helper.set_model_props(model, {"imgsz": f"[{SIZE}, {SIZE}]"})  # as Ultralytics writes it
    onnx.save(model, path)
    assert invoke("eval", path, *data).exit_code == 0
    int8 = repq.load(path).quantize(files[1], imgsz=SIZE, method="max", limit=4)
    assert int8.export(tmp_path / "int8.onnx", imgsz=SIZE).quantized


@pytest.mark.parametrize("name", ["yolox-raw", "yolov5", "yolov8", "boxes-scores", "fastestdet", "nanodet"])
def test_suppression_fixes_the_size_of_a_graph_of_any_size(name: str, tmp_path: Path) -> None:
    """It has to know how many boxes there are, whatever the file says of its outputs."""
    model = DETECTORS[name]()
    onnx.save(model, tmp_path / "fixed.onnx")
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"side{axis}"
    for output in model.graph.output:
        for number, axis in enumerate(output.type.tensor_type.shape.dim[1:]):
            axis.dim_param = f"{output.name}{number}"
    onnx.save(model, tmp_path / "free.onnx")
    for which in ("fixed", "free"):
        out = tmp_path / f"{which}_nms.onnx"
        done = invoke("export", tmp_path / f"{which}.onnx", "--nms", *COMMON, "-o", out)
        assert done.exit_code == 0, done.output
    fixed, free = (onnx.load(tmp_path / f"{which}_nms.onnx") for which in ("fixed", "free"))
    for one, other in zip(run(fixed, noise(2)), run(free, noise(2)), strict=True):
        np.testing.assert_array_equal(one, other)
    assert [axis.dim_value for axis in free.graph.output[0].type.tensor_type.shape.dim][2] == 6
    # what is not asked for stays: without suppression the size stays free
    done = invoke("export", tmp_path / "free.onnx", *COMMON, "-o", tmp_path / "plain.onnx")
    assert done.exit_code == 0, done.output
    assert not onnx.load(tmp_path / "plain.onnx").graph.input[0].type.tensor_type.shape.dim[2].dim_value


def test_an_export_takes_what_the_file_does_not_say(tmp_path: Path) -> None:
    onnx.save(anchored(names=NAMES), tmp_path / "raw.onnx")
    command = ("export", tmp_path / "raw.onnx", "--nms", *COMMON, "-o", tmp_path / "out.onnx")
    done = invoke(*command, "--layout", "yolov5-raw")
    assert done.exit_code == 2 and "the outputs are not yolov5-raw" in done.output  # it has two levels
    anchors = "graph.anchors=[10,13,16,30,33,23,30,61,62,45,59,119]"
    done = invoke(*command, "--layout", "yolov5-raw", "--set", anchors)
    assert done.exit_code == 0, done.output
    assert run(onnx.load(tmp_path / "out.onnx"), noise(1))[0].shape == (1, 300, 6)


def test_a_file_of_any_size_is_described_at_one(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """What the message says has to be possible."""
    model = onnx.load(files[0])
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"side{axis}"
    free = tmp_path / "free.onnx"
    onnx.save(model, free)
    refused = invoke("describe", free)
    assert refused.exit_code == 2 and "give --imgsz" in refused.output
    done = invoke("describe", free, *COMMON, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["layers"]
    other = invoke("describe", files[0], "--imgsz", 2 * SIZE)
    assert other.exit_code == 2 and f"{SIZE}x{SIZE}" in other.output


@pytest.mark.parametrize("command", [("lint",), ("estimate", "--device", "orin")], ids=lambda c: c[0])
def test_a_file_with_weights_beside_it_is_looked_at(
    command: tuple[str, ...], files: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """As torch's exporter writes it unless told otherwise."""
    apart = tmp_path / files[0].name
    onnx.save(onnx.load(files[0]), apart, save_as_external_data=True, location="weights", size_threshold=0)
    found, expected = (invoke(command[0], path, *command[1:], "--json") for path in (apart, files[0]))
    assert found.exit_code == expected.exit_code == 0, found.output
    values, wanted = json.loads(found.stdout), json.loads(expected.stdout)
    assert {**values, "model": ""} == {**wanted, "model": ""}
