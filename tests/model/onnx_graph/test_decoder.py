"""What is deployed of detectors whose outputs are no detections finds what repq finds, without repq."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from detectors import (
    SIZE,
    boxes_scores,
    detr,
    end2end,
    labelled,
    shares,
    yolov5,
    yolox_raw,
)
from onnx import ModelProto, TensorProto, helper
from test_raw_layouts import RAW

import repq
from repq.api.exporting import write_onnx
from repq.api.opening import load
from repq.api.service import as_exported, service_of
from repq.data import read_image
from repq.deploy import write_package
from repq.export import load_onnx
from repq.graph.decoding import decoder
from repq.layout import OutputLayout
from repq.model import Checkpoint, load_graph
from repq.quant import Weights
from repq.recipe import ExportConfig, GraphConfig, LetterboxConfig

KINDS: dict[str, tuple[Callable[[], ModelProto], GraphConfig]] = {
    "yolox-raw": (yolox_raw, GraphConfig()),
    "end2end": (end2end, GraphConfig()),
    "boxes-scores": (boxes_scores, GraphConfig()),
    "shares": (shares, GraphConfig()),
    "detr": (detr, GraphConfig()),
    "labelled": (labelled, GraphConfig()),
    "labelled, not counted": (partial(labelled, False), GraphConfig()),
    **RAW,
}
FINAL = {"end2end", "labelled", "labelled, not counted"}
"""Suppression is done already."""
IMGSZ = (SIZE, SIZE)


def run(model: ModelProto, *inputs: np.ndarray) -> list[np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {given.name: values for given, values in zip(session.get_inputs(), inputs, strict=True)})


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_beside_it_decodes_as_the_layout_does(kind: str, tmp_path: Path) -> None:
    make, config = KINDS[kind]
    model, path = make(), tmp_path / "model.onnx"
    onnx.save(model, path)
    layout = load_graph(path, config=config).spec.layout
    assert not layout.plain and layout.decoded.plain
    outputs = run(model, np.random.default_rng(0).random((1, 3, *IMGSZ), np.float32))
    beside = decoder(model, layout)
    onnx.checker.check_model(beside, full_check=True)
    (found,) = run(beside, *outputs)
    np.testing.assert_allclose(found, layout.decode(outputs, IMGSZ), rtol=1e-5, atol=1e-4)
    assert [given.name for given in beside.graph.input] == [output.name for output in model.graph.output]


def exported(checkpoint: Checkpoint, folder: Path, **settings: Any) -> ModelProto:
    weights = Weights(checkpoint.model, checkpoint.names, None)
    write_onnx(weights, folder / "out.onnx", IMGSZ, ExportConfig.model_validate(settings))
    return onnx.load(folder / "out.onnx")


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - FINAL))
def test_a_letterbox_inside_moves_no_boxes(kind: str, tmp_path: Path) -> None:
    """What boxes are relative to is the network's input, whatever the size of the images that the graph takes."""
    make, config = KINDS[kind]
    onnx.save(make(), tmp_path / "model.onnx")
    opened = load_graph(tmp_path / "model.onnx", config=config)
    image = np.random.default_rng(0).integers(0, 256, (1, *IMGSZ, 3), np.uint8)
    planes, layout = np.ascontiguousarray(image.transpose(0, 3, 1, 2)), opened.model.spec.layout

    def computed(pixels: np.ndarray, inside: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """By the graph with its suppression, and by the decoder beside the one without."""
        alone, suppressed = (exported(opened, tmp_path, preprocess=inside, nms=nms) for nms in (None, {}))
        return run(suppressed, pixels)[0], run(decoder(alone, layout), *run(alone, pixels))[0]

    expected = computed(planes, {"uint8": True})
    for source in (None, IMGSZ):
        letterboxed = computed(image, {"uint8": True, "letterbox": {}, "source": source})
        for found, wanted in zip(letterboxed, expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-3)


def test_a_letterbox_inside_a_graph_of_an_old_opset(tmp_path: Path) -> None:
    onnx.save(yolox_raw(), tmp_path / "model.onnx")
    size = (SIZE // 2, SIZE // 4)
    inside = {"uint8": True, "letterbox": {"upscale": True}, "source": size}
    fixed, free = (
        exported(load_graph(tmp_path / "model.onnx"), tmp_path, preprocess=inside | {"source": source})
        for source in (size, None)
    )
    assert fixed.opset_import[0].version == 13
    image = np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8)
    np.testing.assert_allclose(run(fixed, image)[0], run(free, image)[0], rtol=1e-3, atol=2e-2)


@pytest.mark.parametrize("make", [yolox_raw, yolov5, detr])
def test_suppression_behind_outputs_in_fp16(make: Callable[[], ModelProto], tmp_path: Path) -> None:
    onnx.save(make(), tmp_path / "model.onnx")
    opened, image = load_graph(tmp_path / "model.onnx"), np.random.default_rng(0).random((1, 3, *IMGSZ), np.float32)
    (wanted,) = run(exported(opened, tmp_path, nms={}), image)
    half = exported(opened, tmp_path, nms={}, float16=True, float16_io=True)
    (found,) = run(half, image.astype(np.float16))
    assert found.shape == wanted.shape
    np.testing.assert_allclose(np.sort(found[..., 4]), np.sort(wanted[..., 4]), atol=2e-2)


def test_class_numbers_may_be_integers() -> None:
    shapes = {"boxes": (TensorProto.FLOAT, [1, 4, 4]), "scores": (TensorProto.FLOAT, [1, 4]),
              "labels": (TensorProto.INT64, [1, 4])}  # fmt: skip
    outputs = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in shapes.items()]
    nodes = [helper.make_node("Identity", ["images"], ["kept"])]
    given = [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, *IMGSZ])]
    model = helper.make_model(helper.make_graph(nodes, "lists", given, outputs),
                              opset_imports=[helper.make_opsetid("", 17)], ir_version=9)  # fmt: skip
    layout = OutputLayout(
        box_form="corners", objectness=None, scores=4, ranked=3, labelled=(0, 1, 2), one_per_object=True
    )
    rng = np.random.default_rng(0)
    values = [rng.random((1, 4, 4), np.float32), rng.random((1, 4), np.float32), np.array([[2, 0, 1, 2]])]
    (found,) = run(decoder(model, layout), *values)
    np.testing.assert_array_equal(found, np.asarray(layout.decode(values, IMGSZ), np.float32))


def packed(
    make: Callable[[], ModelProto], config: GraphConfig, runtime: str | None, folder: Path
) -> tuple[Path, repq.Model]:
    onnx.save(make(), folder / "given.onnx")
    own = load(folder / "given.onnx", engine="torch", graph=config)
    exported = own.with_thresholds(confidence=0.05, max_detections=300).export(folder / "model.onnx", imgsz=IMGSZ)
    model = exported if runtime is None else exported.build(runtime, out=folder / "built")
    (folder / "deploy").mkdir()
    assert write_package(folder / "deploy", model, exported, LetterboxConfig()) == ""
    return folder / "deploy", model


def written_image(path: Path) -> Path:
    """An image of blocks that is halved without rounding."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 16, 3), dtype=np.uint8)
    assert cv2.imwrite(str(path), cv2.resize(noise, (128, 64), interpolation=cv2.INTER_NEAREST))
    return path


def expected(model: repq.Model, image: Path) -> np.ndarray:
    """The boxes cut at the image, also those beside it."""
    settings = as_exported(model, **asdict(model.thresholds), multi_label=False, clip=True)
    return service_of(model, IMGSZ, settings).detect([read_image(image)])[0]


RUN_ALL = """
import os, runpy, sys
sys.modules["repq"] = None
image, *folders = sys.argv[1:]
for folder in folders:
    sys.argv = ["detect.py", image]
    print("in", folder, flush=True)
    runpy.run_path(os.path.join(folder, "detect.py"), run_name="__main__")
"""


def test_the_samples_find_what_repq_finds(tmp_path: Path) -> None:
    cases = [(kind, None) for kind in KINDS]
    cases += [("yolox-raw", "openvino"), ("labelled", "openvino"), ("detr", "onnxruntime")]
    image, folders = written_image(tmp_path / "a.png"), {}
    for number, (kind, runtime) in enumerate(cases):
        (tmp_path / f"{number}").mkdir()
        folder, model = packed(*KINDS[kind], runtime, tmp_path / f"{number}")
        folders[str(folder)] = expected(model, image)
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", RUN_ALL, str(image), *folders], capture_output=True, encoding="utf-8",
                          cwd=tmp_path, env=clean)  # fmt: skip
    assert done.returncode == 0, done.stderr
    texts = dict(part.split("\n", 1) for part in f"\n{done.stdout}".split("\nin ")[1:])
    assert list(texts) == list(folders)
    for folder, text in texts.items():
        demand_same(text, Path(folder), folders[folder], names_first=False)


@pytest.mark.parametrize("kind", ["yolox-raw", "labelled"])
def test_the_sample_in_cpp_finds_what_repq_finds(kind: str, cpp_command: list[str], tmp_path: Path) -> None:
    folder, model = packed(*KINDS[kind], "openvino", tmp_path)
    built = subprocess.run(cpp_command, capture_output=True, text=True, cwd=folder)
    assert built.returncode == 0, built.stderr
    image = written_image(tmp_path / "a.ppm")
    done = subprocess.run(["./detect", str(image)], capture_output=True, encoding="utf-8", cwd=folder)
    assert done.returncode == 0, done.stderr
    demand_same(done.stdout, folder, expected(model, image), names_first=True)


def demand_same(text: str, folder: Path, wanted: np.ndarray, *, names_first: bool) -> None:
    assert len(wanted), "something is found"
    classes = json.loads((folder / "model.json").read_text())["classes"]
    rows = [line.split("\t")[0 if names_first else 1 :] for line in text.splitlines()]
    found = np.array([[*row[2:], row[1], classes.index(row[0])] for row in rows], np.float64).reshape(-1, 6)
    assert len(found) == len(wanted)
    apart = np.abs(found[:, None] - wanted[None]).max(axis=-1)  # boxes of nearly one score may change places
    assert apart.min(axis=0).max() < 0.02 and apart.min(axis=1).max() < 0.02


def test_outputs_of_unknown_length_have_no_samples(tmp_path: Path) -> None:
    folder, _ = packed(labelled, GraphConfig(), None, tmp_path)
    assert (folder / "detect.py").exists() and (folder / "decode.onnx").exists()
    model = load_onnx(tmp_path / "model.onnx")
    for output in model.graph.output[1:]:
        output.type.tensor_type.shape.dim[1].dim_param = "found"
    onnx.save(model, tmp_path / "free.onnx")
    (tmp_path / "other").mkdir()
    free = load(tmp_path / "free.onnx")
    assert "found" in write_package(tmp_path / "other", free, free, LetterboxConfig())
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == ["model.json", "model.onnx"]


def test_plain_outputs_need_no_graph(tmp_path: Path) -> None:
    folder, _ = packed(yolov5, GraphConfig(), None, tmp_path)
    assert not (folder / "decode.onnx").exists()
