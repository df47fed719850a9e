"""Trials on a graph of another tool share what they measure, and give what quantizing it anew gives."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from detectors import SIZE, yolov8

from repq.model import Detector
from repq.quant import load_weights, quantize, quantize_at_best, scale_table
from repq.recipe import CalibrationConfig, CorrectionConfig, PtqConfig
from repq.reparam import fuse


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    path: Path = tmp_path_factory.mktemp("graph") / "model.onnx"
    onnx.save(yolov8(), path)
    return fuse(load_weights(path).model)


def images(count: int, seed: int) -> torch.Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def test_what_is_chosen_for_a_graph_is_what_its_settings_give_anew(fused: Detector) -> None:
    config = PtqConfig(
        scheme="asymmetric", calibration=CalibrationConfig(bins=256), correct=CorrectionConfig(images=4), auto=True
    )
    outcome = quantize_at_best(fused, [images(4, 0)], [images(2, 5)], config)
    assert any(trial.name.startswith("+ outputs") for trial in outcome.trials)
    anew = quantize(fused, [images(4, 0)], outcome.config)
    first, second = outcome.model.state_dict(), anew.model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    scales = scale_table(anew.model)
    assert all((own.input.scale == scales[name].input.scale).all() for name, own in scale_table(outcome.model).items())
