"""Gradients of scales are LSQ's, and learning starts and ends at the bits of a plain quantizer."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_qat import calibrated_model, float_model, images
from torch import Tensor

from repq.errors import QuantizationError
from repq.layers import LayerId
from repq.model import Detector
from repq.quant import (
    Quantizer,
    fake_quantize,
    load_weights,
    quantize,
    quantized_layers,
    save_quantized,
    scale_table,
)
from repq.quant.qat import LearnedQuantizer, fix_scales, learn_scales
from repq.quant.qat.learned import scale_parameters
from repq.quant.scaling import asymmetric_scale, symmetric_scale
from repq.quant.state import set_fine_scale
from repq.recipe import CalibrationConfig, PtqConfig
from repq.train import MovingAverage

CPU = torch.device("cpu")


def by_autograd(x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    """The same by torch's own rules: rounding lets gradients through, clipping stops them."""
    steps = x / scale
    rounded = steps + (steps.round() - steps).detach()
    return rounded.clamp(low, high) * scale


def by_equation(x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    """LSQ, equation 3: the derivative of each quantized value by its scale."""
    steps = x / scale
    inside = (steps.round() >= low) & (steps.round() <= high)
    return torch.where(inside, steps.round() - steps, steps.clamp(low, high))


@pytest.mark.parametrize("shape", [(), (8, 1, 1, 1)])
@pytest.mark.parametrize(("zero_point", "low", "high"), [(0, -128, 127), (37, 0, 255)])
def test_gradients_are_those_of_autograd_and_of_the_equation(shape, zero_point: int, low: int, high: int) -> None:
    rng = torch.Generator().manual_seed(0)
    values = torch.randn(8, 3, 5, 5, generator=rng, dtype=torch.float64)
    step = torch.rand(shape, generator=rng, dtype=torch.float64) * 0.01 + 0.005  # many values are clipped
    upstream = torch.randn(values.shape, generator=rng, dtype=torch.float64)
    found = []
    for function in (
        lambda x, s: fake_quantize(x, s, zero_point, low, high),
        lambda x, s: by_autograd(x, s, low - zero_point, high - zero_point),
    ):
        x, scale = values.clone().requires_grad_(), step.clone().requires_grad_()
        y = function(x, scale)
        y.backward(upstream)
        found.append((y.detach(), x.grad, scale.grad))
    for own, other in zip(*found, strict=True):
        torch.testing.assert_close(own, other)
    equation = (upstream * by_equation(values, step, low - zero_point, high - zero_point)).sum_to_size(shape)
    torch.testing.assert_close(found[0][2], equation)
    share = (found[0][1] == 0).double().mean()
    assert 0.05 < share < 0.95, "some values are clipped, some are not"


def test_the_gradient_of_clipped_values_is_the_true_derivative() -> None:
    x, scale = torch.tensor([-9.0, -5.0, 6.0, 8.0], dtype=torch.float64), torch.tensor(0.01, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: fake_quantize(x, s, 0, -128, 127), scale.requires_grad_())


@pytest.mark.parametrize("scale", [symmetric_scale(1.0), asymmetric_scale(-0.4, 2.0)])
def test_the_logarithm_gets_lsqs_gradient_as_a_share_of_the_scale(scale) -> None:
    plain = Quantizer("x")
    plain.set_scale(scale, CPU)
    quantizer = LearnedQuantizer(plain, batched=True)
    x = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 2
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    quantizer(x).backward(upstream)
    step, zero_point = torch.tensor(scale.scale), int(scale.zero_point)
    derivative = (upstream * by_equation(x, step, scale.q_min - zero_point, scale.q_max - zero_point)).sum()
    expected = derivative / (3 * 6 * 6 * scale.q_max) ** 0.5 / step
    assert quantizer.log_ratio.grad is not None
    torch.testing.assert_close(quantizer.log_ratio.grad, expected, rtol=1e-4, atol=1e-6)


def test_a_channel_counts_its_own_values_alone() -> None:
    scale = symmetric_scale(np.array([1.0, 2.0], np.float32), axis=0)
    plain = Quantizer("w")
    plain.set_scale(scale, CPU)
    quantizer = LearnedQuantizer(plain, batched=False)
    w = torch.randn(2, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    quantizer(w).sum().backward()
    step = torch.tensor(scale.scale).view(2, 1, 1, 1)
    expected = by_equation(w, step, -128, 127).sum((1, 2, 3)) / (27 * 127) ** 0.5 / step.flatten()
    assert quantizer.log_ratio.grad is not None
    torch.testing.assert_close(quantizer.log_ratio.grad, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
def test_learning_starts_and_ends_bit_for_bit(scheme: str) -> None:
    model, x = calibrated_model(float_model(), scheme=scheme), images(2)
    before, table = model(x), scale_table(model)
    learn_scales(model)
    assert torch.equal(model(x), before)
    for parameter in model.parameters():
        if parameter.ndim < 2 and parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    learned, moved = model(x), scale_table(model)
    assert not torch.equal(learned, before)
    fix_scales(model)
    assert torch.equal(model(x), learned)
    assert not any("log_ratio" in name for name in model.state_dict())
    for layer, scales in scale_table(model).items():
        assert scales.input == moved[layer].input
        assert scales.input.zero_point == table[layer].input.zero_point


def test_scales_of_weights_stay_if_they_are_not_to_be_learned() -> None:
    model = calibrated_model(float_model())
    learn_scales(model, weights=False)
    for layer in quantized_layers(model).values():
        assert isinstance(layer.input_quantizer, LearnedQuantizer)
        assert type(layer.weight_quantizer) is Quantizer


def readers(model: Detector) -> dict[int, list[LayerId]]:
    """The layers that read each tensor."""
    seen: list[tuple[LayerId, Tensor]] = []  # keeps the tensors, so that no two share an id
    with ExitStack() as stack:
        for name, layer in quantized_layers(model).items():
            hook = layer.register_forward_pre_hook(lambda _m, args, name=name: seen.append((name, args[0])))
            stack.callback(hook.remove)
        model(images(1))
    found: dict[int, list[LayerId]] = {}
    for name, tensor in seen:
        found.setdefault(id(tensor), []).append(name)
    return found


def sharing(model: Detector) -> set[frozenset[LayerId]]:
    """The layers that learn one scale together."""
    found: dict[int, set[LayerId]] = {}
    for name, layer in quantized_layers(model).items():
        found.setdefault(id(layer.input_quantizer.log_ratio), set()).add(name)
    return set(map(frozenset, found.values()))


def test_layers_that_read_one_tensor_share_its_scale() -> None:
    model = calibrated_model(float_model())
    one_tensor = set(map(frozenset, readers(model).values()))
    learn_scales(model)
    assert sharing(model) == one_tensor
    inputs = len(quantized_layers(model))
    assert len(one_tensor) < inputs, "the head's branches read one tensor"
    assert len(scale_parameters(model)) == len(one_tensor) + inputs
    names = {name: value for name, value in model.named_parameters(remove_duplicate=False) if "log_ratio" in name}
    assert len(names) == 2 * inputs
    average = MovingAverage(model, decay=0.9, ramp_steps=1)
    with torch.no_grad():
        for parameter in scale_parameters(model):
            parameter.fill_(1.0)
    average.update(model)
    steps = {float(p.flatten()[0]) for name, p in average.model.named_parameters() if "log_ratio" in name}
    assert len(steps) == 1, "a shared scale moves as far as any other"


def test_equal_scales_alone_tie_nothing() -> None:
    model = calibrated_model(float_model())
    one_tensor = set(map(frozenset, readers(model).values()))
    scale = symmetric_scale(1.0)
    for layer in quantized_layers(model).values():
        layer.input_quantizer.set_scale(scale, CPU)
    learn_scales(model)
    assert sharing(model) == one_tensor


@settings(max_examples=8, deadline=None)
@given(st.data())
def test_declared_groups_go_on_sharing_their_scale(data: st.DataObject) -> None:
    model = calibrated_model(float_model())
    tensors = sorted(map(sorted, readers(model).values()))
    count, numbers = 2 * data.draw(st.integers(0, 3)), st.sampled_from(range(len(tensors)))
    picked = data.draw(st.lists(numbers, min_size=count, max_size=count, unique=True))
    pairs = list(zip(picked[::2], picked[1::2], strict=True))
    for one, other in pairs:
        scale = quantized_layers(model)[tensors[one][0]].input_quantizer.get_scale()
        for name in tensors[other]:
            quantized_layers(model)[name].input_quantizer.set_scale(scale, CPU)
    learn_scales(model, [[LayerId("gone.since"), tensors[one][0], tensors[other][-1]] for one, other in pairs])
    wanted = {frozenset(names) for number, names in enumerate(tensors) if number not in picked}
    wanted |= {frozenset([*tensors[one], *tensors[other]]) for one, other in pairs}
    assert sharing(model) == wanted


def test_what_was_declared_travels_with_the_checkpoint(tmp_path: Path) -> None:
    teacher = float_model()
    one, other = list(quantized_layers(calibrated_model(teacher)))[2:4]
    config = PtqConfig(share_scales="largest", calibration=CalibrationConfig(method="max"))
    outcome = quantize(teacher, [images(2)], config, groups=[(one, other)])
    save_quantized(tmp_path / "model.safetensors", outcome.model, config, groups=outcome.groups)
    read = load_weights(tmp_path / "model.safetensors")
    assert read.groups == ((one, other),)
    learn_scales(read.model, read.groups)
    assert any({one, other} <= group for group in sharing(read.model))
    plain = load_weights(tmp_path / "model.safetensors").model
    learn_scales(plain)
    assert not any({one, other} <= group for group in sharing(plain)), "without a declaration they are not tied"


def test_the_scales_of_a_split_weight_stay() -> None:
    model = calibrated_model(float_model())
    layer = next(iter(quantized_layers(model).values()))
    scale = layer.weight_quantizer.get_scale()
    assert scale is not None
    set_fine_scale(layer, replace(scale, scale=scale.scale / np.float32(255)))
    x = images(2)
    before = model(x)
    learn_scales(model)
    assert type(layer.weight_quantizer) is Quantizer
    assert torch.equal(model(x), before)


def test_scales_per_input_channel_are_learned_one_by_one() -> None:
    plain = Quantizer("x")
    plain.set_scale(symmetric_scale(np.array([1.0, 4.0], np.float32), axis=1), CPU)
    quantizer = LearnedQuantizer(plain, batched=True)
    x = torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(0)) * 2
    quantizer(x).sum().backward()
    assert plain.scale is not None
    step = plain.scale.view(1, 2, 1, 1)
    expected = by_equation(x, step, -128, 127).sum((0, 2, 3)) / (25 * 127) ** 0.5 / plain.scale
    assert quantizer.log_ratio.grad is not None
    torch.testing.assert_close(quantizer.log_ratio.grad, expected, rtol=1e-4, atol=1e-5)


def test_without_a_scale_there_is_nothing_to_start_from() -> None:
    with pytest.raises(QuantizationError, match="no scale to start from"):
        LearnedQuantizer(Quantizer("the input of neck.conv"), batched=True)
