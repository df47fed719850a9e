"""A reduced range of weights: sums of two products of bytes fit 16 bits, and no range is larger than that needs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import numpy_helper
from small_detectors import SIZE, images, uneven

from repq.export import export_quantized
from repq.model import Detector
from repq.quant import load_weights, quantize, quantized_layers, save_quantized, scale_table
from repq.quant.convolution import is_depthwise
from repq.quant.scaling import pair_magnitude, weight_scale
from repq.recipe import CalibrationConfig, CorrectionConfig, PtqConfig

CORRECTIONS = [
    {},
    {"equalize": True, "rounding": "adaptive", "outputs": "moments"},
    {"channel_inputs": True, "split_below_db": 100.0},
]
WEIGHTS = arrays(np.float32, st.tuples(*[st.integers(1, 5)] * 3), elements=st.floats(-8, 8, width=16))


def settings(scheme: str, reduce_range: bool = True, **correct: object) -> PtqConfig:
    return PtqConfig(
        scheme=scheme, reduce_range=reduce_range, calibration=CalibrationConfig(method="max"),
        correct=CorrectionConfig(**correct),
    )  # fmt: skip


@pytest.fixture(scope="module")
def fused() -> Detector:
    return uneven("yolov6lite_s")


def extreme_sums(integers: np.ndarray, axis: int) -> tuple[int, int]:
    """The least and the largest sum of products of two neighbours with numbers in 0..255."""
    channels = np.moveaxis(integers.astype(np.int64), axis, 0)
    pairs = [channels[start : start + 2] for start in range(0, len(channels), 2)]
    lowest = min(int(np.minimum(pair, 0).sum(0).min()) for pair in pairs)
    return 255 * lowest, 255 * max(int(np.maximum(pair, 0).sum(0).max()) for pair in pairs)


@given(WEIGHTS, st.sampled_from([0, 1]), st.booleans())
def test_integers_rounded_up_or_down_fit_and_a_step_less_would_not_do(
    weight: np.ndarray, axis: int, whole: bool
) -> None:
    scale = weight_scale(weight, None if whole else 1 - axis, axis)
    step = scale.scale if whole else np.expand_dims(scale.scale, (axis, 2))
    for rounded in (np.floor(weight / step), np.ceil(weight / step), np.rint(weight / step)):
        lowest, highest = extreme_sums(rounded, axis)
        assert lowest >= -(2**15) and highest < 2**15
    wide = weight_scale(weight, None if whole else 1 - axis).scale
    assert (wide <= scale.scale).all() and (scale.scale <= 2.001 * wide).all()
    assert (scale.scale[...] == wide).all() or pair_magnitude(weight, axis).max() > 0


@pytest.mark.parametrize("correct", CORRECTIONS)
def test_every_stored_weight_fits_whatever_was_corrected(fused: Detector, correct: dict[str, object]) -> None:
    result = quantize(fused, [images()], settings("asymmetric", **correct))
    layers = quantized_layers(result.model)
    graph = export_quantized(result.model, SIZE).graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    stored = [node.input[0] for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in values]
    assert len(stored) == len(layers) + sum(layer.fine_quantizer is not None for layer in layers.values())
    transposed = {node.input[1] for node in graph.node if node.op_type == "ConvTranspose"}
    produced = {node.input[0]: node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    sums = [extreme_sums(values[name], 0 if produced[name] in transposed else 1) for name in stored]
    assert min(low for low, _ in sums) >= -(2**15) and max(high for _, high in sums) < 2**15
    assert max(np.abs(values[name].astype(int)).max() for name in stored) >= 127, "single weights keep the whole range"


def test_layers_without_pairs_lose_nothing(fused: Detector) -> None:
    reduced, full = (
        scale_table(quantize(fused, [images()], settings("symmetric", whether)).model) for whether in (True, False)
    )
    layers = quantized_layers(quantize(fused, [images()], settings("symmetric")).model)
    factors = {name: (reduced[name].weight.scale / full[name].weight.scale) for name in layers}
    assert all((factors[name] == 1).all() for name, layer in layers.items() if is_depthwise(layer))
    others = np.concatenate([np.ravel(factors[name]) for name, layer in layers.items() if not is_depthwise(layer)])
    assert others.min() >= 1 and 1.1 < np.median(others) < 1.6, "less than the bit that 7-bit weights lose"


def test_a_checkpoint_comes_back_exactly(fused: Detector, tmp_path: Path) -> None:
    config = settings("asymmetric")
    result = quantize(fused, [images()], config)
    save_quantized(tmp_path / "int8.safetensors", result.model, config)
    read = load_weights(tmp_path / "int8.safetensors")
    assert read.config == config
    assert onnx.ModelProto.SerializeToString(export_quantized(read.model, SIZE)) == onnx.ModelProto.SerializeToString(
        export_quantized(result.model, SIZE)
    )
