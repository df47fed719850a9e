"""Non-maximum suppression against a plain definition of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repq.errors import DataError
from repq.evaluate import postprocess
from repq.recipe import EvalConfig


def iou(a: np.ndarray, b: np.ndarray) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def naive(rows: np.ndarray, config: EvalConfig) -> list[tuple[int, int]]:
    """Rows and classes that survive, by the definition, one pair at a time; earlier rows win ties."""
    scores = rows[:, 5:] * rows[:, 4:5]
    pairs = [
        (row, int(class_id))
        for row in range(len(rows))
        for class_id in (range(scores.shape[1]) if config.multi_label else [scores[row].argmax()])
        if scores[row, class_id] > config.confidence
    ]
    pairs.sort(key=lambda pair: -scores[pair])
    boxes = np.column_stack([rows[:, :2] - rows[:, 2:4] / 2, rows[:, :2] + rows[:, 2:4] / 2])
    boxes = boxes.astype(np.float32).astype(np.float64)
    kept: list[tuple[int, int]] = []
    for row, class_id in pairs:
        if all(other != class_id or iou(boxes[row], boxes[better]) <= config.iou for better, other in kept):
            kept.append((row, class_id))
    return kept[: config.max_detections]


@given(
    seed=st.integers(0, 10_000),
    count=st.integers(0, 60),
    classes=st.integers(1, 4),
    scale=st.sampled_from([1e-2, 1.0, 1e3]),
    offset=st.sampled_from([-1e3, 0.0, 1e4]),
    levels=st.sampled_from([3, 1000]),
    threshold=st.sampled_from([0.1, 0.45, 0.65, 1.0]),
    limit=st.sampled_from([1, 5, 300]),
    multi_label=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_it_equals_the_definition(
    seed: int,
    count: int,
    classes: int,
    scale: float,
    offset: float,
    levels: int,
    threshold: float,
    limit: int,
    multi_label: bool,
) -> None:
    """Also with many equal scores (few levels), tiny and huge boxes, and boxes far from the origin."""
    rng = np.random.default_rng(seed)
    centre = rng.uniform(0, 60, (count, 2)) * scale + offset
    size = rng.uniform(5, 60, (count, 2)) * scale
    scores = rng.integers(0, levels, (count, classes)) / levels
    rows = np.concatenate([centre, size, np.ones((count, 1)), scores], axis=1).astype(np.float32)
    config = EvalConfig(iou=threshold, confidence=0.2, max_detections=limit, multi_label=multi_label)
    (found,) = postprocess(rows[None], config)
    expected = naive(rows, config)
    assert found.shape == (len(expected), 6)
    assert found.dtype == np.float32
    assert found[:, 5].tolist() == [class_id for _, class_id in expected]
    for box, (row, class_id) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(box[:2], rows[row, :2] - rows[row, 2:4] / 2)
        np.testing.assert_array_equal(box[2:4], rows[row, :2] + rows[row, 2:4] / 2)
        assert box[4] == rows[row, 5 + class_id]


def test_images_of_a_batch_are_apart() -> None:
    rows = np.random.default_rng(0).uniform(0, 1, (3, 50, 8)).astype(np.float32)
    together = postprocess(rows, EvalConfig())
    for index in range(3):
        np.testing.assert_array_equal(together[index], postprocess(rows[index : index + 1], EvalConfig())[0])


def test_objectness_scales_the_scores() -> None:
    rows = np.array([[[5, 5, 2, 2, 0.5, 0.8]]], np.float32)
    assert postprocess(rows, EvalConfig())[0][0, 4] == np.float32(0.4)
    assert not len(postprocess(rows, EvalConfig(confidence=0.5))[0])


@pytest.mark.parametrize("shape", [(8,), (8, 4096), (1, 3, 8, 8)])
def test_what_is_no_list_of_detections_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="no detections"):
        postprocess(np.zeros(shape, np.float32), EvalConfig())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_yield_nothing(bad: float) -> None:
    rows = np.tile(np.array([20, 20, 8, 8, 1, 0.9], np.float32), (1, 6, 1))
    rows[0, :, 0] += np.arange(6) * 20
    for column in range(5):
        rows[0, column, column] = bad
    with np.errstate(invalid="ignore"):
        assert postprocess(rows, EvalConfig())[0][:, 0].tolist() == [116]


@pytest.mark.parametrize("column", [2, 3])
@pytest.mark.parametrize("size", [0, -8])
def test_boxes_without_area_yield_nothing(column: int, size: float) -> None:
    rows = np.tile(np.array([20, 20, 8, 8, 1, 0.9], np.float32), (1, 2, 1))
    rows[0, 0, column] = size
    assert len(postprocess(rows, EvalConfig())[0]) == 1


def test_no_rows_and_no_candidates() -> None:
    for rows in (np.zeros((2, 0, 8), np.float32), np.zeros((2, 9, 8), np.float32)):
        assert [boxes.shape for boxes in postprocess(rows, EvalConfig())] == [(0, 6), (0, 6)]
