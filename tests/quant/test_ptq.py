"""The one-call path and quantized checkpoints, on a detector of the family."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from repq.errors import QuantizationError, SelectorError
from repq.model import Detector, build, layer_ids, load_checkpoint, save_checkpoint
from repq.quant import (
    QuantizedModel,
    load_weights,
    quantize,
    quantized_layers,
    quantizing,
    save_quantized,
    scale_table,
)
from repq.recipe import CalibrationConfig, PtqConfig

KEPT = ("detect.*",)


@pytest.fixture(scope="module")
def fused() -> Detector:
    torch.manual_seed(0)
    return build("yolov6lite_s", 3, deploy=True).eval()


def images(count: int = 4) -> Tensor:
    return torch.rand(count, 3, 64, 128, generator=torch.Generator().manual_seed(0))


def settings(scheme: str) -> PtqConfig:
    return PtqConfig(
        scheme=scheme,  # type: ignore[arg-type]
        keep_float=KEPT,
        calibration=CalibrationConfig(method="percentile", bins=256),
    )


@pytest.fixture(scope="module", params=["symmetric", "asymmetric"])
def quantized(fused: Detector, request: pytest.FixtureRequest) -> tuple[QuantizedModel, PtqConfig]:
    config = settings(request.param)
    return quantize(fused, images().split(2), config), config


def test_quantize_covers_every_layer_once(fused: Detector, quantized: tuple[QuantizedModel, PtqConfig]) -> None:
    result, _ = quantized
    layers = layer_ids(fused)
    assert tuple(row.layer for row in result.layers) == layers
    assert set(result.plan.float_) == {layer for layer in layers if layer.startswith("detect.")}
    assert tuple(quantized_layers(result.model)) == result.plan.int8
    assert 0 < result.int8_macs_share < 1
    assert result.images == 4
    with torch.no_grad(), quantizing(result.model, ()):
        assert torch.equal(result.model(images()), fused(images()))


def test_a_checkpoint_comes_back_exactly(quantized: tuple[QuantizedModel, PtqConfig], tmp_path: Path) -> None:
    result, config = quantized
    path = tmp_path / "model.safetensors"
    save_quantized(path, result.model, config, names=("a", "b", "c"), metadata={"origin": "test"})
    read = load_weights(path)
    assert (read.plan, read.config) == (result.plan, config)
    assert (read.names, read.metadata["origin"]) == (("a", "b", "c"), "test")
    before, after = scale_table(result.model), scale_table(read.model)
    assert before.keys() == after.keys()
    for layer, scales in before.items():
        for one, other in ((scales.input, after[layer].input), (scales.weight, after[layer].weight)):
            assert (one.dtype, one.axis) == (other.dtype, other.axis)
            np.testing.assert_array_equal(one.scale, other.scale)
            np.testing.assert_array_equal(one.zero_point, other.zero_point)
    with torch.no_grad():
        assert torch.equal(read.model(images()), result.model(images()))


def test_a_float_checkpoint_is_not_taken_for_a_quantized_one(fused: Detector, tmp_path: Path) -> None:
    path = tmp_path / "float.safetensors"
    save_checkpoint(path, fused)
    assert not load_weights(path).quantized


def test_a_checkpoint_without_a_scale_is_refused_by_name(
    quantized: tuple[QuantizedModel, PtqConfig], tmp_path: Path
) -> None:
    result, config = quantized
    path = tmp_path / "model.safetensors"
    save_quantized(path, result.model, config)
    whole = load_checkpoint(path)
    first = result.plan.int8[0]
    extra = {name: value for name, value in whole.extra.items() if name != f"{first}.input.scale"}
    save_checkpoint(path, whole.model, metadata=whole.metadata, extra=extra)
    with pytest.raises(QuantizationError, match="no usable scale for " + first.replace(".", r"\.")):
        load_weights(path)
    save_checkpoint(path, whole.model, metadata={"quantization": "{}"}, extra=whole.extra)
    with pytest.raises(QuantizationError, match="settings cannot be read"):
        load_weights(path)


def test_what_cannot_be_quantized_is_refused(fused: Detector) -> None:
    with pytest.raises(QuantizationError, match="not fused"):
        quantize(build("yolov6lite_s", 3), [images()], PtqConfig())
    with pytest.raises(SelectorError, match="bakcbone"):
        quantize(fused, [images()], PtqConfig(keep_float=("bakcbone.*",)))
    with pytest.raises(QuantizationError, match="no images"):
        quantize(fused, [], PtqConfig())
