"""Rare classes count more in the loss: a factor of every class, from how many objects of it there are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from repq.data import DetectionDataset
from repq.recipe import TrainConfig


def with_class_weights(config: TrainConfig, train_set: DetectionDataset) -> TrainConfig:
    """The settings with the factors that ``class_frequency`` asks for; the same settings where it asks for none."""
    if config.class_frequency == "ignored":
        return config
    counts, limit = object_counts(train_set), config.class_weights_limit
    by_median = config.class_frequency == "median"
    found = median_weights(counts) if by_median else inverse_weights(counts, config.class_weights_power)
    factors = tuple(map(float, np.clip(found, 1 / limit, limit)))
    return config.model_copy(update={"class_weights": factors, "class_frequency": "ignored"})


def object_counts(dataset: DetectionDataset) -> NDArray[np.int64]:
    """Objects of every class, crowd regions left out: (classes,)."""
    classes = [record.labels[:, 0].astype(np.int64) for record in dataset.records]
    return np.bincount(np.concatenate([np.zeros(0, np.int64), *classes]), minlength=dataset.num_classes)


def median_weights(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """The median of the counts over the count of each class (Eigen and Fergus, 1411.4734, section 6.3.2).

    Classes without objects take no part and get 1.
    """
    there = counts > 0
    if not there.any():
        return np.ones(len(counts))
    return np.where(there, np.median(counts[there]) / np.maximum(counts, 1), 1.0)


def inverse_weights(counts: NDArray[np.int64], power: float) -> NDArray[np.float64]:
    """``count ^ -power``, scaled so that the mean over all objects is 1; classes without objects get 1."""
    there = counts > 0
    raw = np.where(there, np.maximum(counts, 1).astype(np.float64) ** -power, 0.0)
    total = float((raw * counts).sum())
    return np.where(there, raw * counts.sum() / total, 1.0) if total else np.ones(len(counts))
