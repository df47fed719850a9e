"""Factors of classes from their frequencies: as computed by hand, and in the training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from small_training import QUICK, SIZE, same_weights, tiny_model

from repq.data import DetectionDataset, ImageRecord
from repq.recipe import TrainConfig
from repq.train import train
from repq.train.balance import inverse_weights, median_weights, object_counts, with_class_weights

counts_of_classes = st.lists(st.integers(0, 10_000), min_size=1, max_size=12).map(np.array)


def drawn(counts: tuple[int, ...]) -> DetectionDataset:
    """One object an image."""
    rows = [
        np.array([[index, 0.5, 0.5, 0.1, 0.1]], np.float32) for index, count in enumerate(counts) for _ in range(count)
    ]
    crowd, area = np.zeros((0, 5), np.float32), np.ones(1, np.float32)
    records = tuple(ImageRecord(f"{n}.jpg", Path(f"{n}.jpg"), 10, 10, row, area, crowd) for n, row in enumerate(rows))
    return DetectionDataset(Path(), "train", tuple(f"name{index}" for index in range(len(counts))), records)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"class_frequency": "median"}, (0.25, 1.0, 10.0, 1.0)),  # 40 / 160, 40 / 40, 40 / 2 = 20 at most 10
        ({"class_frequency": "median", "class_weights_limit": 3.0}, (1 / 3, 1.0, 3.0, 1.0)),
        # 1 / 160, 1 / 40, 1 / 2 times 202 objects over 3 classes
        ({"class_frequency": "inverse", "class_weights_power": 1.0, "class_weights_limit": 100.0},
         (202 / 480, 202 / 120, 202 / 6, 1.0)),
        ({"class_frequency": "inverse", "class_weights_power": 0.0}, (1.0, 1.0, 1.0, 1.0)),
        ({}, ()),
    ],
)  # fmt: skip
def test_factors_are_those_computed_by_hand(settings: dict[str, object], expected: tuple[float, ...]) -> None:
    found = with_class_weights(TrainConfig(**settings), drawn((160, 40, 2, 0)))
    assert found.class_weights == pytest.approx(expected)


def test_objects_are_counted_without_crowds() -> None:
    plain = drawn((2, 1, 0))
    crowded = replace(plain, records=tuple(replace(record, crowds=record.labels) for record in plain.records))
    assert object_counts(crowded).tolist() == [2, 1, 0]


@given(counts_of_classes, st.floats(0, 2))
def test_rarer_classes_never_count_less(counts: np.ndarray, power: float) -> None:
    there = counts > 0
    for weights in (median_weights(counts), inverse_weights(counts, power)):
        assert (weights > 0).all()
        assert (weights[~there] == 1).all()
        order = np.argsort(counts[there])
        assert (np.diff(weights[there][order]) <= 1e-9).all()
    if there.any():  # inverse weights leave the sum over objects as it is
        assert (inverse_weights(counts, power) * counts).sum() == pytest.approx(counts.sum())


def test_a_training_has_the_factors_of_its_own_labels(data) -> None:
    train_set, _ = data
    config = QUICK.model_copy(update={"epochs": 1, "class_frequency": "median", "eval_interval": 1})
    found = train(tiny_model(), *data, SIZE, config)
    factors = with_class_weights(config, train_set).class_weights
    assert found.report.class_weights == factors
    assert set(factors) != {1.0}
    by_hand = config.model_copy(update={"class_frequency": "ignored", "class_weights": factors})
    assert same_weights(found, train(tiny_model(), *data, SIZE, by_hand))


def test_factors_come_from_one_place() -> None:
    with pytest.raises(ValidationError, match="only one of the two"):
        TrainConfig(class_weights=(1.0, 2.0), class_frequency="median")
