"""The samples of the folder that is deployed find what repq finds, without repq."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from few_blocks import few_blocks
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

import repq
from repq.api.opening import load, of_weights
from repq.deploy import header, write_package
from repq.model import build
from repq.preprocessing import PRESETS
from repq.quant import Weights
from repq.recipe import LetterboxConfig
from repq.stages.package import data_name
from repq.thresholds import Thresholds

SIZE = (64, 96)
NAMES = ("plain", 'with "quotes" and a \\', "Füße 猫?")
THRESHOLDS = Thresholds(confidence=0.4, max_detections=40)


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], repq.Model]:
    """The detector of a preprocessing, made once."""
    return functools.cache(lambda preprocessing: noisy(preprocessing, tmp_path_factory.mktemp(preprocessing)))


def noisy(preprocessing: str, folder: Path) -> repq.Model:
    """A network that finds many things in noise, of this preprocessing, as an ONNX file."""
    torch.manual_seed(0)
    model = build(few_blocks("yolov6n_v2", len(NAMES)), deploy=True).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            inputs = module.weight[0].numel() if isinstance(module, nn.Conv2d) else module.in_channels
            nn.init.normal_(module.weight, 0, (2 / inputs) ** 0.5)
            assert module.bias is not None
            nn.init.normal_(module.bias, 0, 0.1)
    form = next(entry.preprocessing for entry in PRESETS if entry.name == preprocessing)
    stem = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    stem.weight.data *= form.divisor / 255
    model.spec = replace(model.spec, preprocessing=form, thresholds=THRESHOLDS)
    return of_weights("noise", Weights(model, NAMES)).export(folder / "model.onnx", imgsz=SIZE)


@dataclass(frozen=True)
class Deployed:
    """A folder that is deployed, and what it was made of."""

    folder: Path
    onnx: repq.Model
    runtime: str | None
    letterbox: LetterboxConfig


def packed(folder: Path, onnx: repq.Model, runtime: str | None, letterbox: LetterboxConfig) -> Path:
    model = onnx if runtime is None else onnx.build(runtime, out=folder / "built")
    out = folder / "deploy"
    out.mkdir()
    write_package(out, model, onnx, letterbox)
    return out


def picture(height: int, width: int, path: Path) -> Path:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    cv2.imwrite(str(path), cv2.resize(noise, (width, height), interpolation=cv2.INTER_NEAREST))
    return path


def printed(text: str) -> tuple[list[str], NDArray[np.float64]]:
    rows = [line.split("\t") for line in text.splitlines()]
    names, numbers = [row[-6] for row in rows], [row[-4:] + row[-5:-4] for row in rows]
    return names, np.array(numbers, np.float64).reshape(-1, 5)


APART = (0.1, 0.1, 0.1, 0.1, 2e-3)
"""How far boxes, in pixels, and scores of the same may be apart: boxes alone are alike where they are clipped."""


def demand_same(text: str, model: repq.Model, image: Path, letterbox: LetterboxConfig) -> None:
    from repq.api.service import as_exported, service_of
    from repq.data import read_image

    settings = {**asdict(THRESHOLDS), "multi_label": False, "clip": True, "letterbox": letterbox}
    expected = service_of(model, SIZE, as_exported(model, **settings)).detect([read_image(image)])[0]
    names, found = printed(text)
    assert 3 < len(expected) == len(found)
    places = []
    for row in expected:  # scores that differ in the last digit change places
        others = np.array([name != NAMES[int(row[5])] for name in names])
        far = (np.abs(found - row[:5]) / APART).max(axis=1) + 100 * others
        places.append(int(far.argmin()))
        assert far.min() < 1
    assert sorted(places) == list(range(len(found)))
    assert (np.diff(found[:, 4]) <= 0).all()


SMALL = LetterboxConfig(border=4, inner_size=48)
CASES = [
    ("yolov6", "onnxruntime", LetterboxConfig()),
    ("yolox", "openvino", LetterboxConfig()),
    ("yolox-legacy", None, SMALL),
]


@pytest.fixture(scope="module", params=CASES, ids=[case[0] for case in CASES])
def deployed(
    request: pytest.FixtureRequest, detector: Callable[[str], repq.Model], tmp_path_factory: pytest.TempPathFactory
) -> Deployed:
    preprocessing, runtime, letterbox = request.param
    if runtime == "openvino":
        pytest.importorskip("openvino")
    onnx = detector(preprocessing)
    return Deployed(packed(tmp_path_factory.mktemp("packed"), onnx, runtime, letterbox), onnx, runtime, letterbox)


def test_python(deployed: Deployed, tmp_path: Path) -> None:
    folder = deployed.folder
    about = json.loads((folder / "model.json").read_text())
    assert tuple(about["classes"]) == NAMES and about["thresholds"]["confidence"] == 0.4
    image = picture(101, 77, tmp_path / "a.png")
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", "import sys, runpy; sys.modules['repq'] = None; sys.argv = sys.argv[1:]; "
               "runpy.run_path(sys.argv[0], run_name='__main__')", "detect.py", str(image)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=folder, env=clean)
    assert done.returncode == 0, done.stderr
    model = load(folder / "engine") if deployed.runtime else deployed.onnx
    demand_same(done.stdout, model, image, deployed.letterbox)


def test_cpp(cpp_command: list[str], deployed: Deployed, tmp_path: Path) -> None:
    """Images that fit, and those of blocks of one colour, which shrink by whole factors without rounding."""
    folder, letterbox = deployed.folder, deployed.letterbox
    same = deployed.onnx.build("openvino")  # another runtime rounds otherwise, and scores lie close together
    built = subprocess.run(cpp_command, capture_output=True, text=True, cwd=folder)
    assert built.returncode == 0, built.stderr
    for height, width in ((128, 192), (96, 64)) if letterbox is SMALL else ((128, 192), SIZE, (64, 40)):
        image = picture(height, width, tmp_path / "a.ppm")
        done = subprocess.run(["./detect", str(image)], capture_output=True, encoding="utf-8", cwd=folder)
        assert done.returncode == 0, done.stderr
        demand_same(done.stdout, same, image, letterbox)
    refused = subprocess.run(["./detect", "model.json"], capture_output=True, text=True, cwd=folder)
    assert refused.returncode == 1 and "PPM" in refused.stderr


@given(st.lists(st.sampled_from(["home", "alice", "secret project", "coco128"]), max_size=5), st.booleans())
def test_a_model_card_names_the_data_set_without_its_place(folders: list[str], absolute: bool) -> None:
    place = Path(*(["/"] if absolute else []), *folders, "data.yaml")
    name = data_name(place)
    assert name.endswith("data.yaml") and not name.startswith("/") and name.count("/") <= 1
    assert not folders or name == f"{folders[-1]}/data.yaml"
    assert data_name(None) == "the drawn set"


def test_a_reader_that_has_enough_ends_the_sample_quietly(
    detector: Callable[[str], repq.Model], tmp_path: Path
) -> None:
    folder = packed(tmp_path, detector("yolov6"), None, LetterboxConfig())
    image = str(picture(101, 77, tmp_path / "a.png"))
    first, *_ = subprocess.run(
        [sys.executable, "detect.py", image], capture_output=True, encoding="utf-8", cwd=folder, check=True
    ).stdout.splitlines()
    with subprocess.Popen(
        [sys.executable, "detect.py", *[image] * 200], stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
        cwd=folder,
    ) as sample:  # fmt: skip
        assert sample.stdout is not None and sample.stderr is not None
        assert sample.stdout.readline().rstrip("\n") == first
        sample.stdout.close()
        said = sample.stderr.read()
    assert not said and sample.returncode == 141


def test_every_constant_has_its_value(detector: Callable[[str], repq.Model], tmp_path: Path) -> None:
    folder = packed(tmp_path, detector("yolox-legacy"), None, LetterboxConfig())
    text = header(json.loads((folder / "model.json").read_text()))
    assert text == (folder / "model.hpp").read_text() and text.isascii()
    assert "MEAN[3] = {0.485f, 0.456f, 0.406f}" in text and "CENTRED = false" in text
    assert load(folder / "model.onnx").names == NAMES
