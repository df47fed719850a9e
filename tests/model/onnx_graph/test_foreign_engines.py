"""Engines that are built from another tool's ONNX file give the boxes that the file gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
from detectors import DETECTORS, NAMES, SIZE, labelled, yolov5, yolov8
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from test_graph_detector import run, saved
from test_onnx_commands import invoke

import repq
from repq.api.sizes import own_size
from repq.data import make_demo_set
from repq.engine import build
from repq.recipe import BuildConfig, DemoConfig, GraphConfig

IMAGE = np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", DETECTORS)
def test_an_engine_finds_what_its_file_finds(name: str, engine: str, tmp_path: Path) -> None:
    batch = "N" if name == "yolox-raw" else 1
    file = repq.load(saved(DETECTORS[name](batch=batch), tmp_path), engine=engine)
    built = file.build(engine, out=tmp_path / "engine")
    wanted = file.detect(IMAGE, conf=0.01)
    assert len(wanted)
    for model in (built, repq.load(tmp_path / "engine"), built.on(threads=1)):
        assert (model.layout, model.preprocessing) == (file.layout, file.preprocessing)
        assert (model.num_classes, model.names, model.notes) == (file.num_classes, file.names, file.notes)
        np.testing.assert_allclose(model.detect(IMAGE, conf=0.01), wanted, rtol=1e-3, atol=1e-3)


def test_what_is_said_of_the_file_goes_for_its_engine(tmp_path: Path) -> None:
    said = GraphConfig(preset="yolox", layout="yolov5")
    built = repq.load(saved(yolov5(), tmp_path), graph=said).build("onnxruntime", out=tmp_path / "engine")
    again = repq.load(tmp_path / "engine", graph=said)
    assert built.preprocessing == again.preprocessing and built.preprocessing.bgr and not built.notes
    with pytest.raises(repq.RepqError, match="the outputs are not detr"):
        repq.load(tmp_path / "engine", graph=GraphConfig(layout="detr")).detect(IMAGE)


def test_commands_take_an_engine_as_its_file(tmp_path: Path) -> None:
    data = make_demo_set(tmp_path / "set", DemoConfig(train_images=1, val_images=2, size=SIZE, classes=3))
    file, engine = saved(yolov8(), tmp_path), tmp_path / "engine"
    assert invoke("build", file, "--engine", "onnxruntime", "-o", engine).exit_code == 0
    for options in ((), ("--preset", "yolox"), ("--layout", "yolov8", "--classes", 3)):
        done = [invoke("eval", model, "--data", data, "--json", *options) for model in (file, engine)]
        assert [one.exit_code for one in done] == [0, 0], done[1].output
        of_file, of_engine = (json.loads(one.stdout) for one in done)
        assert of_file["ap"] == of_engine["ap"] and of_file["detections"] == of_engine["detections"]
        assert ("taken: --preset" in done[1].stderr) == ("--preset" not in options)
    done_ = invoke("check", file, engine, "--data", data, "--json")
    assert done_.exit_code == 0, done_.output


def test_predict_takes_what_the_file_does_not_say_and_says_what_it_took(tmp_path: Path) -> None:
    images, file, engine = tmp_path / "images", saved(yolov8(), tmp_path), tmp_path / "engine"
    images.mkdir()
    cv2.imwrite(str(images / "image.png"), IMAGE[..., ::-1])
    repq.load(file).build("onnxruntime", out=engine)
    for preset in ("yolox", None):
        options = () if preset is None else ("--preset", preset)
        wanted = repq.load(file, graph=GraphConfig(preset=preset)).detect(IMAGE)
        for model in (file, engine):
            done = invoke("predict", model, images, "-o", tmp_path / "out", "--no-draw", *options)
            assert done.exit_code == 0, done.output
            assert ("taken: --preset" in done.stderr) == (preset is None)
            (found,) = json.loads((tmp_path / "out/predictions.json").read_text())["images"]
            np.testing.assert_allclose([row["box"] for row in found["boxes"]], wanted[:, :4].round(2), atol=0.011)


def test_predict_takes_the_layout_that_it_asks_for(tmp_path: Path) -> None:
    file = saved(yolov8(names=""), tmp_path)
    cv2.imwrite(str(tmp_path / "image.png"), IMAGE)
    line = ("predict", file, tmp_path / "image.png", "-o", tmp_path / "out", "--no-draw")
    refused = invoke(*line, "--layout", "detr")
    assert refused.exit_code == 2 and "the outputs are not detr" in refused.output and not (tmp_path / "out").exists()
    assert invoke(*line, "--layout", "yolov8").exit_code == 0


def taking(kind: int) -> onnx.ModelProto:
    """A detector whose images are of another type, which its first node makes floats of."""
    model = yolov8()
    model.graph.input[0].type.tensor_type.elem_type = kind
    for node in model.graph.node:
        node.input[:] = ["floats" if name == "input" else name for name in node.input]
    model.graph.node.insert(0, helper.make_node("Cast", ["input"], ["floats"], "as floats", to=TensorProto.FLOAT))
    return model


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("kind", ["FLOAT16", "DOUBLE", "UINT8", "INT8", "INT32", "INT64"])
def test_images_become_no_whole_numbers(kind: str, engine: str, tmp_path: Path) -> None:
    """Of 0..1 nothing would be left: all boxes would be those of a black image."""
    file = repq.load(saved(taking(TensorProto.DataType.Value(kind)), tmp_path), engine=engine)
    for model in (file, file.build(engine)):
        if kind in ("FLOAT16", "DOUBLE"):
            assert len(model.detect(IMAGE, conf=0.01))
            continue
        with pytest.raises(repq.RepqError, match="takes no float images") as raised:
            model.detect(IMAGE)
        assert kind.lower() in str(raised.value.found)
        with pytest.raises(repq.RepqError, match=f"takes {kind.lower()} images"):
            model.infer(np.zeros((1, 3, SIZE, SIZE), np.float32))


@pytest.mark.parametrize("layout", ["labelled", "labelled-from-1"])
def test_what_is_said_goes_before_what_a_file_of_repq_says(layout: str, tmp_path: Path) -> None:
    said, file = GraphConfig(layout=layout, preset="yolov6"), saved(labelled(), tmp_path)
    own = repq.load(file).export(tmp_path / "own.onnx")
    own.build("onnxruntime", out=tmp_path / "engine")
    wanted = repq.load(file, graph=said).detect(IMAGE, conf=0.01)
    for place, engine in ((own.path, None), (own.path, "torch"), (tmp_path / "engine", None)):
        found = repq.load(place, engine=engine, graph=said).detect(IMAGE, conf=0.01)
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("said", [{"classes": 7}, {"anchors": (8, 8)}, {"layout": "detr"}], ids=str)
def test_what_contradicts_a_file_of_repq_is_refused(said: dict[str, Any], tmp_path: Path) -> None:
    own = repq.load(saved(yolov5(), tmp_path)).export(tmp_path / "own.onnx")
    own.build("onnxruntime", out=tmp_path / "engine")
    for place, engine in ((own.path, None), (own.path, "torch"), (tmp_path / "engine", None)):
        with pytest.raises(repq.RepqError, match=r"contradicts the file|the outputs are not detr"):
            repq.load(place, engine=engine, graph=GraphConfig(**said))


def in_nodes(model: onnx.ModelProto) -> None:
    """Constants as nodes, as some exporters write them."""
    for tensor in model.graph.initializer:
        model.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
    model.graph.ClearField("initializer")


@pytest.mark.parametrize("form", ["stored", "in nodes", "named otherwise"])
def test_dynamic_int8_of_any_form_of_a_graph(form: str, tmp_path: Path) -> None:
    model = yolov8()
    if form == "in nodes":
        in_nodes(model)
    elif form == "named otherwise":
        for node in model.graph.node:
            node.name = f"{node.name}_quant"
    file = repq.load(saved(model, tmp_path))
    built = file.build("onnxruntime", dynamic=True, out=tmp_path / "engine")
    assert {layer.precision for layer in built.report.layers} == {"int8"}
    images = np.random.default_rng(1).random((1, 3, SIZE, SIZE), np.float32)
    error = np.abs(built.infer(images) - file.infer(images)).mean()
    assert 0 < error < 0.05 * np.abs(file.infer(images)).mean()


@pytest.mark.parametrize(("value", "found"), [(np.float32("nan"), "scale issue"), (np.float16(1), "weights in FP16")])
def test_what_cannot_be_quantized_dynamically_is_said(value: np.floating[Any], found: str, tmp_path: Path) -> None:
    model = yolov8()
    weight = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    values = np.full(tuple(weight.dims), value)
    if values.dtype == np.float16:
        model.graph.node.insert(0, helper.make_node("Cast", ["half"], [weight.name], to=TensorProto.FLOAT))
        weight.CopyFrom(numpy_helper.from_array(values, "half"))
        in_nodes(model)
    else:
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    with pytest.raises(repq.RepqError, match="cannot be quantized dynamically") as raised:
        repq.load(saved(model, tmp_path)).build("onnxruntime", dynamic=True)
    assert found in str(raised.value.found)


@pytest.mark.parametrize(
    ("one", "other", "found"),
    [
        ("yolov8", "boxes-scores", "box_form: corners and centre, columns_first: False and True"),
        ("boxes-scores", "end2end", "one_per_object: True and False"),
        ("yolox-raw", "yolov5", None),
    ],
)
def test_detections_of_other_forms_are_not_compared(one: str, other: str, found: str | None, tmp_path: Path) -> None:
    data = make_demo_set(tmp_path / "set", DemoConfig(train_images=1, val_images=2, size=SIZE, classes=3))
    for name in (one, other):
        onnx.save(DETECTORS[name](names=str(list(NAMES))), tmp_path / f"{name}.onnx")
    paths = tmp_path / f"{one}.onnx", tmp_path / f"{other}.onnx"
    done = invoke("check", *paths, "--data", data, "--engine", "onnxruntime", "--preset", "yolov6", "--max-drop", 1)
    assert done.exit_code == (0 if found is None else 2), done.output
    assert found is None or found in done.output


def test_engines_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    data = make_demo_set(tmp_path / "set", DemoConfig(train_images=1, val_images=2, size=SIZE, classes=3))
    file = repq.load(saved(yolov8(), tmp_path))
    engines = [str(tmp_path / run / "engine") for run in ("one", "other")]
    for engine in engines:
        file.build("onnxruntime", out=engine)
    done = invoke("bench", *engines, "--data", data, "--rounds", 1, "--runs", 2, "--threads", 1, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    for rows in (found["models"], found["service"]):
        assert {row["model"] for row in rows} == set(engines)
    checked = json.loads(invoke("check", file.path, *engines, "--data", data, "--max-drop", 1, "--json").stdout)
    assert [row["model"] for row in checked["engines"]] == engines
    alone = json.loads(invoke("bench", engines[0], "--rounds", 1, "--runs", 2, "--threads", 1, "--json").stdout)
    assert {row["model"] for row in alone["models"]} == {"engine"}


def sized(sides: tuple[int | str, ...], said: tuple[int, int] | None) -> onnx.ModelProto:
    """A detector of this height and width, of which the names are free, and the size that its file says."""
    model = yolov8(**({"imgsz": json.dumps(said)} if said else {}))
    for axis, side in zip(model.graph.input[0].type.tensor_type.shape.dim[2:], sides, strict=True):
        axis.Clear()
        axis.MergeFrom(onnx.TensorShapeProto.Dimension(**{"dim_value" if isinstance(side, int) else "dim_param": side}))
    return model


@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_an_engine_of_any_size_works_at_that_of_its_file(engine: str, said: bool, tmp_path: Path) -> None:
    own = (SIZE, SIZE)
    path, given = saved(sized(("h", "w"), own if said else None), tmp_path), None if said else own
    file = repq.load(path, imgsz=given)
    wanted = file.detect(IMAGE, conf=0.01)
    for model in (file.build(engine, out=tmp_path / "engine"), repq.load(tmp_path / "engine", imgsz=given)):
        assert (model.imgsz, model.size(None)) == (None, own)
        np.testing.assert_allclose(model.detect(IMAGE, conf=0.01), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("sides", "said"), [((64, 64), (64, 64)), (("h", 64), None), (("h", "w"), (64, 96))])
def test_the_size_of_a_model_is_read_without_running_it(
    sides: tuple[int | str, ...], said: tuple[int, int] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = saved(sized(sides, said if "h" in sides else None), tmp_path)
    build("onnxruntime", file, BuildConfig()).save(tmp_path / "engine")
    monkeypatch.setattr("onnxruntime.InferenceSession", None)
    assert own_size(file) == own_size(tmp_path / "engine") == said


class _Noise(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        self.images = iter(np.random.default_rng(0).random((2, 1, 3, SIZE, SIZE), np.float32))

    def get_next(self) -> dict[str, Any] | None:
        image = next(self.images, None)
        return None if image is None else {"input": image}


@pytest.fixture(scope="module", params=["static", "dynamic"])
def integers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector that ONNX Runtime's own quantizer wrote with integer operators."""
    folder = tmp_path_factory.mktemp("integers")
    out = folder / f"{request.param}.onnx"
    if request.param == "static":
        quantize_static(saved(yolov8(), folder), out, _Noise(), quant_format=QuantFormat.QOperator)
    else:
        quantize_dynamic(saved(yolov8(), folder), out, weight_type=QuantType.QUInt8)
    return out


def test_integer_operators_of_another_tool_are_int8(integers: Path) -> None:
    file = repq.load(integers, graph=GraphConfig(layout="yolov8"))
    assert file.quantized and file.precision == "int8" and file.info.variant == "int8" and file.info.int8_layers == 9
    images = np.random.default_rng(1).random((1, 3, SIZE, SIZE), np.float32)
    np.testing.assert_allclose(file.infer(images), run(integers, torch.from_numpy(images))[0], rtol=1e-4, atol=1e-4)


def test_openvino_refuses_integer_operators_that_it_computes_otherwise(integers: Path) -> None:
    images = np.random.default_rng(1).random((1, 3, SIZE, SIZE), np.float32)
    file = repq.load(integers, engine="openvino", graph=GraphConfig(layout="yolov8"))
    if integers.stem == "dynamic":  # whose operators are ONNX's own
        np.testing.assert_allclose(file.infer(images), run(integers, torch.from_numpy(images))[0], rtol=1e-3, atol=1e-3)
        return
    with pytest.raises(repq.RepqError, match="OpenVINO computes something else") as raised:
        file.infer(images)
    assert "QLinearConv" in str(raised.value.found)
