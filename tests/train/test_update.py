"""Gradients of several batches, and the rule for how many make an update."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_training import QUICK, SIZE, settled, tiny_model

from repq.data import ImageCache
from repq.train.loader import TrainBatch, training_batches
from repq.train.optimizer import LEAST_UPDATES, batches_per_update, update_sizes
from repq.train.update import Updater

CPU = torch.device("cpu")


def gradients(updater: Updater, batches: list[TrainBatch]) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    parts = updater.add_gradients(batches)
    return parts, [parameter.grad for parameter in updater.parameters if parameter.grad is not None]


def test_accumulated_gradients_are_those_of_the_joined_batch(data) -> None:
    cache = ImageCache(data[0].records, SIZE, 1 << 24)
    batches = list(training_batches(cache, SIZE, QUICK, seed=0, epoch=0))
    joined = TrainBatch(
        np.concatenate([batch.images for batch in batches]), tuple(rows for batch in batches for rows in batch.objects)
    )
    first_parts, first = gradients(Updater(settled(tiny_model()), QUICK, CPU), batches)
    second_parts, second = gradients(Updater(settled(tiny_model()), QUICK, CPU), [joined])
    assert list(first_parts)[-1] == "total"
    for name, value in first_parts.items():
        assert value.item() == pytest.approx(second_parts[name].item(), rel=1e-5)
    for own, other in zip(first, second, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-6)  # another order of float32 sums
    assert max(value.abs().max().item() for value in first) > 0.01


def test_small_trainings_keep_their_updates() -> None:
    assert batches_per_update(16, None, 10**6) == 1
    assert batches_per_update(16, 64, 10**6) == 4
    assert batches_per_update(100, 64, 10**6) == 1
    assert batches_per_update(16, 64, 1140) == 1
    for total in (100, 5000, 9000, 20000):
        per_update = batches_per_update(8, 64, total)
        assert total // per_update >= min(total, LEAST_UPDATES)


@pytest.mark.parametrize(("batches", "per_update"), [(1, 4), (7, 3), (8, 4), (10, 4), (5, 1)])
def test_an_epoch_is_split_evenly(batches: int, per_update: int) -> None:
    sizes = update_sizes(batches, per_update)
    assert sum(sizes) == batches
    assert max(sizes) <= per_update
    assert max(sizes) - min(sizes) <= 1
