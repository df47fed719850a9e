"""What outputs mean is seen whatever the weights are: also of boxes that are large, tiny, or in another order."""

from __future__ import annotations

import json
import math
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from repq.box_codings import CODINGS
from repq.data import letterbox_transform
from repq.data.loader import Batch
from repq.errors import RepqError
from repq.evaluate import boxes_in_images
from repq.layout import OutputLayout, cells_of
from repq.output_layouts import Outputs, form_of, recognize
from repq.recipe import EvalConfig, GraphConfig

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


SIZES = st.tuples(st.integers(64, 200), st.integers(64, 200))


@given(SIZES, st.sampled_from([(8, 16, 32), (8, 16, 32, 64), (16, 32)]), st.sampled_from([1, 2, 3, 6, 9]))
def test_rows_of_all_cells_are_suppressed(imgsz: tuple[int, int], levels: tuple[int, ...], anchors: int) -> None:
    """Also where a side is no multiple of a stride, which gives a cell more, and with many anchors."""
    cells, strides = cells_of(levels, imgsz)
    assert len(cells) == sum(-(-imgsz[0] // stride) * -(-imgsz[1] // stride) for stride in levels)
    middle, half = (cells + 0.5) * strides, np.random.default_rng(0).uniform(0.2, 1.5, (len(cells), 2)) * strides
    rows = np.concatenate((middle - half, middle + half), 1).repeat(anchors, 0)
    layout, classes = recognize(Outputs({"a": rows[None], "b": scores(len(rows), 0)[None]}, imgsz))
    assert (layout.box_form, layout.one_per_object, classes) == ("corners", False, CLASSES)


@given(st.sampled_from([10, 50, 100, 300, 900]), st.integers(1, 20))
def test_rows_of_queries_are_not(count: int, blocks: int) -> None:
    rng = np.random.default_rng(0)
    arrays = {"logits": rng.normal(-4, 1, (1, count, 7)), "boxes": rng.uniform(0, 1, (1, count, 4))}
    layout, _ = recognize(Outputs(arrays, (640 + 32 * blocks, 640)))
    assert layout.one_per_object and layout.box_form == "centre"


@given(
    st.permutations(["a", "b"]), st.integers(1, 6), st.sampled_from(["first", "last"]), st.booleans(), st.booleans(),
    st.integers(0, 99),
)  # fmt: skip
def test_a_softmax_has_a_class_of_no_object(
    names: list[str], classes: int, which: str, logits: bool, named: bool, seed: int
) -> None:
    """SSD: normalized corners, also outside of the image, any number of priors, and a background that comes first."""
    rng = np.random.default_rng(seed)
    middle, half = rng.uniform(0, 1, (2268, 2)), rng.uniform(0.02, 0.3, (2268, 2))
    values = rng.normal(0, 1, (2268, classes + 1))
    values[:, 0 if which == "first" else -1] += 4
    powers = np.exp(values)
    shares = powers / powers.sum(1, keepdims=True)
    arrays = {names[0]: np.concatenate((middle - half, middle + half), 1)[None],
              names[1]: (values if logits else shares)[None]}  # fmt: skip
    shown = {name: arrays[name] for name in ("a", "b")}
    layout, found = recognize(Outputs(shown, (300, 300), classes if named else None))
    boxes_at, scores_at = (list(shown).index(name) for name in names)
    assert (layout.apart, found, layout.no_object) == ((boxes_at, scores_at), classes, which)
    assert (layout.box_form, layout.normalized, layout.one_per_object) == ("corners", True, False)
    kept = shares[:, 1:] if which == "first" else shares[:, :-1]
    for like in (np.asarray, torch.from_numpy):
        rows = layout.decode([like(array) for array in shown.values()], (300, 300))
        np.testing.assert_allclose(np.asarray(layout.scores_of(rows))[0], kept, rtol=1e-6)


@given(st.sampled_from([(64, 96), (100, 70), (160, 160)]), st.integers(1, 9), st.integers(0, 99))
def test_corners_have_no_objectness_behind_them(imgsz: tuple[int, int], classes: int, seed: int) -> None:
    """Rows of corners and scores, without class names: no score is taken for an objectness."""
    cells, strides = cells_of(STRIDES, imgsz)
    rng = np.random.default_rng(seed)
    middle, (near, far) = (cells + 0.5) * strides, rng.uniform(0.5, 1.0, (2, len(cells), 2)) * strides
    rows = np.concatenate((middle - near, middle + far, rng.uniform(0, 1, (len(cells), classes))), 1)[None]
    layout, found = recognize(Outputs({"output": rows}, imgsz))
    assert (layout.objectness, layout.box_form, layout.scores, found) == (None, "corners", 4, classes)


@given(st.integers(2, 9), st.integers(0, 99))
def test_a_named_layout_needs_no_class_names(classes: int, seed: int) -> None:
    """Centres and scores as rows might have an objectness: whoever says that they have none is believed."""
    _, rows = boxes(STRIDES, 1.0, seed)
    rows = np.concatenate((rows, np.random.default_rng(seed).uniform(0, 1, (len(rows), classes))), 1)[None]
    assert recognize(Outputs({"output": rows}, IMGSZ))[1] == classes - 1
    layout, found = recognize(Outputs({"output": rows}, IMGSZ), "yolov8")
    assert (layout.objectness, layout.box_form, found) == (None, "centre", classes)


@given(st.sampled_from([20, 80, 365]), st.integers(0, 99))
def test_rows_as_wide_as_those_of_public_data_have_its_classes(classes: int, seed: int) -> None:
    """Centres and 80 scores, without class names: nobody has 79 classes and an objectness."""
    imgsz = (160, 160)
    cells, strides = cells_of(STRIDES, imgsz)
    rng = np.random.default_rng(seed)
    for beside, objectness in ((4, None), (5, 4)):
        sizes = rng.uniform(0.5, 3, (len(cells), 2)) * strides
        behind = rng.uniform(0, 1, (len(cells), beside - 4 + classes))
        rows = np.concatenate(((cells + 0.5) * strides, sizes, behind), 1)[None]
        if rows.shape[2] >= rows.shape[1]:
            continue
        layout, found = recognize(Outputs({"output": rows}, imgsz))
        assert (found, layout.objectness, layout.columns_first) == (classes, objectness, False)
        assert recognize(Outputs({"output": rows[0]}, imgsz))[1] == classes


@pytest.mark.parametrize(("anchors", "constant", "doubt"), [(1, False, True), (1, True, False), (3, False, False)])
def test_what_nothing_shows_is_said(anchors: int, constant: bool, doubt: bool) -> None:
    """A fifth column that may be a class: of one anchor, without class names, and not constant as YOLOv6's is."""
    _, rows = boxes(STRIDES, 1.0, 0)
    rows = rows.repeat(anchors, 0)
    scores_ = np.random.default_rng(0).uniform(0, 1, (len(rows), 4))
    scores_[:, 0] = 1 if constant else scores_[:, 0]
    outputs = Outputs({"output": np.concatenate((rows, scores_), 1)[None]}, IMGSZ)
    form = form_of(outputs, {})
    assert form.classes == 3 and any("--layout yolov8" in note for note in form.notes) is doubt
    assert not any("--layout" in note for note in form_of(outputs, {}, GraphConfig(layout="yolov5")).notes)
    assert not any("--layout" in note for note in form_of(outputs, {}, GraphConfig(classes=3)).notes)
    assert form_of(outputs, {}, GraphConfig(classes=4)).layout.objectness is None


@given(st.integers(2, 900), st.integers(1, 6), st.permutations(["a", "b"]), st.integers(0, 99))
def test_few_priors_of_ssd_are_told_from_queries(count: int, classes: int, names: list[str], seed: int) -> None:
    """Fewer rows than queries may be, names that say nothing, logits: only priors have their background first."""
    rng = np.random.default_rng(seed)
    middle, half = rng.uniform(0, 1, (count, 2)), rng.uniform(0.02, 0.3, (count, 2))
    logits = rng.normal(0, 1, (count, classes + 1))
    logits[:, 0] += 6
    arrays = {"a": np.concatenate((middle - half, middle + half), 1)[None], "b": logits[None]}
    layout, found = recognize(Outputs({name: arrays[name] for name in names}, (300, 300)))
    assert (layout.box_form, layout.one_per_object, layout.no_object, found) == ("corners", False, "first", classes)
    assert layout.activation == "softmax" and layout.apart == (names.index("a"), names.index("b"))


@given(st.lists(st.lists(st.integers(0, 9), max_size=5), max_size=4), st.sampled_from([None, "detect"]))
def test_outputs_of_any_shape_are_read_or_refused(shapes: list[list[int]], task: str | None) -> None:
    arrays = {f"o{number}": np.full(shape, 0.5, np.float32) for number, shape in enumerate(shapes)}
    try:
        layout, classes = recognize(Outputs(arrays, (64, 64)), task=task)
    except RepqError:
        return
    assert classes > 0 and layout is not None


number = st.integers(-2, 9)
layouts_of_files = st.fixed_dictionaries(
    {},
    optional={
        "box_form": st.sampled_from(["centre", "corners"]),
        "boxes": number,
        "objectness": st.none() | number,
        "scores": number,
        "unused": number,
        "columns_first": st.booleans(),
        "grid": st.lists(st.sampled_from([0, -8, 8, 16, 32, 64]), max_size=4),
        "coding": st.sampled_from([entry.name for entry in CODINGS]),
        "anchors": st.lists(st.lists(st.floats(-2, 50) | st.just(math.nan), max_size=6), max_size=3),
        "bins": number,
        "maps": st.booleans(),
        "rows_alone": st.sampled_from([-3, 0, 8, 84]),
        "apart": st.none() | st.tuples(number, number),
        "scores_first": st.booleans(),
        "activation": st.sampled_from(["none", "sigmoid", "softmax", "shares"]),
        "normalized": st.booleans(),
        "ranked": st.none() | number,
        "labelled": st.none() | st.tuples(number, number, number),
        "first_label": number,
        "counted": st.none() | number,
    },
)


@settings(max_examples=500, deadline=None)
@given(layouts_of_files)
def test_a_layout_from_a_file_is_refused_or_reads_outputs_or_refuses_them(values: dict[str, object]) -> None:
    try:
        layout = OutputLayout.from_json(json.dumps(values))
    except ValueError:
        return
    rng, size = np.random.default_rng(0), (64, 64)
    outputs = [rng.random((2, *shape), dtype=np.float32) for shape in ((84, 8), (84, 4), (84,))]
    batch = Batch(np.zeros((2, 3, *size), np.float32), (letterbox_transform(*size, size),) * 2, (0, 1))
    with suppress(RepqError):  # whatever else is raised would be a traceback
        boxes_in_images(layout.decode(outputs, size), batch, ("a", "b", "c"), EvalConfig(), layout.decoded)


@pytest.mark.parametrize(
    "values",
    [{"boxes": -1}, {"objectness": -1}, {"scores": 6}, {"grid": [0]}, {"grid": [-8]}, {"ranked": 0}, {"counted": -1},
     {"apart": [0, -1]}, {"rows_alone": -3}, {"grid": [8], "coding": "anchors", "anchors": [[math.nan, 1]]}],
)  # fmt: skip
def test_a_layout_that_cannot_be_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        OutputLayout.from_json(json.dumps(values))
