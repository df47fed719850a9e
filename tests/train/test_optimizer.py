"""Which parameter is in which group, its rates at chosen steps, and the average of the weights."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from repq.model import build
from repq.model.weighted import Matrix
from repq.recipe import TrainConfig
from repq.train.optimizer import (
    MovingAverage,
    Rates,
    build_optimizer,
    hold_zeros,
    parameter_groups,
    rates_at,
    set_rates,
)
from repq.train.state import optimizer_tensors, restore_optimizer
from repq.train.update import LAYOUT


def test_only_kernels_decay_and_fixed_values_are_left_out() -> None:
    model = build("yolov6n_v2", 3)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {group["name"]: group for group in parameter_groups(model, 5e-4)}
    assert [groups[name]["weight_decay"] for name in ("kernels", "biases", "others")] == [5e-4, 0.0, 0.0]
    members = {name: {names[id(parameter)] for parameter in group["params"]} for name, group in groups.items()}
    assert sum(map(len, members.values())) == sum(parameter.requires_grad for parameter in model.parameters())
    assert "backbone.stem.rbr_dense.conv.weight" in members["kernels"]
    assert "backbone.stem.rbr_dense.bn.weight" in members["others"]
    assert "backbone.stem.rbr_dense.bn.bias" in members["biases"]
    assert not any("proj" in name for group in members.values() for name in group)


def test_biases_have_a_rate_of_their_own() -> None:
    optimizer = build_optimizer(build("yolov6n_v2", 1), TrainConfig())
    set_rates(optimizer, Rates(0.01, 0.1, 0.85))
    assert {group["name"]: group["lr"] for group in optimizer.param_groups} == {
        "kernels": 0.01,
        "biases": 0.1,
        "others": 0.01,
    }
    assert {group["momentum"] for group in optimizer.param_groups} == {0.85}


def test_adamw_keeps_its_betas_and_has_no_rate_of_its_own_for_biases() -> None:
    optimizer = build_optimizer(build("yolov6n_v2", 1), TrainConfig(optimizer="adamw", learning_rate=0.001))
    set_rates(optimizer, Rates(0.0005, 0.1, 0.85))
    assert {group["lr"] for group in optimizer.param_groups} == {0.0005}
    assert {group["betas"] for group in optimizer.param_groups} == {(0.937, 0.999)}


def test_restored_momentum_has_the_layout_of_its_parameter() -> None:
    model = build("yolov6n_v2", 1).to(memory_format=LAYOUT)
    kernel = model.backbone.stem.rbr_dense.conv.weight
    assert not kernel.is_contiguous()
    kernel.grad = torch.randn_like(kernel)
    optimizer = build_optimizer(model, TrainConfig())
    optimizer.step()
    momentum = optimizer.state[kernel]["momentum_buffer"].clone()
    saved = {name: value.contiguous() for name, value in optimizer_tensors(optimizer).items()}
    restore_optimizer(optimizer, saved)
    restored = optimizer.state[kernel]["momentum_buffer"]
    assert restored.stride() == kernel.stride()
    assert torch.equal(restored, momentum)


# --- rates

CONFIG = TrainConfig(learning_rate=0.02, final_learning_rate_factor=0.1, momentum=0.9, warmup_steps=10)


def test_warm_up_goes_from_its_start_to_the_cosine() -> None:
    first = rates_at(0, 100, CONFIG)
    assert (first.learning_rate, first.bias_learning_rate, first.momentum) == (0.0, 0.1, 0.8)
    half = rates_at(5, 100, CONFIG)
    assert half.momentum == pytest.approx(0.85)
    assert half.learning_rate == pytest.approx(
        rates_at(5, 100, CONFIG.model_copy(update={"warmup_steps": 0})).learning_rate / 2
    )
    after = rates_at(10, 100, CONFIG)
    assert after.learning_rate == after.bias_learning_rate
    assert after.momentum == 0.9


def test_cosine_passes_the_middle_and_ends_at_the_floor() -> None:
    assert rates_at(50, 100, CONFIG).learning_rate == pytest.approx(0.02 * (1 + 0.1) / 2)
    assert rates_at(100, 100, CONFIG).learning_rate == pytest.approx(0.002)
    rates = [rates_at(step, 100, CONFIG).learning_rate for step in range(10, 101)]
    assert rates == sorted(rates, reverse=True)


def test_no_warm_up_starts_at_the_full_rate() -> None:
    rates = rates_at(0, 100, CONFIG.model_copy(update={"warmup_steps": 0}))
    assert (rates.learning_rate, rates.bias_learning_rate, rates.momentum) == (0.02, 0.02, 0.9)


# --- the average against the recurrence written out


def test_follows_the_recurrence_over_parameters_and_buffers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
    average = MovingAverage(model, decay=0.9, ramp_steps=4)
    expected = {name: value.double() for name, value in model.state_dict().items()}
    for update in range(1, 6):
        model.train()(torch.randn(4, 2, 3, 3))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.update(model)
        decay = 0.9 * (1 - math.exp(-update / 4))
        for name, value in model.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value.double()
    for name, value in average.model.state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(value.double(), expected[name], rtol=1e-5, atol=1e-6)  # float32 against float64
    assert average.model.state_dict()["1.num_batches_tracked"] == 5
    assert not average.model.training
    assert not any(parameter.requires_grad for parameter in average.model.parameters())


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(4, 6, 1), nn.ConvTranspose2d(4, 6, 2, 2), Matrix(4, 6), Matrix(4, 6, transposed=True, bias=False)],
    ids=["conv", "transposed conv", "matrix", "transposed matrix"],
)
def test_zeros_stay_in_every_kind_of_layer(layer: nn.Module, optimizer: type[torch.optim.Optimizer]) -> None:
    model = nn.Sequential(copy.deepcopy(layer))
    weight = model[0].weight
    weight.data[::2] = 0
    before = weight.detach().clone()
    hold_zeros(model)
    stepper = optimizer(model.parameters(), lr=0.1, weight_decay=0.01)
    for _ in range(3):
        stepper.zero_grad()
        (model(torch.rand(2, 4, 4, 4)) - 1).square().sum().backward()
        stepper.step()
    assert not weight[before == 0].any() and (weight != before).any()
