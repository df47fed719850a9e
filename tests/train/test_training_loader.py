"""Orders of an epoch: complete when balanced, fair to rare classes when asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from repq.data import ImageRecord
from repq.train.loader import epoch_order, image_weights


def record(*classes: int) -> ImageRecord:
    labels = np.array([[class_id, 0.5, 0.5, 0.2, 0.2] for class_id in classes], np.float32).reshape(-1, 5)
    return ImageRecord("a.jpg", Path("a.jpg"), 10, 10, labels)


RECORDS = [*[record(0)] * 80, *[record(0, 0, 1)] * 15, *[record(2)] * 1, *[record()] * 4]


def test_weights_follow_the_rarest_class_of_an_image() -> None:
    assert image_weights(RECORDS, 0).tolist() == [1.0] * 100
    weights = image_weights(RECORDS, 1)
    assert weights[[0, 80, 95, 96]] == pytest.approx([1, 95 / 15, 95, 1])
    assert image_weights(RECORDS, 0.5) == pytest.approx(np.sqrt(weights))
    assert image_weights([record(), record()], 1).tolist() == [1, 1]


def test_equal_weights_give_every_image_once() -> None:
    order = epoch_order(np.ones(17), seed=3, epoch=1)
    assert sorted(order) == list(range(17))
    assert order != epoch_order(np.ones(17), seed=3, epoch=2)
    assert order == epoch_order(np.ones(17), seed=3, epoch=1)


def test_images_come_as_often_as_their_weights_say() -> None:
    weights = image_weights(RECORDS, 0.5)
    expected = weights / weights.sum() * 100
    total = np.zeros(100)
    for epoch in range(200):
        counts = np.bincount(epoch_order(weights, 0, epoch), minlength=100)
        assert counts.sum() == 100
        assert (np.abs(counts - expected) < 1 + 1e-9).all()
        total += counts
    # each count is its floor plus a coin of known bias: 200 of them have a standard error below 0.5 / sqrt(200)
    assert total / 200 == pytest.approx(expected, abs=5 * 0.5 / np.sqrt(200))
