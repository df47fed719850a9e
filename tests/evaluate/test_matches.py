"""AP from kept matches, of all images and of resamples, against pycocotools on the same images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from repq.data import DetectionDataset, ImageRecord
from repq.errors import DataError
from repq.evaluate import Detections, Matcher, bootstrap_drop, coco_accuracy, resample_weights, resampled_accuracy
from repq.results import change_interval

CLASSES = 3


def dataset(images: int, seed: int = 0, objects: int = 4) -> DetectionDataset:
    rng = np.random.default_rng(seed)
    records = []
    for i in range(images):
        count = int(rng.integers(0, objects + 1))
        boxes = np.column_stack([rng.uniform(0.3, 0.7, (count, 2)), rng.uniform(0.1, 0.4, (count, 2))])
        labels = np.column_stack([rng.integers(0, CLASSES, count), boxes]).astype(np.float32)
        crowds = np.array([[0, 0.5, 0.5, 0.3, 0.3]], np.float32) if i % 3 == 0 else np.zeros((0, 5), np.float32)
        areas = (labels[:, 3] * labels[:, 4] * 100 * 80).astype(np.float32)
        records.append(ImageRecord(f"{i:03}.jpg", Path(f"{i:03}.jpg"), 100, 80, labels, areas, crowds))
    return DetectionDataset(Path(), "val", tuple("abc"), tuple(records))


def detections(data: DetectionDataset, noise: float, seed: int = 1, misses: float = 0.2) -> Detections:
    """Each object shifted by noise, some missed, and false positives; scores are rounded, so that some are equal."""
    rng = np.random.default_rng(seed)
    boxes = []
    for record in data.records:
        rows = []
        for label in record.labels[rng.random(len(record.labels)) > misses]:
            centre = label[1:3] * (100, 80) + rng.normal(0, noise, 2)
            half = label[3:5] * (50, 40)
            rows.append([*(centre - half), *(centre + half), rng.uniform(0.2, 1), label[0]])
        for _ in range(rng.integers(0, 4)):
            x, y = rng.uniform(0, 60, 2)
            rows.append([x, y, x + 20, y + 20, rng.uniform(0, 0.9), rng.integers(0, CLASSES)])
        found = np.array(rows, np.float32).reshape(-1, 6)
        found[:, 4] = np.round(found[:, 4], 1)
        boxes.append(found[np.argsort(-found[:, 4], kind="stable")])
    return Detections(tuple(record.name for record in data.records), tuple(boxes))


@pytest.mark.parametrize("seed", range(6))
def test_ap_is_that_of_pycocotools(seed: int) -> None:
    data = dataset(12, seed)
    found = detections(data, noise=3.0, seed=seed)
    assert Matcher(data).match(found).ap() == pytest.approx(coco_accuracy(found, data).ap, abs=1e-12)


def test_a_resample_is_the_data_set_with_its_images_repeated() -> None:
    data = dataset(10)
    found = detections(data, noise=3.0)
    matches = Matcher(data).match(found)
    weights = resample_weights(10, 8, seed=0)
    assert weights.shape == (8, 10) and (weights.sum(axis=1) == 10).all()
    for row, ap in zip(weights, matches.resampled_ap(weights), strict=True):
        draw = np.repeat(np.arange(10), row.astype(int))
        records = [replace(data.records[i], name=f"{place:03}") for place, i in enumerate(draw)]
        drawn = Detections(tuple(r.name for r in records), tuple(found.boxes[i] for i in draw))
        assert ap == pytest.approx(coco_accuracy(drawn, data.subset(records)).ap, abs=1e-12)


def test_without_objects_or_detections_ap_is_zero() -> None:
    data = dataset(4, objects=0)
    empty = Detections(tuple(r.name for r in data.records), (np.zeros((0, 6), np.float32),) * 4)
    assert Matcher(data).match(detections(data, noise=1.0)).ap() == 0
    assert Matcher(data).match(empty).ap() == 0
    full = dataset(4)
    assert Matcher(full).match(empty).ap() == 0
    with pytest.raises(DataError, match="other images"):
        Matcher(full).match(Detections(("x",), (np.zeros((0, 6), np.float32),)))


def test_the_interval_covers_the_difference_on_far_more_images() -> None:
    """Both models' true AP is that on 1500 images; 20 sets of 50 of them stand for what a user has.

    A 95 % interval covers 19 in 20; with 20 sets, fewer than 15 has a probability of 1e-5.
    """
    data = dataset(1500, seed=5)
    good, bad = detections(data, 2.0, seed=1), detections(data, 4.0, seed=1, misses=0.3)
    matcher = Matcher(data)
    truth = matcher.match(good).ap() - matcher.match(bad).ap()
    assert truth > 0.05
    covered, widths = 0, []
    for start in range(0, 1000, 50):
        part = data.subset(data.records[start : start + 50])
        scores = [
            Matcher(part).match(Detections(found.images[start : start + 50], found.boxes[start : start + 50]))
            for found in (good, bad)
        ]
        low, high = bootstrap_drop(*scores, resamples=400).interval()
        covered += low <= truth <= high
        widths.append(high - low)
    assert covered >= 15
    assert np.mean(widths) < 0.3


def test_a_model_against_itself_drops_nothing() -> None:
    data = dataset(10)
    matches = Matcher(data).match(detections(data, noise=3.0))
    outcome = bootstrap_drop(matches, matches, resamples=100)
    assert outcome.drop == 0 and outcome.interval() == (0, 0) and outcome.standard_error == 0


def test_accuracies_kept_apart_give_the_interval_of_the_paired_bootstrap() -> None:
    data = dataset(40)
    exact, noisy = (detections(data, noise=noise) for noise in (1.0, 4.0))
    before, after = (resampled_accuracy(found, data) for found in (exact, noisy))
    matcher = Matcher(data)
    drop = bootstrap_drop(matcher.match(exact), matcher.match(noisy), resamples=200, seed=0)
    samples = np.sort(-drop.samples)
    assert change_interval(before, after) == pytest.approx((samples[5], samples[-6]), abs=2e-5)  # five digits are kept
    assert change_interval(before, before) == (0, 0)
    assert change_interval(before, resampled_accuracy(detections(dataset(39), 1.0), dataset(39))) is None
    assert before.model_copy(update={"resampled": ()}) == coco_accuracy(exact, data)
