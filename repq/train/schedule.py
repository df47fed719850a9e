"""Learning rate and momentum at each step: a linear warm-up into a cosine."""

from __future__ import annotations

import math
from dataclasses import dataclass

from repq.recipe import LoopConfig


@dataclass(frozen=True)
class Rates:
    learning_rate: float
    bias_learning_rate: float
    momentum: float


def rates_at(step: int, total_steps: int, config: LoopConfig) -> Rates:
    """Rates of step ``step`` of ``total_steps``, counted from 0.

    The cosine falls from ``learning_rate`` to ``learning_rate * final_learning_rate_factor``. In the first
    ``warmup_steps`` the rates go linearly from their warm-up values to those of the cosine (Loshchilov and Hutter
    1608.03983, without restarts; Goyal et al. 1706.02677, section 2.2).
    """
    floor = config.final_learning_rate_factor
    wave = (1 + math.cos(math.pi * min(step / total_steps, 1.0))) / 2
    rate = config.learning_rate * (floor + (1 - floor) * wave)
    if step >= config.warmup_steps:
        return Rates(rate, rate, config.momentum)
    share = step / config.warmup_steps
    return Rates(
        learning_rate=share * rate,
        bias_learning_rate=_between(config.warmup_bias_learning_rate, rate, share),
        momentum=_between(config.warmup_momentum, config.momentum, share),
    )


def _between(start: float, end: float, share: float) -> float:
    return start + share * (end - start)
