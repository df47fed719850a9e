"""Which parameter is in which group."""

from __future__ import annotations

import torch

from repq.model import build
from repq.recipe import TrainConfig
from repq.train.optimizer import Rates, build_optimizer, parameter_groups, set_rates
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
