"""Files and folders whose names are no UTF-8, or have to be quoted, for every command that reads a model or data."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path

import pytest
from command_lines import SIZE, Material, invoke


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_names_that_are_no_utf8(material: Material, folder: Path) -> None:
    odd = folder / os.fsdecode(b"d\xff\xfe")
    shutil.copytree(material.folder / "set", odd / "set")
    model, weights = (odd / os.fsdecode(b"m\xe9") for _ in range(2))
    model, weights = model.with_suffix(".onnx"), weights.with_suffix(".safetensors")
    shutil.copyfile(material.files["build MODEL"], model)
    shutil.copyfile(material.files["WEIGHTS"], weights)
    data, out = odd / "set" / "data.yaml", os.fsdecode(b"o\xe9")
    lines = [
        ["describe", model], ["lint", model], ["estimate", model], ["describe", weights],
        ["build", model, "--engine", "onnxruntime", "-o", odd / f"{out}-engine"],
        ["build", model, "--engine", "openvino", "-o", odd / f"{out}-openvino"],
        ["describe", odd / f"{out}-engine"], ["describe", odd / f"{out}-openvino"],
        ["bench", model, "--imgsz", SIZE, "--rounds", 1, "--infer-only", "-o", odd / f"{out}-bench"],
        ["report", odd / f"{out}-bench", "-o", odd / f"{out}.html"],
        ["calib", "--data", data, "--images", 2, "-o", odd / f"{out}.txt"],
        ["eval", weights, "--data", data, "--imgsz", SIZE],
        ["predict", weights, data.parent / "images" / "val", "--imgsz", SIZE, "-o", odd / f"{out}-predicted"],
        ["fuse", weights, "--data", data, "--imgsz", SIZE, "-o", odd / f"{out}.safetensors"],
    ]  # fmt: skip
    for line in lines:
        result = invoke(*line)
        assert result.exit_code == 0, f"{line}: {result.output[-600:]!r}"
        result.output.encode()
    assert (odd / f"{out}.safetensors").is_file()


def next_of(*line: object) -> list[str]:
    """The command that a command names at its end, as a shell takes it apart."""
    result = invoke(*line)
    assert result.exit_code == 0, f"{line}: {result.output[-600:]!r}"
    (shown,) = [text for text in result.output.splitlines() if text.startswith("next: repq ")]
    return shlex.split(shown.removeprefix("next: repq "))


def test_the_command_that_comes_next_can_be_copied(material: Material, folder: Path) -> None:
    odd = folder / "it's $(x); größe & more"
    shutil.copytree(material.folder / "set", odd / "set")
    weights, graph = odd / "w.safetensors", odd / "g.onnx"
    shutil.copyfile(material.files["WEIGHTS"], weights)
    assert invoke(*next_of("export", weights, "--imgsz", SIZE, "-o", graph)).exit_code == 0
    data = ("--data", odd / "set" / "data.yaml", "--imgsz", SIZE)
    quick = ("--plain", "--method", "max", "--no-eval", "--images", 2)
    to_export = next_of("ptq", weights, *data, *quick, "--target", "openvino", "-o", odd / "int8.safetensors")
    assert "openvino" in to_export
    to_build = next_of(*to_export)
    assert invoke(*to_build).exit_code == 0
    assert invoke(*next_of("ptq", graph, *data, *quick, "-o", odd / "int8.onnx")).exit_code == 0
    few = ("--set", "end_to_end=false", "--images", 1, "--top", 1, "--plain")
    to_plan = next_of("sensitivity", weights, *data, *few, "--set", "ptq.share_scales=largest", "-o", odd / "measured")
    assert "--share-scales" in to_plan
    assert invoke(*to_plan, *quick).exit_code == 0
    to_run = next_of("train", *data, "--model", "yolov6n_v2", "--epochs", 1, "--batch", 2, "-o", odd / "trained")
    paths = [Path(word) for word in to_run if str(odd) in word]
    assert to_run[:2] == ["run", "ptq"] and len(paths) == 2 and all(path.is_file() for path in paths)
