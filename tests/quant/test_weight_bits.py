"""Weights of 7 bits: no engine's sum of two products leaves 16 bits, and what is stored is what was simulated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from small_detectors import SIZE, images, uneven

from repq.export import export_quantized
from repq.model import Detector
from repq.quant import QuantizedModel, load_weights, quantize, quantized_layers, save_quantized, scale_table
from repq.quant.qat.learned import fix_scales, learn_scales
from repq.quant.quantizer import Quantizer
from repq.recipe import CalibrationConfig, CorrectionConfig, PtqConfig

CORRECTIONS = [
    {},
    {"equalize": True, "rounding": "adaptive", "outputs": "moments"},
    {"channel_inputs": True, "split_below_db": 100.0},
]


def settings(scheme: str, **correct: object) -> PtqConfig:
    return PtqConfig(
        scheme=scheme, weight_bits=7, calibration=CalibrationConfig(method="max"), correct=CorrectionConfig(**correct)
    )


@pytest.fixture(scope="module")
def fused() -> Detector:
    return uneven("yolov6lite_s")


def stored_weights(graph: onnx.ModelProto) -> list[np.ndarray]:
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    nodes = [node for node in graph.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in values]
    return [values[node.input[0]] for node in nodes]


def with_drifted_weights(result: QuantizedModel) -> None:
    """As training leaves them: some weights lie outside the range of their scale."""
    for layer in quantized_layers(result.model).values():
        layer.weight.data *= torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(0)) * 3


def quantizers_of_weights(result: QuantizedModel) -> list[Quantizer]:
    layers = quantized_layers(result.model).values()
    return [one for layer in layers for one in (layer.weight_quantizer, layer.fine_quantizer) if one is not None]


@pytest.mark.parametrize("correct", CORRECTIONS)
def test_two_products_of_bytes_fit_16_bits_whatever_was_corrected(fused: Detector, correct: dict[str, object]) -> None:
    result = quantize(fused, [images()], settings("asymmetric", **correct))
    with_drifted_weights(result)
    stored = stored_weights(export_quantized(result.model, SIZE))
    assert len(stored) == len(quantizers_of_weights(result))
    assert {weight.dtype for weight in stored} == {np.dtype(np.int8)}
    assert min(int(weight.min()) for weight in stored) == -64
    assert max(int(weight.max()) for weight in stored) == 63
    largest = 255 * 2 * max(int(np.abs(weight.astype(np.int32)).max()) for weight in stored)
    assert largest <= np.iinfo(np.int16).max


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
def test_saved_loaded_and_exported_it_is_what_was_simulated(fused: Detector, scheme: str, tmp_path: Path) -> None:
    config = settings(scheme)
    result = quantize(fused, [images()], config)
    learn_scales(result.model)
    fix_scales(result.model)
    with_drifted_weights(result)
    save_quantized(tmp_path / "int8.safetensors", result.model, config)
    read = load_weights(tmp_path / "int8.safetensors")
    assert all(scales.weight.bits == 7 and scales.input.bits == 8 for scales in scale_table(read.model).values())
    x = images(1, seed=1)
    with torch.no_grad():
        simulated = result.model(x)
        assert torch.equal(read.model(x), simulated)
    session = onnxruntime.InferenceSession(export_quantized(read.model, SIZE).SerializeToString())
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    error = np.square(found - simulated.numpy()).sum() / np.square(simulated.numpy()).sum()
    assert error < 1e-4


def test_a_weight_is_rounded_twice_as_coarsely(fused: Detector) -> None:
    coarse = quantize(fused, [images()], settings("symmetric"))
    fine = quantize(fused, [images()], settings("symmetric").model_copy(update={"weight_bits": 8}))
    for layer, scales in scale_table(coarse.model).items():
        beside = scale_table(fine.model)[layer]
        np.testing.assert_allclose(scales.weight.scale, beside.weight.scale * np.float32(127 / 63), rtol=1e-6)
        np.testing.assert_array_equal(scales.input.scale, beside.input.scale)
