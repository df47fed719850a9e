"""The mean over the bins of a distance is no learned layer: it stays in float unless that is switched off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from detectors import NAMES, SIZE, distributions, yolov8
from hypothesis import given
from hypothesis import strategies as st
from test_graph_detector import IMGSZ, noise, saved
from torch import nn

import repq
from repq.data import make_demo_set
from repq.graph import read_metadata
from repq.model import load_graph
from repq.model.weighted import Matrix
from repq.quant import quantize
from repq.quant.bin_means import bin_means
from repq.quant.similarity import head_snr_db, outputs_of
from repq.recipe import DemoConfig, EvalConfig, PtqConfig
from repq.stages import Context, diagnose_checkpoint


@given(st.integers(4, 33), st.floats(0.1, 8), st.sampled_from(["conv", "matrix"]), st.integers(0, 99))
def test_they_are_known_by_their_weights(bins: int, step: float, kind: str, seed: int) -> None:
    layer = nn.Conv2d(bins, 1, 1) if kind == "conv" else Matrix(bins, 1)
    held = nn.ModuleDict({"layer": layer})
    torch.nn.init.zeros_(layer.bias)
    with torch.no_grad():
        layer.weight.copy_((torch.arange(bins) * torch.tensor(step)).reshape(layer.weight.shape))
        assert bin_means(held) == ("layer",)
        layer.bias.fill_(0.5)
        assert bin_means(held) == ()
        layer.bias.zero_()
        generator = torch.Generator().manual_seed(seed)
        layer.weight.add_(torch.randn(layer.weight.shape, generator=generator) * 0.01 * step)
        assert bin_means(held) == ()


def test_other_detectors_have_none(tmp_path: Path) -> None:
    assert bin_means(load_graph(saved(yolov8(), tmp_path)).model) == ()


def test_boxes_lose_less_with_the_mean_in_float(tmp_path: Path) -> None:
    model = load_graph(saved(distributions(), tmp_path)).model
    (mean,) = bin_means(model)
    wanted = outputs_of(model, [noise(2, 1)])
    whole, kept = (quantize(model, [noise(4)], PtqConfig(keep_float=names)).model for names in ((), (mean,)))
    assert head_snr_db(kept, [noise(2, 1)], wanted) > head_snr_db(whole, [noise(2, 1)], wanted)


@pytest.mark.parametrize("float_", [True, False])
def test_it_stays_in_float(float_: bool, tmp_path: Path) -> None:
    data = make_demo_set(tmp_path / "set", DemoConfig(train_images=4, val_images=2, size=SIZE, classes=len(NAMES)))
    path, said = saved(distributions(), tmp_path), list[str]()
    model = repq.load(path, log=said.append)
    mean = load_graph(path).model
    (mean,) = bin_means(mean)
    config = PtqConfig(auto=False, float_bin_means=float_, calibration={"images": 4})  # type: ignore[arg-type]
    int8 = model.quantize(data, imgsz=SIZE, config=config)
    int8.export(tmp_path / "int8.onnx", imgsz=SIZE)
    metadata = read_metadata(onnx.load(tmp_path / "int8.onnx"))
    assert metadata is not None and (mean in metadata.int8_layers) is not float_
    assert len(metadata.int8_layers) == len(model.layers) - float_
    assert any("means over the bins of a distance" in line and mean in line for line in said) is float_
    assert np.isfinite(int8.infer(noise(1).numpy())).all() and IMGSZ == (SIZE, SIZE)


def test_it_is_measured_and_in_every_plan(tmp_path: Path) -> None:
    images = list(np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8))
    model = repq.load(saved(distributions(), tmp_path), engine="torch")
    (mean,) = bin_means(load_graph(tmp_path / "model.onnx").model)
    ptq = PtqConfig(auto=False, calibration={"images": 3})  # type: ignore[arg-type]
    found = model.sensitivity(images, imgsz=SIZE, ptq=ptq, count=2, end_to_end=False)
    assert {row.layer for row in found.layers} == set(model.layers)
    for float_ in (True, False):
        config = ptq.model_copy(update={"float_bin_means": float_})
        plan = model.plan(
            images, imgsz=SIZE, ptq=config, top=1
        )  # fmt: skip
        assert (mean in plan.float_layers) or not float_
        assert len(plan.float_layers) <= 1 + float_


@pytest.mark.parametrize("float_", [True, False])
def test_a_diagnosis_tries_what_ptq_would_do(float_: bool, tmp_path: Path) -> None:
    data = make_demo_set(tmp_path / "set", DemoConfig(train_images=4, val_images=2, size=SIZE, classes=len(NAMES)))
    path = saved(distributions(), tmp_path)
    (mean,) = bin_means(load_graph(path).model)
    config = PtqConfig(auto=False, float_bin_means=float_, calibration={"images": 4})  # type: ignore[arg-type]
    context = Context((SIZE, SIZE), data, EvalConfig(batch=2))
    found = diagnose_checkpoint(path, config, context, max_drop=0.01)
    (row,) = [row for row in found.layers if row.layer == mean]
    assert (row.activation_snr_db is None) is float_
