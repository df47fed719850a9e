"""How weights change: the optimizer, its rates from step to step, updates of several batches, and their average."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from repq.model import Detector
from repq.model.weighted import is_layer
from repq.recipe import LoopConfig
from repq.reparam.repopt import RepScales, build_rep_optimizer

LEAST_UPDATES = 4000


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
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


def build_optimizer(
    model: Detector, config: LoopConfig, scales: RepScales | None = None, further: Sequence[dict[str, Any]] = ()
) -> torch.optim.Optimizer:
    """The optimizer of a training; with branch ``scales`` it is RepOptimizer's.

    Args:
        further: groups of parameters that are not the model's.

    Raises:
        CheckpointError: the scales do not fit the model.
    """
    groups = [*parameter_groups(model, config.weight_decay), *further]
    if scales is None:
        return optimizer_of(groups, config)
    return build_rep_optimizer(
        model, scales, groups, kind=config.optimizer, learning_rate=config.learning_rate, momentum=config.momentum
    )


def optimizer_of(groups: list[dict[str, Any]], config: LoopConfig) -> torch.optim.Optimizer:
    """A plain optimizer over groups of parameters.

    On a GPU AdamW is fused. SGD is not: where float16 overflows in the first step, fused SGD leaves its momentum as the
    memory was, and the weights become NaN (torch 2.11, seen).
    """
    rate, momentum = config.learning_rate, config.momentum
    if config.optimizer == "adamw":
        fused = all(parameter.is_cuda for group in groups for parameter in group["params"]) or None
        return torch.optim.AdamW(groups, lr=rate, betas=(momentum, 0.999), fused=fused)
    return torch.optim.SGD(groups, lr=rate, momentum=momentum, nesterov=momentum > 0)


def hold_zeros(model: nn.Module) -> None:
    """From now on the weights of layers that are zero get no gradient: no optimizer moves them."""
    for module in model.modules():
        if is_layer(module) and module.weight.requires_grad:
            module.weight.register_hook(partial(torch.mul, module.weight.detach() != 0))


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


@dataclass(frozen=True)
class Rates:
    learning_rate: float
    bias_learning_rate: float
    momentum: float


def rates_at(step: int, total_steps: int, config: LoopConfig) -> Rates:
    """Rates of step ``step`` of ``total_steps``, counted from 0.

    The cosine falls from ``learning_rate`` to ``learning_rate * final_learning_rate_factor``, and stays there for
    ``flat_epochs``. In the warm-up the rates go from their first values to those of the cosine, linearly (Loshchilov
    and Hutter 1608.03983, without restarts; Goyal et al. 1706.02677, section 2.2); or with the square of the step, and
    the cosine begins when that ends (YOLOX, 2107.08430, section 2.1).
    """
    floor, per_epoch = config.final_learning_rate_factor, total_steps / config.epochs
    warmup = warmup_steps(total_steps, config)
    quadratic = config.warmup_shape == "quadratic"
    begin, end = warmup if quadratic else 0, total_steps - round(config.flat_epochs * per_epoch)
    along = 0.0 if step < begin else 1.0 if step >= end else (step - begin) / (end - begin)
    rate = peak_rate(config) * (floor + (1 - floor) * (1 + math.cos(math.pi * along)) / 2)
    if step >= warmup:
        return Rates(rate, rate, config.momentum)
    share = (step / warmup) ** (2 if quadratic else 1)
    return Rates(
        learning_rate=share * rate,
        bias_learning_rate=_between(config.warmup_bias_learning_rate, rate, share),
        momentum=_between(config.warmup_momentum, config.momentum, share),
    )


def warmup_steps(total_steps: int, config: LoopConfig) -> int:
    """How many of the steps are the warm-up; where the training is shorter, more than there are."""
    if config.warmup_epochs is None:
        return config.warmup_steps
    return round(config.warmup_epochs * total_steps / config.epochs)


def peak_rate(config: LoopConfig) -> float:
    """The learning rate after the warm-up, for batches of ``config.batch`` images."""
    return config.learning_rate * (config.batch / config.rate_batch if config.rate_batch else 1.0)


def _between(start: float, end: float, share: float) -> float:
    return start + share * (end - start)


def batches_per_update(batch: int, nominal_batch: int | None, total_batches: int) -> int:
    """``nominal_batch / batch``, rounded, but never so many that the training has fewer than ``LEAST_UPDATES`` updates.

    A training of up to ``LEAST_UPDATES`` batches updates after every batch, whatever its nominal batch: a small data
    set gains more from many updates than from smooth gradients. (The official code's fixed 64 images leave 292 images
    at 60 epochs 300 updates, of which the warm-up takes all.)

    Args:
        batch: images per batch.
        nominal_batch: images per update; None for one batch.
        total_batches: of the whole training.
    """
    if nominal_batch is None:
        return 1
    return max(1, min(round(nominal_batch / batch), total_batches // LEAST_UPDATES))


def update_sizes(batches: int, per_update: int) -> list[int]:
    """Split an epoch's batches into updates of at most ``per_update`` batches, as even as possible."""
    updates = -(-batches // per_update)
    return [len(part) for part in np.array_split(np.arange(batches), updates)]


ModuleType = TypeVar("ModuleType", bound=nn.Module)


class MovingAverage(Generic[ModuleType]):
    """``average = d * average + (1 - d) * model`` over parameters and buffers, d ramping up to ``decay``.

    ``d = decay * (1 - exp(-updates / ramp_steps))``, so early averages forget the random start fast. Integer buffers
    are copied.
    """

    def __init__(self, model: ModuleType, decay: float, ramp_steps: int) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.ramp_steps, self.updates = decay, ramp_steps, 0
        self._pairs = _Pairs.of(model, self.model)

    @torch.no_grad()
    def update(self, model: ModuleType) -> None:
        """Move the average towards ``model``, whose tensors are to be the same objects in every call."""
        self.updates += 1
        step = 1 - self.decay * (1 - math.exp(-self.updates / self.ramp_steps))
        if self._pairs.model is not model:
            self._pairs = _Pairs.of(model, self.model)
        torch._foreach_lerp_(self._pairs.averages, self._pairs.values, step)
        if self._pairs.counts:
            torch._foreach_copy_(self._pairs.counts, self._pairs.counted)


@dataclass(frozen=True)
class _Pairs:
    """The tensors of an average and those of its model, in the same order, floats and integers apart."""

    model: nn.Module
    averages: list[Tensor]
    values: list[Tensor]
    counts: list[Tensor]
    counted: list[Tensor]

    @staticmethod
    def of(model: nn.Module, average: nn.Module) -> _Pairs:
        current, found = model.state_dict(), _Pairs(model, [], [], [], [])
        entries = average.state_dict(keep_vars=True)
        # A parameter that modules share has several names, and moves once.
        for name, own in {id(value): (name, value) for name, value in entries.items()}.values():
            floating = own.is_floating_point()
            (found.averages if floating else found.counts).append(own)
            (found.values if floating else found.counted).append(current[name])
        return found
