"""A model that gives NaN, infinities or nothing: no command takes that for a figure or for agreement."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from command_lines import SIZE, Material, invoke, refused
from onnx import TensorProto, helper, numpy_helper

import repq
from repq.model import build, save_checkpoint


def detector(value: float, layer: int, path: Path) -> Path:
    """Two convolutions as repq exports them, with one value of a weight set: 64 boxes of three classes."""
    rng = np.random.default_rng(0)
    weights = {"a.weight": rng.normal(0, 0.1, (4, 3, 8, 8)), "b.weight": rng.normal(0, 0.1, (8, 4, 1, 1))}
    list(weights.values())[layer].flat[0] = value
    tensors = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    tensors.append(numpy_helper.from_array(np.array([0, 8, 64]), "shape"))
    nodes = [
        helper.make_node("Conv", ["images", "a.weight"], ["y"], "a", strides=[8, 8]),
        helper.make_node("Conv", ["y", "b.weight"], ["z"], "b"),
        helper.make_node("Reshape", ["z", "shape"], ["r"], "r"),
        helper.make_node("Transpose", ["r"], ["detections"], "t", perm=[0, 2, 1]),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, SIZE, SIZE])
    found = helper.make_tensor_value_info("detections", TensorProto.FLOAT, [1, 64, 8])
    graph = helper.make_graph(nodes, "g", [images], [found], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    entries = {"version": "1", "spec": "{}", "num_classes": "3", "names": '["ring", "triangle", "cross"]',
               "imgsz": f"[{SIZE}, {SIZE}]", "precision": "float32", "int8_layers": "[]"}  # fmt: skip
    helper.set_model_props(model, {f"repq.{key}": text for key, text in entries.items()})
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(("value", "layer"), [(np.nan, 0), (np.inf, 1), (-np.inf, 1)])
def test_the_output_and_the_engine_are_named(
    engine: str, value: float, layer: int, material: Material, folder: Path
) -> None:
    good, model = detector(0.0, 0, folder / "good.onnx"), detector(value, layer, folder / "bad.onnx")
    data, names = material.files["--data"], {}
    commands = {
        "eval": ["eval", model, "--data", data, "--imgsz", SIZE, "--engine", engine],
        "check": ["check", good, model, "--data", data, "--imgsz", SIZE, "--engine", engine],
        "predict": ["predict", model, material.files["SOURCE"], "-o", folder / "out", "--engine", engine],
        "bench": ["bench", model, "--imgsz", SIZE, "--engine", engine, "--rounds", 1],
    }
    for command, words in commands.items():
        names[command] = refused(invoke(*words))
    opened = repq.load(model, engine=engine)
    for run in (opened.detect, lambda image: opened.infer(np.zeros((2, 3, SIZE, SIZE), np.float32))):
        with pytest.raises(repq.RepqError) as error:
            run(np.zeros((SIZE, SIZE, 3), np.uint8))
        names[str(run)] = str(error.value)
    for message in names.values():
        assert "not finite" in message and "'detections'" in message and f"bad.onnx in {engine}" in message, message
    assert not list((folder / "out").glob("*.jpg"))


def test_weights_that_are_not_finite_are_refused_when_read(material: Material, folder: Path) -> None:
    files = [detector(np.nan, 0, folder / "bad.onnx")]
    for value, suffix in ((np.nan, ".safetensors"), (np.inf, ".pt")):
        model = build("yolov6lite_s", 3, deploy=True).eval()
        with torch.no_grad():
            next(model.parameters()).view(-1)[0] = value
        files.append(folder / f"bad{suffix}")
        if suffix == ".pt":
            torch.save({"model": model.state_dict()}, files[-1])
        else:
            save_checkpoint(files[-1], model)
    for file in files:
        assert "not finite" in refused(
            invoke("eval", file, "--data", material.files["--data"], "--imgsz", SIZE, "--engine", "torch")
        )


def test_finite_weights_whose_output_overflows(material: Material, folder: Path) -> None:
    model = build("yolov6lite_s", 3, deploy=True).eval()
    with torch.no_grad():
        for values in model.parameters():
            values.fill_(1e30)
    save_checkpoint(folder / "loud.safetensors", model, names=("ring", "triangle", "cross"))
    data, out = material.files["--data"], folder / "out"
    for words in (["eval", "--data", data], ["predict", material.files["SOURCE"], "-o", out],
                  ["sensitivity", "--data", data, "--calib-images", 2, "-o", out, "--auto"]):  # fmt: skip
        line = [words[0], folder / "loud.safetensors", *words[1:], "--imgsz", SIZE]
        assert "not finite" in refused(invoke(*line)), words


def test_zero_ap_holds_no_bound_that_was_asked_for(material: Material, folder: Path) -> None:
    """Equal zeros would: a fresh model finds nothing."""
    line = [
        material.files["WEIGHTS"],
        "--data",
        material.files["--data"],
        "--imgsz",
        SIZE,
        "-o",
        folder / "out.safetensors",
    ]
    calibrated = ["--method", "max", "--images", 2]
    for command in (["ptq", *line, *calibrated], ["qat", *line, *calibrated, "--epochs", 1, "--batch", 2]):
        told = invoke(*command)
        words = " ".join(told.stdout.split())
        assert told.exit_code == 0 and "Nothing is proven" in words and "repq export" not in words
        assert "+0.0000" not in words and "0.0000 → 0.0000 (±0" not in words
        failed = invoke(*command, "--max-drop", 0.2)
        assert failed.exit_code == 1 and "cannot be measured" in failed.output
        assert invoke(*command, "--max-drop", 1).exit_code == 0
    few = ["--calib-images", 2, "--images", 2, "--plain", "--set", "end_to_end=false"]
    plan = ["sensitivity", *line[:-1], folder / "plan", *few]
    assert "what INT8 loses cannot be measured" in refused(invoke(*plan))
    assert invoke(*plan, "--top", 3).exit_code == 0


def test_zero_ap_is_no_agreement(material: Material, folder: Path) -> None:
    model, other = detector(0.0, 0, folder / "one.onnx"), detector(1e-3, 0, folder / "other.onnx")
    command = ["check", model, other, "--data", material.files["--data"], "--imgsz", SIZE, "--engine", "onnxruntime"]
    failed = invoke(*command)
    assert failed.exit_code == 1 and "finds no object" in failed.output and "--min-snr" in failed.output
    told = json.loads(invoke(*command, "--json").stdout)
    assert told["passed"] is False and told["engines"][0]["ap_gap"] is None
    assert told["error"]["exit_code"] == 1
    assert invoke(*command, "--min-snr", 1).exit_code == 0
    assert invoke(*command, "--min-snr", 300).exit_code == 1
