"""Rates at chosen steps, computed by hand."""

from __future__ import annotations

import pytest

from repq.recipe import TrainConfig
from repq.train.optimizer import rates_at

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
