"""An exponential moving average of a model's weights."""

from __future__ import annotations

import copy
import math
from typing import Generic, TypeVar

import torch
from torch import nn

ModuleType = TypeVar("ModuleType", bound=nn.Module)


class MovingAverage(Generic[ModuleType]):
    """``average = d * average + (1 - d) * model`` over parameters and buffers, d ramping up to ``decay``.

    ``d = decay * (1 - exp(-updates / ramp_steps))``, so early averages forget the random start fast. Integer buffers
    are copied.
    """

    def __init__(self, model: ModuleType, decay: float, ramp_steps: int, updates: int = 0) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.ramp_steps, self.updates = decay, ramp_steps, updates

    @torch.no_grad()
    def update(self, model: ModuleType) -> None:
        """Move the average towards ``model``."""
        self.updates += 1
        step = 1 - self.decay * (1 - math.exp(-self.updates / self.ramp_steps))
        averages, values = [], []
        current = model.state_dict()
        entries = self.model.state_dict(keep_vars=True)
        # A parameter that modules share has several names, and moves once.
        for name, average in {id(value): (name, value) for name, value in entries.items()}.values():
            if average.is_floating_point():
                averages.append(average)
                values.append(current[name])
            else:
                average.copy_(current[name])
        torch._foreach_lerp_(averages, values, step)
