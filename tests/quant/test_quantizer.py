"""Fake quantization equals ONNX's QuantizeLinear and DequantizeLinear, and a plain statement of NVIDIA's formula."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from repq.errors import QuantizationError
from repq.quant.quantizer import Quantizer, fake_quantize
from repq.quant.scaling import (
    SMALLEST_CHANNEL,
    SMALLEST_SCALE,
    asymmetric_scale,
    range_scale,
    symmetric_scale,
    weight_scale,
)
from repq.scales import TensorScale


def onnx_round_trip(x: np.ndarray, scale: TensorScale) -> tuple[np.ndarray, np.ndarray]:
    """(integers, values) from ONNX Runtime's own operators, graph optimization off."""
    axis = {} if scale.axis is None else {"axis": scale.axis}
    integer = helper.np_dtype_to_tensor_dtype(np.dtype(scale.dtype))
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero_point"], ["q"], **axis),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero_point"], ["y"], **axis),
        ],
        "qdq",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [
            helper.make_tensor_value_info("q", integer, x.shape),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, x.shape),
        ],
        [numpy_helper.from_array(scale.scale, "scale"), numpy_helper.from_array(scale.zero_point, "zero_point")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    integers, values = session.run(["q", "y"], {"x": x})
    return np.asarray(integers), np.asarray(values)


def quantizer(scale: TensorScale) -> Quantizer:
    module = Quantizer("the input of conv")
    module.set_scale(scale, torch.device("cpu"))
    return module


def values(rng: np.random.Generator, scale: float) -> np.ndarray:
    """Random values, some far outside the range, and values halfway between integers as nearly as can be."""
    spread = rng.normal(0, 60 * scale, 4000)
    halves = (rng.integers(-140, 140, 4000) + 0.5) * scale
    return np.concatenate([spread, halves]).astype(np.float32).reshape(4, 8, 10, 25)


@pytest.mark.parametrize("seed", range(8))
def test_per_tensor_equals_onnx_bit_for_bit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scale = symmetric_scale(10 ** rng.uniform(-6, 4))
    x = values(rng, float(scale.scale))
    integers, expected = onnx_round_trip(x, scale)
    result = quantizer(scale)(torch.from_numpy(x)).numpy()
    np.testing.assert_array_equal(result, expected)
    assert integers.min() == -128
    assert integers.max() == 127


@pytest.mark.parametrize("seed", range(8))
def test_asymmetric_equals_onnx_bit_for_bit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    low, high = sorted(rng.normal(0, 10 ** rng.uniform(-3, 3), 2))
    scale = asymmetric_scale(low, high)
    x = values(rng, float(scale.scale))
    integers, expected = onnx_round_trip(x, scale)
    assert integers.dtype == np.uint8
    np.testing.assert_array_equal(quantizer(scale)(torch.from_numpy(x)).numpy(), expected)


@pytest.mark.parametrize("seed", range(4))
def test_per_channel_weights_equal_onnx_bit_for_bit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = (rng.normal(size=(16, 4, 3, 3)) * 10 ** rng.uniform(-5, 1, (16, 1, 1, 1))).astype(np.float32)
    scale = weight_scale(weight, axis=0)
    np.testing.assert_array_equal(quantizer(scale)(torch.from_numpy(weight)).numpy(), onnx_round_trip(weight, scale)[1])


@pytest.mark.parametrize("axis", [None, 0])
def test_equals_the_published_formula(axis: int | None) -> None:
    """amax / 127 with rounding to even, as NVIDIA's pytorch-quantization and modelopt define it (in float64 here)."""
    weight = np.random.default_rng(0).normal(size=(8, 4, 3, 3)).astype(np.float32)
    amax = np.abs(weight.astype(np.float64)).max(axis=None if axis is None else (1, 2, 3), keepdims=True)
    expected = np.clip(np.rint(weight * 127 / amax), -128, 127) * amax / 127
    result = quantizer(weight_scale(weight, axis))(torch.from_numpy(weight)).numpy()
    # The same integers; the values differ by float32 rounding of the scale and of one product.
    np.testing.assert_allclose(result, expected, rtol=3e-7, atol=0)


def test_is_idempotent_and_within_half_a_step() -> None:
    rng = np.random.default_rng(3)
    x = torch.from_numpy(rng.uniform(-1, 1, 10_000).astype(np.float32))
    module = quantizer(symmetric_scale(float(x.abs().max())))
    y = module(x)
    assert torch.equal(module(y), y)
    # Half a step, and one float32 rounding of a value near 1.
    assert float((y - x).abs().max()) <= 0.5 / 127 * float(x.abs().max()) + 1e-7


def test_gradient_passes_inside_the_range_only() -> None:
    x = torch.tensor([-3.0, -1.0, 0.2, 1.0, 3.0], requires_grad=True)
    scale = symmetric_scale(1.0)
    fake_quantize(x, torch.tensor(float(scale.scale)), 0, -128, 127).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


def test_gradient_equals_torchs_own() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1000, generator=generator, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    fake_quantize(x, torch.tensor(0.01), 10, 0, 255).square().sum().backward()
    torch.fake_quantize_per_tensor_affine(y, 0.01, 10, 0, 255).square().sum().backward()
    assert x.grad is not None
    assert y.grad is not None
    # Up to the last bit of the value that the square's gradient carries along.
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-6, atol=1e-7)


def test_without_a_scale_it_fails_by_name_and_off_it_is_the_identity() -> None:
    module = Quantizer("the input of neck.conv")
    x = torch.ones(3)
    with pytest.raises(QuantizationError, match=r"the input of neck\.conv has no scale"):
        module(x)
    module.enabled = False
    assert module(x) is x


def test_keeps_nothing_in_the_state_dict_but_moves_and_copies_with_its_module() -> None:
    module = quantizer(symmetric_scale(1.0))
    assert not nn.Sequential(module).state_dict()
    assert torch.equal(copy.deepcopy(module).scale, module.scale)  # type: ignore[arg-type]
    assert module.to("meta").scale.device.type == "meta"  # type: ignore[union-attr]


def test_a_bad_scale_is_refused() -> None:
    bad = TensorScale(np.float32(0).reshape(()), np.zeros((), np.int8))
    with pytest.raises(QuantizationError, match="not positive"):
        quantizer(bad)


def test_zero_is_exact_in_every_scheme() -> None:
    zero = torch.zeros(4)
    for low, high in [(-1.0, 3.0), (0.5, 2.0), (-3.0, -1.0), (0.0, 0.0), (-1e-30, 1e-30), (-3e38, 3e38)]:
        for scheme in ("symmetric", "asymmetric"):
            scale = range_scale(low, high, scheme)  # type: ignore[arg-type]
            assert np.isfinite(scale.scale)
            assert scale.scale >= SMALLEST_SCALE
            assert scale.scale.dtype == np.float32
            assert torch.equal(quantizer(scale)(zero), zero)


def test_asymmetric_range_reaches_both_ends() -> None:
    scale = asymmetric_scale(-0.28, 6.0)
    ends = quantizer(scale)(torch.tensor([-0.28, 6.0]))
    # The rounded zero point shifts the grid by at most half a step.
    torch.testing.assert_close(ends, torch.tensor([-0.28, 6.0]), rtol=0, atol=0.5 * 6.28 / 255 + 1e-6)


def test_zero_and_tiny_channels_get_a_safe_scale() -> None:
    weight = np.zeros((3, 2, 1, 1), np.float32)
    weight[0], weight[1] = 1.27, 1e-30
    scale = weight_scale(weight, axis=0).scale
    largest = np.float32(1.27) / np.float32(127)
    assert scale[0] == largest
    # One float32 rounding apart: the floor is taken before the division.
    np.testing.assert_allclose(scale[1:], largest * SMALLEST_CHANNEL, rtol=2e-7)
    assert (weight_scale(np.zeros((3, 2, 1, 1), np.float32), axis=0).scale == np.float32(1) / np.float32(127)).all()
