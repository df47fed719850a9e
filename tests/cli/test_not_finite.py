"""A model that gives NaN or infinities: every command that runs it ends with an error that names output and engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from command_lines import SIZE, Material, invoke, refused
from onnx import numpy_helper

import repq
from repq.model import build, save_checkpoint


@pytest.fixture(scope="module")
def exported(material: Material) -> Path:
    path = material.folder / "whole.onnx"
    assert invoke("export", material.files["WEIGHTS"], "--imgsz", SIZE, "-o", path).exit_code == 0
    return path


def broken(exported: Path, value: float, which: int, path: Path) -> Path:
    """The graph with one value of one convolution's weights set."""
    model = onnx.load(exported)
    weights = [tensor for tensor in model.graph.initializer if len(tensor.dims) == 4]
    array = numpy_helper.to_array(weights[which]).copy()
    array.flat[0] = value
    weights[which].CopyFrom(numpy_helper.from_array(array, weights[which].name))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(("value", "which"), [(np.nan, 0), (np.inf, -1), (-np.inf, -1)])
def test_the_output_and_the_engine_are_named(
    engine: str, value: float, which: int, exported: Path, material: Material, folder: Path
) -> None:
    model, data, names = broken(exported, value, which, folder / "bad.onnx"), material.files["--data"], {}
    commands = {
        "eval": ["eval", model, "--data", data, "--imgsz", SIZE, "--engine", engine],
        "check": ["check", material.files["WEIGHTS"], model, "--data", data, "--imgsz", SIZE, "--engine", engine],
        "predict": ["predict", model, material.files["SOURCE"], "-o", folder / "out", "--engine", engine],
        "bench": ["bench", model, "--imgsz", SIZE, "--engine", engine, "--rounds", 1, "--runs-per-round", 1],
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


def test_weights_that_are_not_finite_are_refused_when_read(exported: Path, material: Material, folder: Path) -> None:
    files = [broken(exported, np.nan, 0, folder / "bad.onnx")]
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
    save_checkpoint(folder / "loud.safetensors", model, names=("circle", "square", "ring"))
    data, out = material.files["--data"], folder / "out"
    for words in (["eval", "--data", data], ["predict", material.files["SOURCE"], "-o", out],
                  ["sensitivity", "--data", data, "--calib", material.files["--calib"], "-o", out, "--auto"]):  # fmt: skip
        line = [words[0], folder / "loud.safetensors", *words[1:], "--imgsz", SIZE]
        assert "not finite" in refused(invoke(*line)), words
