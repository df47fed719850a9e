"""SGD with Nesterov momentum or AdamW over three groups of parameters, plain or as RepOptimizer."""

from __future__ import annotations

from typing import Any

import torch

from repq.model import Detector
from repq.recipe import LoopConfig
from repq.reparam.repopt import RepScales, build_rep_optimizer
from repq.train.schedule import Rates


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Kernels decay; biases don't and have a learning rate of their own; the rest (batch norm, scales) don't decay."""
    kernels, biases, others = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.endswith("bias"):
            biases.append(parameter)
        elif parameter.ndim > 1:
            kernels.append(parameter)
        else:
            others.append(parameter)
    return [
        {"name": "kernels", "params": kernels, "weight_decay": weight_decay},
        {"name": "biases", "params": biases, "weight_decay": 0.0},
        {"name": "others", "params": others, "weight_decay": 0.0},
    ]


def build_optimizer(model: Detector, config: LoopConfig, scales: RepScales | None = None) -> torch.optim.Optimizer:
    """The optimizer of a training; with branch ``scales`` it is RepOptimizer's.

    Raises:
        CheckpointError: the scales do not fit the model.
    """
    groups = parameter_groups(model, config.weight_decay)
    if scales is None:
        return optimizer_of(groups, config)
    return build_rep_optimizer(
        model, scales, groups, kind=config.optimizer, learning_rate=config.learning_rate, momentum=config.momentum
    )


def optimizer_of(groups: list[dict[str, Any]], config: LoopConfig) -> torch.optim.Optimizer:
    """A plain optimizer over groups of parameters."""
    rate, momentum = config.learning_rate, config.momentum
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate, betas=(momentum, 0.999))
    return torch.optim.SGD(groups, lr=rate, momentum=momentum, nesterov=momentum > 0)


def set_rates(optimizer: torch.optim.Optimizer, rates: Rates) -> None:
    """Give each group its learning rate, times its ``rate_factor`` if it has one, and momentum for the next step.

    AdamW corrects its young moments by itself, so its betas stay, and its biases have the common learning rate.
    """
    for group in optimizer.param_groups:
        group["lr"] = rates.learning_rate * group.get("rate_factor", 1.0)
        if "momentum" in group:
            group["momentum"] = rates.momentum
            if group["name"] == "biases":
                group["lr"] = rates.bias_learning_rate
