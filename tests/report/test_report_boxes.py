"""Drawing changes what it should and counts what both models found."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from repq.report import draw_boxes, draw_pair
from repq.report.boxes import class_colour, count_matches, encode_jpeg


@pytest.fixture
def image() -> np.ndarray:
    return np.full((200, 300, 3), 90, np.uint8)


ROWS = np.array([[40, 50, 140, 150, 0.9, 0], [200, 20, 280, 90, 0.5, 1], [5, 5, 30, 30, 0.1, 2]], dtype=np.float32)


def test_draws_on_a_copy_in_the_class_colour(image: np.ndarray) -> None:
    drawn = draw_boxes(image, ROWS[:1], ["cat"])
    assert (image == 90).all()
    assert np.abs(drawn[150, 60:120].astype(int) - class_colour(0)).max() <= 2
    assert (drawn[100, 90] == 90).all()


@pytest.mark.parametrize("corner", [(-20, -20, 50, 60), (280, 180, 340, 260), (0, 0, 300, 200), (10, 10, 10, 10)])
def test_boxes_over_the_edge_are_drawn(image: np.ndarray, corner: tuple[int, ...]) -> None:
    row = np.array([[*corner, 0.7, 3]], dtype=np.float32)
    drawn = draw_boxes(image, row, ["naïve 猫"])
    assert drawn.shape == image.shape
    assert (drawn != image).any()


def test_no_boxes_change_nothing(image: np.ndarray) -> None:
    assert (draw_boxes(image, np.zeros((0, 6), np.float32), []) == image).all()


def test_pair_leaves_out_unsure_boxes_and_counts(image: np.ndarray) -> None:
    moved = ROWS.copy()
    moved[0, :4] += 4
    moved[1, 5] = 2
    pair = draw_pair("a.jpg", image, ROWS, moved, ["cat", "dog", "cow"], confidence=0.3)
    assert (pair.float_boxes, pair.quantized_boxes, pair.matched) == (2, 2, 1)
    decoded = cv2.imdecode(np.frombuffer(pair.float_jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    assert decoded.shape == image.shape


def test_large_images_are_shrunk_with_their_boxes(image: np.ndarray) -> None:
    large = np.full((800, 1200, 3), 90, np.uint8)
    rows = ROWS[:1] * np.array([4, 4, 4, 4, 1, 1], np.float32)
    pair = draw_pair("a.jpg", large, rows, rows, ["cat"], max_side=300)
    small = draw_pair("a.jpg", image, ROWS[:1], ROWS[:1], ["cat"])
    shrunk, direct = (cv2.imdecode(np.frombuffer(p.float_jpeg, np.uint8), cv2.IMREAD_COLOR) for p in (pair, small))
    assert shrunk is not None
    assert direct is not None
    assert (shrunk == direct).all()


def test_a_box_matches_once() -> None:
    twice = np.repeat(ROWS[:1], 2, axis=0)
    assert count_matches(twice, ROWS[:1]) == 1
    assert count_matches(ROWS, ROWS) == len(ROWS)
    assert count_matches(ROWS, ROWS[:0]) == 0
    assert count_matches(ROWS[:0], ROWS) == 0


def test_neighbouring_classes_have_different_colours() -> None:
    colours = np.array([class_colour(index) for index in range(20)])
    assert np.abs(np.diff(colours, axis=0)).max(axis=1).min() > 60


def test_jpeg_keeps_the_shape(image: np.ndarray) -> None:
    decoded = cv2.imdecode(np.frombuffer(encode_jpeg(image), np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    assert decoded.shape == image.shape
