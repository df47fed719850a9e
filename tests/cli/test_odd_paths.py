"""Files and folders whose names are no UTF-8, for every command that reads a model or data."""

from __future__ import annotations

import os
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
