"""What an ONNX file of a detector takes and gives: the layouts that there are, and which of them its outputs have.

An output alone often fits several: (1, N, 85) may be decoded boxes or raw ones. What the graph gives for one image
tells them apart: boxes of cells lie near their cells, corners are in order, ranks fall.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from repq.errors import RepqError
from repq.layout import OutputLayout, cells_of
from repq.preprocessing import Preprocessing, preset
from repq.recipe import GraphConfig

Array = NDArray[Any]

_LEVELS = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32), (16, 32), (8, 16), (16,), (32,), (8,), (8, 16, 32, 64, 128))
"""Strides that detectors have."""

_MOST_ANCHORS, _MOST_QUERIES = 9, 1000

_SCORE_WORDS = ("score", "logit", "cls", "class", "conf", "prob")

_TASKS = {"segment": "segmentation", "classify": "classification", "pose": "poses", "obb": "rotated boxes"}


@dataclass(frozen=True, eq=False)
class Outputs:
    """What a graph gives for one image.

    Attributes:
        arrays: of one image each, by name.
        imgsz: height and width of the input.
        classes: how many there are, where it is known.
        told: the layout was named: what the shapes allow is taken, also where they allow something else.
    """

    arrays: Mapping[str, Array]
    imgsz: tuple[int, int]
    classes: int | None = None
    told: bool = False

    @property
    def listed(self) -> str:
        return ", ".join(f"{name} {tuple(array.shape)}" for name, array in self.arrays.items())

    def levels(self, count: int, anchors: tuple[int, ...] = (1, 3)) -> tuple[int, ...]:
        """The strides of the levels that have so many cells in all, finest first; none: there are no such levels."""
        height, width = self.imgsz
        for strides in _LEVELS:
            cells = sum(-(-height // stride) * -(-width // stride) for stride in strides)
            if any(cells * each == count for each in anchors):
                return strides
        return ()

    def is_dense(self, count: int) -> bool:
        """Whether so many rows are those of the cells of an image, and not a few for the objects in it."""
        anchored = self.levels(count, anchors=tuple(range(1, _MOST_ANCHORS + 1)))
        return count > _MOST_QUERIES or bool(self.levels(count)) or len(anchored) > 1

    def cells(self, count: int) -> list[tuple[Array, Array]]:
        """Centres in pixels (N, 2) and strides (N, 1) of the cells of so many rows, in each order of the levels."""
        strides = self.levels(count, anchors=(1,))
        both = [cells_of(order, self.imgsz) for order in dict.fromkeys((strides, strides[::-1])) if order]
        return [((cells + 0.5) * sizes, sizes) for cells, sizes in both]


Fit = tuple[OutputLayout, int]
"""A layout and the number of classes."""


@dataclass(frozen=True)
class NamedLayout:
    """One layout.

    Attributes:
        name: what ``--layout`` calls it.
        title: what the outputs are.
        fit: the layout of these outputs and the number of classes; None: they are something else.
    """

    name: str
    title: str
    fit: Callable[[Outputs], Fit | None]


@dataclass(frozen=True)
class Form:
    """What a graph takes and gives; ``notes`` say what was guessed."""

    layout: OutputLayout
    classes: int
    preprocessing: Preprocessing
    notes: tuple[str, ...] = ()


def form_of(outputs: Outputs, metadata: Mapping[str, str], config: GraphConfig = GraphConfig()) -> Form:
    """What a graph takes and gives: by the settings, by what repq wrote into the file, by what it shows.

    Raises:
        RepqError: it is not clear, or the settings do not fit the graph.
    """
    inside = [key for key in ("nms", "preprocess") if f"repq.{key}" in metadata]
    if inside:
        raise RepqError("the graph does the work of a service itself", found=", ".join(inside),
                        fix="start from the graph that was exported without it")  # fmt: skip
    if config.layout is None and "repq.layout" in metadata:
        with _undamaged():
            layout, classes = OutputLayout.from_json(metadata["repq.layout"]), int(metadata["repq.num_classes"])
    else:
        layout, classes = recognize(outputs, config.layout, metadata.get("task"))
    if config.preset is not None:
        return Form(layout, classes, preset(config.preset))
    if "repq.preprocessing" in metadata:
        with _undamaged():
            return Form(layout, classes, Preprocessing.from_json(metadata["repq.preprocessing"]))
    guessed = "ultralytics" if "ltralytics" in metadata.get("author", "") else "yolox" if layout.grid else "yolov6"
    note = f"nothing says how images become its input; taken: --preset {guessed} (`repq diagnose` tries the others)"
    return Form(layout, classes, preset(guessed), (note,))


@contextmanager
def _undamaged() -> Iterator[None]:
    try:
        yield
    except (LookupError, ValueError) as error:
        raise RepqError("the metadata of the ONNX model is damaged", found=repr(error),
                        fix="export the model again") from None  # fmt: skip


def class_names(metadata: Mapping[str, str]) -> tuple[str, ...] | None:
    """Class names in a file's metadata: a list, or a mapping of number to name, as JSON or as Python writes it."""
    text = metadata.get("repq.names", metadata.get("names", ""))
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(text)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, dict):
            found = [found.get(number, found.get(str(number))) for number in range(len(found))]
        if isinstance(found, (list, tuple)) and found and None not in found:
            return tuple(map(str, found))
    return None


def recognize(outputs: Outputs, name: str | None = None, task: str | None = None) -> Fit:
    """The layout of a graph's outputs and the number of classes.

    Args:
        name: the layout to take; it must fit.
        task: what the file says that it does, such as ``detect``.

    Raises:
        RepqError: none fits, or several do.
    """
    known = ", ".join(entry.name for entry in LAYOUTS)
    if name is not None and name not in {entry.name for entry in LAYOUTS}:
        raise RepqError(f"there is no layout named {name!r}", found=known, fix="use one of these names")
    if other := _other_task(outputs, task):
        raise RepqError("the graph is no detector", found=f"{other}: {outputs.listed}", fix="give one of boxes")
    outputs = replace(outputs, told=name is not None)
    fits = {entry.name: fit for entry in LAYOUTS if name in (None, entry.name) and (fit := entry.fit(outputs))}
    if len(fits) == 1:
        return next(iter(fits.values()))
    classes = "" if outputs.classes is None else f" and {outputs.classes} class names"
    if fits:
        raise RepqError("it is not clear what the graph's outputs mean", found=f"{outputs.listed}{classes}",
                        fix=f"say it: --layout {' or '.join(fits)}")  # fmt: skip
    without = replace(outputs, classes=None)
    if name is None and outputs.classes is not None:
        fits = {entry.name: fit for entry in LAYOUTS if entry.name != "end2end" and (fit := entry.fit(without))}
        if fits:
            seen = " or ".join(f"{layout} of {count} classes" for layout, (_, count) in fits.items())
            raise RepqError("the class names in the metadata contradict the graph's outputs",
                            found=f"{outputs.listed}, which would be {seen},{classes}",
                            fix="mend or remove the entry `names` of the file's metadata")  # fmt: skip
    maps = all(array.ndim > 3 for array in outputs.arrays.values())
    raise RepqError(
        "the graph's outputs are none of a known detector" if name is None else f"the outputs are not {name}",
        found=f"{outputs.listed}{classes}",
        fix="export it with its boxes decoded" if maps else f"known layouts: {known}",
    )  # fmt: skip


def _other_task(outputs: Outputs, task: str | None) -> str | None:
    arrays = list(outputs.arrays.values())
    if task in _TASKS:
        return f"{_TASKS[task]} (the file's metadata say task {task!r})"
    if not arrays or not all(array.size for array in arrays):
        return "an output without values"
    if not all(array.ndim for array in arrays):
        return "an output of a single number"
    if len(arrays) == 1 and (arrays[0].ndim == 2 or arrays[0].shape[2:] == (1, 1)):
        return "classification"
    if len(arrays) == 1 and (arrays[0].ndim == 4 or arrays[0].shape[0] == 1) and arrays[0].shape[-2:] == outputs.imgsz:
        return "segmentation"
    if any(array.ndim == 4 and array.shape[1] in (1, 32) for array in arrays) and any(a.ndim == 3 for a in arrays):
        return "segmentation"
    return None


# --- one output ------------------------------------------------------------------------------------------------------


def _only(outputs: Outputs) -> Array | None:
    """The one output (N, columns) or (columns, N); maps of anchors (1, A, h, w, columns) behind it are its raw form."""
    first, *further = outputs.arrays.values()
    only = first.ndim == 3 and min(first.shape[1:]) > 4 and all(array.ndim == 5 for array in further)
    return first[0] if only else None


def _with_objectness(outputs: Outputs) -> Array | None:
    """Rows of 5 + classes."""
    rows = _only(outputs)
    if rows is None or rows.shape[0] <= rows.shape[1] or not _fits_classes(outputs, rows.shape[1], beside=5):
        return None
    return None if _is_ranked(rows) else rows


def _fits_classes(outputs: Outputs, width: int, beside: int) -> bool:
    return width > beside if outputs.classes is None else width == beside + outputs.classes


def _decoded(outputs: Outputs, rows: Array) -> bool:
    """Whether boxes lie around their cells, in pixels, and are not relative to them."""
    strides = outputs.levels(len(rows), anchors=(1,))
    if not strides:
        return bool(np.abs(rows[:, :2]).max() > 16)
    cells, sizes = cells_of(strides, outputs.imgsz)
    from_cell = np.median(np.abs(rows[:, :2] / sizes - cells))
    return bool(from_cell < np.median(np.abs(rows[:, :2])))


def _yolov5(outputs: Outputs) -> Fit | None:
    rows = _with_objectness(outputs)
    if rows is None or not _decoded(outputs, rows):
        return None
    if not outputs.told and outputs.classes is None and _form_by_cells(outputs, rows) == "corners":
        return None  # this layout has centres
    return OutputLayout(), rows.shape[1] - 5


def _yolox_raw(outputs: Outputs) -> Fit | None:
    rows = _with_objectness(outputs)
    if rows is None or _decoded(outputs, rows):
        return None
    strides = outputs.levels(len(rows), anchors=(1,))
    return (OutputLayout(grid=strides), rows.shape[1] - 5) if strides else None


def _yolov8(outputs: Outputs) -> Fit | None:
    found = _only(outputs)
    if found is None:
        return None
    first = (found.shape[0] < found.shape[1] and bool(outputs.levels(found.shape[1]))) or (
        outputs.classes is not None and (found.shape[0] == 4 + outputs.classes)
    )
    rows = found.T if first else found
    if not _fits_classes(outputs, rows.shape[1], beside=4):
        return None
    corners = _decoded(outputs, rows) and _form_by_cells(outputs, rows) == "corners"
    if not (first or corners or outputs.told) and outputs.classes is None:
        return None  # as well a layout with objectness
    return _columns(outputs, rows, columns_first=bool(first)), rows.shape[1] - 4


def _columns(outputs: Outputs, rows: Array, columns_first: bool = False) -> OutputLayout:
    return OutputLayout(
        objectness=None, scores=4, columns_first=columns_first, box_form=_form(outputs, rows),
        normalized=_normalized(rows),
        one_per_object=not outputs.is_dense(len(rows)),
    )  # fmt: skip


def _form(outputs: Outputs, rows: Array) -> Any:
    return _form_by_cells(outputs, rows) or _form_by_order(rows)


def _form_by_cells(outputs: Outputs, rows: Array) -> Any:
    """Whether boxes lie around their cells by their first two numbers, or by the middle of both; None: neither."""
    scale = np.array(outputs.imgsz[::-1]) if _normalized(rows) else 1
    points = rows[:, :2] * scale, (rows[:, :2] + rows[:, 2:4]) / 2 * scale
    if orders := outputs.cells(len(rows)):
        centre, corners = (min(np.median(np.abs(p - cells) / sizes) for cells, sizes in orders) for p in points)
        if centre != corners:
            return "centre" if centre < corners else "corners"
    return None


def _form_by_order(rows: Array) -> Any:
    """Corners are in order; as centre and size, hardly a box would reach from the origin to beyond its centre."""
    ordered = (rows[:, 2] >= rows[:, 0]) & (rows[:, 3] >= rows[:, 1])
    return "corners" if ordered.mean() > 0.98 else "centre"


def _normalized(rows: Array) -> bool:
    return bool(np.quantile(np.abs(rows[:, :4]), 0.95) <= 2)


def _is_ranked(rows: Array) -> bool:
    """Whether scores fall and classes are whole."""
    if rows.shape[1] != 6:
        return False
    return bool((np.diff(rows[:, 4]) <= 1e-6).all() and (rows[:, 5] == np.rint(rows[:, 5])).all())


def _end2end(outputs: Outputs) -> Fit | None:
    rows = _only(outputs)
    if rows is None or not _is_ranked(rows):
        return None
    classes = outputs.classes or 0
    if not classes:
        raise RepqError("the number of classes is not known", found=outputs.listed,
                        fix="write the class names into the file, between onnx.load and onnx.save: "
                            "model.metadata_props.add(key='names', value=\"['cat', 'dog']\")")  # fmt: skip
    normalized = _normalized(rows)
    return OutputLayout(
        _form_by_order(rows) if normalized else "corners", objectness=None, scores=4, ranked=classes,
        one_per_object=True, normalized=normalized,
    ), classes  # fmt: skip


# --- boxes and scores apart ------------------------------------------------------------------------------------------


def _apart(outputs: Outputs) -> tuple[int, int, bool] | None:
    """Numbers of the outputs with boxes and scores, and whether scores are (classes, N)."""
    arrays = list(outputs.arrays.values())
    if len(arrays) != 2 or any(array.ndim != 3 for array in arrays):
        return None
    fits = [
        (boxes, scores, arrays[scores].shape[1] != arrays[boxes].shape[1])
        for boxes, scores in ((0, 1), (1, 0))
        if arrays[boxes].shape[2] == 4 and arrays[boxes].shape[1] in arrays[scores].shape[1:]
    ]
    return max(fits, key=lambda fit: _like_boxes(outputs, fit[0]) - _like_boxes(outputs, fit[1]), default=None)


def _like_boxes(outputs: Outputs, number: int) -> int:
    """How much an output of four columns is like boxes, by its name before its values.

    Boxes are in pixels, or parts of an image, or their corners are in order; shares of classes are none of these.
    """
    name, array = list(outputs.arrays.items())[number]
    named = ("box" in name.lower()) - any(word in name.lower() for word in _SCORE_WORDS)
    inside = array.min() >= 0 and array.max() <= 1
    in_order = array.shape[2] == 4 and _form_by_order(array[0]) == "corners"
    return 4 * named + 2 * bool(array.max() > 32) + bool(inside) + in_order - 3 * _are_shares(array)


def _are_shares(scores: Array) -> bool:
    """Whether each row is what a softmax gives."""
    return bool(scores.min() >= 0 and np.abs(scores.sum(-1) - 1).max() < 1e-3)


def _with_scores(outputs: Outputs, logits: bool) -> Fit | None:
    found = _apart(outputs)
    if found is None:
        return None
    arrays = list(outputs.arrays.values())
    boxes, scores = arrays[found[0]][0], arrays[found[1]][0]
    scores = scores.T if found[2] else scores
    if bool(scores.min() < 0 or scores.max() > 1 or "logit" in list(outputs.arrays)[found[1]].lower()) is not logits:
        return None
    layout, classes, activation = _columns(outputs, boxes), scores.shape[1], "sigmoid" if logits else "none"
    if none := _no_object(outputs, scores, logits):
        activation, classes = "softmax" if logits else "shares", classes - 1
        layout = replace(layout, one_per_object=layout.one_per_object and none == "last")
    if outputs.classes not in (None, classes):
        return None
    layout = replace(layout, apart=found[:2], scores_first=found[2], activation=activation, no_object=none or "last")  # type: ignore[arg-type]
    queries = logits and layout.normalized and layout.one_per_object
    return replace(layout, box_form="centre") if queries else layout, classes


def _no_object(outputs: Outputs, scores: Array, logits: bool) -> Literal["first", "last"] | None:
    """Which class is that of no object, which a softmax needs: the last of DETR, the first of SSD; None: there is none.

    In a softmax it is the likeliest nearly everywhere. Where the first of independent classes is that, such as persons,
    its logits are below 0 all the same.
    """
    classes = scores.shape[1]
    if classes < 2 or (outputs.classes is not None and outputs.classes != classes - 1):
        return None
    best = scores.argmax(1)
    first, last = np.mean(best == 0), np.mean(best == classes - 1)
    if outputs.classes is not None or (not logits and _are_shares(scores)):
        return "first" if first > last else "last"
    if logits and last > 0.5:
        return "last"
    background = logits and outputs.is_dense(len(scores)) and first > 0.5 and np.median(scores[:, 0]) > 0
    return "first" if background else None


LAYOUTS: list[NamedLayout] = [
    NamedLayout("yolov5", "(N, 5 + classes) with objectness, in pixels: YOLOv5, v6, v7, decoded YOLOX", _yolov5),
    NamedLayout("yolox-raw", "(N, 5 + classes) relative to cells: YOLOX as it is usually exported", _yolox_raw),
    NamedLayout("yolov8", "(4 + classes, N) or (N, 4 + classes): YOLOv8, 11, RT-DETR", _yolov8),
    NamedLayout("end2end", "(K, 6) box, score, class: YOLOv10, 26, RT-DETR", _end2end),
    NamedLayout("boxes-scores", "boxes (N, 4) and scores apart: PP-YOLOE, YOLO-NAS", lambda o: _with_scores(o, False)),
    NamedLayout("detr", "boxes (N, 4) and logits apart: DETR, RT-DETR", lambda o: _with_scores(o, True)),
]
