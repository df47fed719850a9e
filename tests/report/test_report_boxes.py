"""Drawing changes what it should, hides nothing, and says what one model lost against another."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repq.report.boxes import (
    LABEL_SHARE,
    Found,
    class_colour,
    compared,
    draw_boxes,
    draw_panels,
    encode_jpeg,
    match_boxes,
    side_by_side,
)


@pytest.fixture
def image() -> np.ndarray:
    return np.full((200, 300, 3), 90, np.uint8)


ROWS = np.array([[40, 50, 140, 150, 0.9, 0], [200, 20, 280, 90, 0.5, 1], [5, 5, 30, 30, 0.1, 2]], dtype=np.float32)
NAMES = ["cat", "a rather long name of a class", "naïve 猫"]


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


@given(st.integers(16, 900), st.integers(16, 900), st.integers(0, 60), st.integers(0, 9))
def test_labels_never_cover_the_picture(height: int, width: int, boxes: int, seed: int) -> None:
    """Whatever the image's size and however many boxes: beside the lines themselves most of it stays in sight."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, (width, height) * 2, (boxes, 4))
    rows = np.column_stack([corners[:, :2], corners[:, :2], rng.uniform(0, 1, boxes), rng.integers(0, 3, boxes)])
    image = np.full((height, width, 3), 90, np.uint8)  # boxes without a size: what is drawn beside a point is labels
    changed = (draw_boxes(image, rows, NAMES) != image).any(axis=2).mean()
    line = 1 + max(1, round(max(height, width) / 400))
    assert changed <= LABEL_SHARE + boxes * (2 * line) ** 2 / (height * width) + 0.05


def test_lines_scale_with_the_image() -> None:
    widths = []
    for side in (200, 800, 3200):
        canvas = np.zeros((side, side, 3), np.uint8)
        row = np.array([[side / 4, side / 4, 3 * side / 4, 3 * side / 4, np.nan, 9]])
        widths.append(
            np.count_nonzero(draw_boxes(canvas, row, [])[3 * side // 4 - side // 10 :, side // 2].any(axis=1))
        )
    assert widths[0] < widths[1] < widths[2]
    assert widths[2] >= 4 * widths[0]


def test_no_boxes_change_nothing(image: np.ndarray) -> None:
    assert (draw_boxes(image, np.zeros((0, 6), np.float32), []) == image).all()


def test_what_was_lost_and_what_is_new(image: np.ndarray) -> None:
    other = ROWS.copy()
    other[0, :4] += 4
    other[1, 5] = 2  # another class: that box was lost, and one is new
    before, after = compared(("FP32", ROWS), ("INT8", other))
    assert before.marked is not None and after.marked is not None
    assert before.marked.tolist() == after.marked.tolist() == [False, True, False]
    drawn = draw_panels("a.jpg", image, (before, after), NAMES)
    assert [(panel.title, panel.boxes, panel.marked, panel.mark) for panel in drawn.panels] == [
        ("FP32", 3, 1, "lost"), ("INT8", 3, 1, "new"),
    ]  # fmt: skip
    unmarked = draw_boxes(image, ROWS, NAMES)
    assert (draw_boxes(image, before, NAMES) != unmarked).any()
    both = side_by_side(image, (before, after), NAMES)
    assert both.shape[1] > 2 * image.shape[1] and both.shape[0] > image.shape[0]


def test_large_images_are_shrunk_with_their_boxes(image: np.ndarray) -> None:
    large = np.full((800, 1200, 3), 90, np.uint8)
    rows = ROWS[:1] * np.array([4, 4, 4, 4, 1, 1], np.float32)
    (shrunk,) = draw_panels("a.jpg", large, [Found("", rows)], NAMES, max_side=300).panels
    (direct,) = draw_panels("a.jpg", image, [Found("", ROWS[:1])], NAMES).panels
    assert shrunk.jpeg == direct.jpeg


def test_a_box_matches_once() -> None:
    twice = np.repeat(ROWS[:1], 2, axis=0)
    assert match_boxes(twice, ROWS[:1]).tolist() == [0, -1]
    assert match_boxes(ROWS, ROWS).tolist() == [0, 1, 2]
    assert match_boxes(ROWS, ROWS[:0]).tolist() == [-1, -1, -1]
    assert match_boxes(ROWS[:0], ROWS).tolist() == []


def test_neighbouring_classes_have_different_colours() -> None:
    colours = np.array([class_colour(index) for index in range(20)])
    assert np.abs(np.diff(colours, axis=0)).max(axis=1).min() > 60


def test_jpeg_keeps_the_shape(image: np.ndarray) -> None:
    decoded = cv2.imdecode(np.frombuffer(encode_jpeg(image), np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    assert decoded.shape == image.shape
