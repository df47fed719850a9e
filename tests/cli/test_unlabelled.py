"""Images without labels, wherever labels are not needed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_lines import SIZE, Material, invoke, refused
from small_training import tiny_model


@pytest.fixture(scope="module")
def images(material: Material) -> Path:
    """The train images of the drawn set; the labels lie elsewhere."""
    return material.folder / "set/images/train"


def run(*arguments: object) -> dict:
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def listed(images: Path, folder: Path) -> Path:
    (folder / "list.txt").write_text("".join(f"{path}\n" for path in sorted(images.iterdir())))
    return folder / "list.txt"


@pytest.mark.parametrize("form", ["folder", "list", "labelled"])
def test_quantizing_and_training(form: str, material: Material, images: Path, folder: Path) -> None:
    """What is quantized does not depend on whether there are labels."""
    data = {"folder": images, "list": listed(images, folder), "labelled": material.files["--data"]}[form]
    common = ("--imgsz", SIZE, *(["--no-eval"] if form == "labelled" else []))
    from repq.model import save_checkpoint

    weights = folder / "w.safetensors"
    save_checkpoint(weights, tiny_model(classes=3).eval(), names=("ring", "triangle", "cross"))
    report = run("ptq", weights, "--data", data, *common, "--plain", "--images", 2, "-o", "int8.safetensors")
    assert report["ap_float"] is report["ap_quantized"] is report["accuracy_float"] is None
    assert report["images"] == 2 and report["layers_int8"]
    tuned = run(
        "qat", "int8.safetensors", "--data", data, *common, "--epochs", 1, "--batch", 2, "-o", "qat.safetensors"
    )
    assert tuned["ap_trained"] is None and tuned["images"] == 2
    shown = invoke("ptq", weights, "--data", data, *common, "--plain", "--images", 2, "-o", "again.safetensors").output
    assert "no AP is known" in shown
    assert Path("again.safetensors").read_bytes() == Path("int8.safetensors").read_bytes()


def test_drawing_and_timing(detector_onnx: Path, images: Path, folder: Path) -> None:
    assert run("calib", "--data", images, "--images", 2, "-o", "calib.txt")["images"] == 2
    timed = run("bench", detector_onnx, "--data", images, "--images", 2, "--imgsz", SIZE, "--rounds", 1, "--runs", 1)
    assert timed["service"][0]["images"] == 2


def test_what_needs_labels_says_so(material: Material, images: Path, folder: Path) -> None:
    (folder / "empty").mkdir()
    weights = material.files["WEIGHTS"]
    assert "no images" in refused(invoke("ptq", weights, "--data", "empty", "--imgsz", SIZE, "-o", "a.safetensors"))
    assert "label" in refused(invoke("eval", weights, "--data", images, "--imgsz", SIZE)).lower()
    for command in (("qat",), ("prune", "--ratio", 0.2, "--epochs", 1)):
        line = (*command, weights, "--data", images, "--imgsz", SIZE, "-o", "a.safetensors", "--task-weight", 1)
        assert "no labels to learn from" in refused(invoke(*line))
    assert not Path("a.safetensors").exists()


def test_a_folder_with_a_description_says_where_the_labels_are(material: Material) -> None:
    folder = Path(material.files["--data"]).parent
    refusal = invoke("eval", material.files["WEIGHTS"], "--data", folder, "--imgsz", SIZE)
    assert refusal.exit_code == 2 and f"{folder / 'data.yaml'} has labels and splits" in refusal.output.replace(
        "\n", " "
    )


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tgz", ".7z"])
def test_an_archive_is_to_be_unpacked(material: Material, folder: Path, suffix: str) -> None:
    (folder / f"set{suffix}").write_bytes(b"PK")
    refusal = invoke("eval", material.files["WEIGHTS"], "--data", f"set{suffix}", "--imgsz", SIZE)
    assert refusal.exit_code == 2 and "is an archive" in refusal.output and "unpack" in refusal.output


def test_an_empty_source_is_no_folder(material: Material, folder: Path) -> None:
    refusal = invoke("predict", material.files["WEIGHTS"], "", "--imgsz", SIZE)
    assert refusal.exit_code == 2 and "empty" in refusal.output
