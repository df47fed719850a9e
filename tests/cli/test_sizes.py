"""The size, the classes and the thresholds travel with a model from command to command."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pytest
from command_lines import Material, invoke, refused
from small_training import tiny_model

from repq.api.opening import load
from repq.errors import RepqError
from repq.thresholds import Thresholds

OWN = (64, 96)
NAMES = ["ring", "triangle", "cross"]
USE = {"confidence": 0.125, "iou": 0.5, "max_detections": 7}


@pytest.fixture(scope="module")
def calibrated(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with names, and what it is calibrated at a size that no default has."""
    from repq.model import save_checkpoint

    folder = tmp_path_factory.mktemp("calibrated")
    save_checkpoint(folder / "w.safetensors", tiny_model(classes=3).eval(), names=NAMES)
    line = ("--data", material.files["--data"], "--no-eval", "--plain", "--images", 2)
    use = ("--use-conf", 0.125, "--use-iou", 0.5, "--use-max-detections", 7)
    run("ptq", folder / "w.safetensors", *line, *use, "--imgsz", "64x96", "-o", folder / "int8.safetensors")
    return folder


@pytest.fixture
def weights(calibrated: Path, folder: Path) -> Path:
    """Copies of both in the folder that the test runs in."""
    for name in ("w.safetensors", "int8.safetensors"):
        shutil.copy(calibrated / name, folder)
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
        written = json.loads(Path("out/predictions.json").read_text())
        assert written["classes"] == NAMES and {name: written[name] for name in USE} == USE
        assert run("eval", model, *data)["images"] == 2
    assert run("check", weights, "engine", *data, "--max-drop", 1)["images"] == 2
    tuned = ("--no-eval", "--epochs", 1, "--batch", 2, "-o", "tuned.safetensors")
    run("qat", weights, *data, *tuned)
    assert run("export", "tuned.safetensors", "-o", "tuned.onnx")["imgsz"] == list(OWN)
    assert asdict(load(Path("tuned.onnx")).thresholds) == USE


def test_a_contradiction_is_said_with_both_values(weights: Path, material: Material, folder: Path) -> None:
    shown = invoke("export", weights, "-o", "other.onnx", "--imgsz", 640).output
    assert "64x96" in shown and "640x640" in shown
    run("export", weights, "-o", "own.onnx")
    message = refused(invoke("eval", "own.onnx", "--data", material.files["--data"], "--imgsz", "32x64"))
    assert "64x96" in message and "32x64" in message
    augmented = ("eval", "own.onnx", "--data", material.files["--data"], "--tta")
    message = refused(invoke(*augmented, "--tta-scale", 0.5))  # a size that was not typed
    assert "test-time augmentation" in message and "--tta-inside" in message and "--imgsz" not in message
    assert run(*augmented, "--tta-scale", 0.5, "--tta-inside")["images"] == 2


def test_other_thresholds_are_taken_and_said_with_both_values(weights: Path, folder: Path) -> None:
    cv2.imwrite("a.png", np.zeros((50, 60, 3), np.uint8))
    shown = invoke("export", weights, "-o", "other.onnx", "--use-iou", 0.25).output
    assert "0.5" in shown and "0.25" in shown and "confidence" not in shown
    assert asdict(load(Path("other.onnx")).thresholds) == {**USE, "iou": 0.25}
    shown = invoke("predict", "other.onnx", "a.png", "--conf", 0.75).output
    assert "0.125" in shown and "0.75" in shown
    assert json.loads(Path("predictions/predictions.json").read_text())["confidence"] == 0.75
    shown = invoke("predict", weights, "a.png", "--compare", "other.onnx").output
    assert "iou 0.25" in shown and "0.5 is asked for" in shown


def test_a_suppression_in_the_graph_decides(weights: Path, folder: Path) -> None:
    cv2.imwrite("a.png", np.zeros((50, 60, 3), np.uint8))
    run("export", weights, "-o", "nms.onnx", "--nms", "--conf", 0.5, "--iou", 0.75, "--max-detections", 3)
    assert run("predict", "nms.onnx", "a.png")["confidence"] == 0.5
    message = refused(invoke("predict", "nms.onnx", "a.png", "--iou", 0.5))
    assert "0.75" in message and "0.5" in message


def test_handles_carry_thresholds(weights: Path, folder: Path) -> None:
    """Through folding and graphs, into engines; of two files of one model, the handle's own is not changed."""
    first = load(Path("w.safetensors"))
    model = first.with_thresholds(confidence=0.5).with_thresholds(max_detections=9)
    wanted = Thresholds(confidence=0.5, max_detections=9)
    assert first.thresholds == Thresholds() and model.thresholds == wanted
    engine = model.fuse().export("m.onnx", imgsz=OWN).build("onnxruntime", out="engine")
    assert (
        engine.thresholds == load(Path("engine")).thresholds == load(model.save("m.safetensors")).thresholds == wanted
    )
    with pytest.raises(RepqError, match="confidence"):
        model.with_thresholds(confidence=2)


def test_of_the_usual_nothing_is_said() -> None:
    said: list[str] = []
    assert Thresholds().changed({"confidence": 0.5, "iou": None}, "m", said.append) == Thresholds(confidence=0.5)
    assert Thresholds(0.5).changed({"confidence": 0.5}, "m", said.append) == Thresholds(0.5)
    assert not said


def test_a_size_that_nobody_gave_is_said(weights: Path, folder: Path) -> None:
    shown = invoke("export", "w.safetensors", "-o", "w.onnx").output
    assert "640x640 is taken" in shown


@pytest.mark.parametrize("models", [("int8.safetensors", "w.safetensors"), ("w.safetensors", "int8.safetensors")])
def test_models_side_by_side_work_at_the_size_that_one_of_them_says(
    weights: Path, folder: Path, models: tuple[str, str]
) -> None:
    """Whichever is named first: boxes of two sizes would differ whatever the models are."""
    cv2.imwrite("a.png", np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8))
    line = ("a.png", "--conf", 0.0005, "--no-draw")
    shown = invoke("predict", models[0], *line, "--compare", models[1], "-o", "unsaid").output
    assert "64x96 is taken, as of int8.safetensors" in shown and "640x640" not in shown
    run("predict", models[0], *line, "--compare", models[1], "-o", "said", "--imgsz", "64x96")
    unsaid, said = (json.loads(Path(f"{name}/predictions.json").read_text()) for name in ("unsaid", "said"))
    assert unsaid == said and len(said["images"][0]["other"]) > 0


def test_a_damaged_entry_is_no_size() -> None:
    from repq.api.sizes import as_metadata, from_metadata

    assert from_metadata(as_metadata(OWN)) == OWN
    for text in ("", "[1]", "[1, 2, 3]", "null", '["a", "b"]', "[-1, 4]", "[1e99, 4]", "{}"):
        assert from_metadata({"imgsz": text}) is None


@pytest.mark.parametrize("name", ["nowhere.onnx", "nowhere.pt", "nowhere.safetensors", "nowhere"])
def test_of_a_model_that_is_not_there_nothing_is_said_but_that(material: Material, folder: Path, name: str) -> None:
    text = refused(invoke("eval", name, "--data", material.files["--data"]))
    assert "there is no model" in text and "size" not in text


@pytest.mark.parametrize("content", [b"", b"hello world", bytes(99)], ids=["empty", "text", "zeros"])
@pytest.mark.parametrize("command", ["eval", "export"])
def test_of_a_graph_that_cannot_be_read_nothing_is_said_but_that(
    material: Material, folder: Path, content: bytes, command: str
) -> None:
    Path("damaged.onnx").write_bytes(content)
    further = ("--data", material.files["--data"]) if command == "eval" else ("-o", "out.onnx")
    text = refused(invoke(command, "damaged.onnx", *further))
    assert "no valid ONNX model" in text and "at which size" not in text
    assert not Path("out.onnx").exists()


def test_of_a_folder_without_an_engine_nothing_is_said_but_that(material: Material, folder: Path) -> None:
    Path("other").mkdir()
    text = refused(invoke("eval", "other", "--data", material.files["--data"]))
    assert "is no engine" in text and "at which size" not in text
