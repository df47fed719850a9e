"""The size and the classes travel with a model from command to command."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from command_lines import Material, invoke, refused

OWN = (64, 96)
NAMES = ["ring", "triangle", "cross"]


@pytest.fixture
def weights(material: Material, folder: Path) -> Path:
    """Calibrated at a size that no default has."""
    from repq.model import build, save_checkpoint

    torch.manual_seed(0)
    save_checkpoint("w.safetensors", build("yolov6n_v2", 3).eval(), names=NAMES)
    line = ("--data", material.files["--data"], "--no-eval", "--plain", "--images", 2)
    run("ptq", "w.safetensors", *line, "--imgsz", "64x96", "-o", "int8.safetensors")
    return folder / "int8.safetensors"


def run(*arguments: object) -> dict:
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_every_later_command_takes_it(weights: Path, material: Material, folder: Path) -> None:
    data = ("--data", material.files["--data"])
    assert run("export", weights, "-o", "int8.onnx")["imgsz"] == list(OWN)
    run("build", "int8.onnx", "--engine", "onnxruntime", "-o", "engine")
    cv2.imwrite("a.png", np.zeros((50, 60, 3), np.uint8))
    for model in (weights, "int8.onnx", "engine"):
        found = run("predict", model, "a.png", "-o", "out")
        assert found["imgsz"] == list(OWN)
        assert json.loads(Path("out/predictions.json").read_text())["classes"] == NAMES
        assert run("eval", model, *data)["images"] == 2
    assert run("check", weights, "engine", *data, "--max-drop", 1)["images"] == 2
    tuned = ("--no-eval", "--epochs", 1, "--batch", 2, "-o", "tuned.safetensors")
    run("qat", weights, *data, *tuned)
    assert run("export", "tuned.safetensors", "-o", "tuned.onnx")["imgsz"] == list(OWN)


def test_a_contradiction_is_said_with_both_values(weights: Path, material: Material, folder: Path) -> None:
    shown = invoke("export", weights, "-o", "other.onnx", "--imgsz", "32x64").output
    assert "64x96" in shown and "32x64" in shown
    run("export", weights, "-o", "own.onnx")
    message = refused(invoke("eval", "own.onnx", "--data", material.files["--data"], "--imgsz", "32x64"))
    assert "64x96" in message and "32x64" in message


def test_a_size_that_nobody_gave_is_said(weights: Path, folder: Path) -> None:
    shown = invoke("export", "w.safetensors", "-o", "w.onnx").output
    assert "640x640 is taken" in shown


def test_a_damaged_entry_is_no_size() -> None:
    from repq.api.sizes import as_metadata, from_metadata

    assert from_metadata(as_metadata(OWN)) == OWN
    for text in ("", "[1]", "[1, 2, 3]", "null", '["a", "b"]', "[-1, 4]", "[1e99, 4]", "{}"):
        assert from_metadata({"imgsz": text}) is None
