"""What outputs mean is seen whatever the weights are: also of boxes that are large, tiny, or in another order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repq.layout import cells_of
from repq.output_layouts import Outputs, recognize

IMGSZ, STRIDES, CLASSES = (64, 96), (8, 16, 32), 5


def boxes(levels: tuple[int, ...], scale: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Corners around the cells of levels, some strides wide; centres and sizes of the same."""
    cells, strides = cells_of(levels, IMGSZ)
    rng = np.random.default_rng(seed)
    middle = (cells + 0.5) * strides
    near, far = (rng.uniform(0.5, 1.0, (len(cells), 2)) * scale * strides for _ in range(2))
    corners = np.concatenate((middle - near, middle + far), 1)
    return corners, np.concatenate(((corners[:, :2] + corners[:, 2:]) / 2, near + far), 1)


def scores(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 1, (count, CLASSES))


@given(st.sampled_from([STRIDES, STRIDES[::-1]]), st.floats(0.1, 12), st.booleans(), st.integers(0, 99))
def test_boxes_lie_around_their_cells(levels: tuple[int, ...], scale: float, normalized: bool, seed: int) -> None:
    size, scale = (np.array(IMGSZ[::-1] * 2), min(scale, 1.5)) if normalized else (np.ones(4), scale)
    for form, rows in zip(("corners", "centre"), boxes(levels, scale, seed), strict=True):
        rows, of_class = rows / size, scores(len(rows), seed)
        apart, classes = recognize(Outputs({"a": rows[None], "b": of_class[None]}, IMGSZ))
        joined, _ = recognize(Outputs({"a": np.concatenate((rows, of_class), 1).T[None]}, IMGSZ), "yolov8")
        assert (apart.box_form, joined.box_form, classes) == (form, form, CLASSES)
        assert (apart.apart, apart.scores_first) == ((0, 1), False)


@given(st.permutations(["logits", "pred_boxes"]), st.floats(0.01, 9), st.integers(0, 99))
def test_three_classes_and_none_are_not_taken_for_boxes(names: list[str], spread: float, seed: int) -> None:
    """Logits of four columns: the names tell them from boxes, whatever their values are."""
    rng = np.random.default_rng(seed)
    arrays = {"logits": rng.normal(0.5, spread, (1, 12, 4)), "pred_boxes": rng.uniform(0, 1, (1, 12, 4))}
    layout, _ = recognize(Outputs({name: arrays[name] for name in names}, IMGSZ))
    assert layout.apart == (names.index("pred_boxes"), names.index("logits"))
    assert layout.box_form == "centre" and layout.normalized and layout.activation != "none"


@pytest.mark.parametrize(("normalized", "form"), [(True, "centre"), (False, "corners")])
def test_ranked_boxes_of_two_families(normalized: bool, form: str) -> None:
    """RT-DETR's are normalized centres and sizes; YOLOv10's and 26's are corners, even where they cross."""
    rng = np.random.default_rng(0)
    rows = np.concatenate((
        rng.uniform(0.2, 0.8, (30, 2)), rng.uniform(0.05, 0.4, (30, 2)), np.sort(rng.uniform(0, 1, (30, 1)), 0)[::-1],
        rng.integers(0, CLASSES, (30, 1)),
    ), 1)  # fmt: skip
    rows[:, :4] *= 1 if normalized else 64
    layout, classes = recognize(Outputs({"output0": rows[None]}, IMGSZ, CLASSES))
    assert (layout.ranked, layout.box_form, layout.normalized, classes) == (CLASSES, form, normalized, CLASSES)
