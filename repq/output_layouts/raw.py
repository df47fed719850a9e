"""Layouts of raw values, which `repq.box_codings` makes boxes of."""

from __future__ import annotations

import math
from functools import partial

from repq.layout import OutputLayout
from repq.output_layouts.seen import (
    Array,
    Fit,
    NamedLayout,
    Outputs,
    are_probabilities,
    fits_classes,
    in_unit_range,
    only,
)

_BINS = 8
"""Of a side of a box in NanoDet, whose distances are up to 7 strides."""

_ANCHORS = {
    "yolov5-raw": ((10, 13, 16, 30, 33, 23), (30, 61, 62, 45, 59, 119), (116, 90, 156, 198, 373, 326)),
    "yolov7-raw": ((12, 16, 19, 36, 40, 28), (36, 75, 76, 55, 72, 146), (142, 110, 192, 243, 459, 401)),
}
"""Widths and heights in pixels that their authors' models for images of 640 pixels have at strides 8, 16, 32."""


def _stride(outputs: Outputs, height: int, width: int) -> int:
    """Input pixels per cell of a map; 0: there is no such number."""
    down, across = (-(-size // cells) for size, cells in zip(outputs.imgsz, (height, width), strict=True))
    fits = (height, width) == tuple(-(-size // down) for size in outputs.imgsz)
    return down if down == across and down > 1 and fits else 0


def _fastestdet(outputs: Outputs) -> Fit | None:
    """Objectness, box and a softmax of classes; no other map has shares that sum to 1."""
    first, *further = outputs.arrays.values()
    if further or first.ndim != 4 or not fits_classes(outputs, first.shape[1], beside=5):
        return None
    stride = _stride(outputs, *first.shape[2:])
    objectness, classes = first[0, 0], first[0, 5:]
    shares = are_probabilities(outputs, objectness) and are_probabilities(outputs, classes)
    if not stride or not shares or (not outputs.told and abs(classes.sum(0) - 1).max() > 1e-3):
        return None
    return OutputLayout(grid=(stride,), coding="tanh", maps=True), first.shape[1] - 5


def _nanodet(outputs: Outputs) -> Fit | None:
    """Class scores, and bins that are no scores; its four levels begin at the corners of cells, three in the middle."""
    rows = only(outputs)
    if rows is None:
        return None
    strides, classes = outputs.levels(len(rows), anchors=(1,)), rows.shape[1] - 4 * _BINS
    if not strides or classes < 1 or outputs.classes not in (None, classes):
        return None
    scores, bins = rows[:, :classes], rows[:, classes:]
    if not are_probabilities(outputs, scores) or (not outputs.told and in_unit_range(bins)):
        return None
    coding = "distances" if len(strides) == 4 else "distances-from-centre"
    return OutputLayout("corners", objectness=None, scores=4, grid=strides, coding=coding, bins=_BINS), classes


def _anchored(outputs: Outputs, name: str) -> Fit | None:
    """A map of each level (1, anchors, h, w, columns) or (1, anchors columns, h, w), before the sigmoid."""
    maps: list[Array] = OutputLayout.by_level(list(outputs.arrays.values()))
    if {array.ndim for array in maps} not in ({4}, {5}) or all(in_unit_range(array) for array in maps):
        return None
    flat = maps[0].ndim == 4
    anchors = _anchors_of(outputs, name, len(maps))
    count = len(anchors[0]) // 2 if anchors else 0
    widths = {array.shape[1] / count if flat else array.shape[4] for array in maps} if count else set()
    strides = tuple(_stride(outputs, *(array.shape[2:4])) for array in maps)
    if len(widths) != 1 or not all(strides) or len(set(strides)) < len(strides):
        return None
    width = widths.pop()
    sure = outputs.told or not flat or outputs.classes is not None
    if not sure or width != int(width) or not fits_classes(outputs, int(width), beside=5):
        return None
    if not flat and any(array.shape[1] != count for array in maps):
        return None
    return OutputLayout(grid=strides, coding="anchors", anchors=anchors, maps=True), int(width) - 5


def _anchors_of(outputs: Outputs, name: str, levels: int) -> tuple[tuple[float, ...], ...]:
    """The anchors of each level; none: they are not known for so many."""
    if outputs.anchors is None:
        return _ANCHORS[name] if levels == len(_ANCHORS[name]) else ()
    each = len(outputs.anchors) // levels
    if each < 2 or each % 2 or each * levels != len(outputs.anchors):
        return ()
    return tuple(outputs.anchors[start : start + each] for start in range(0, math.prod((each, levels)), each))


LAYOUTS = [
    NamedLayout("fastestdet", "a map (5 + classes, h, w), classes by softmax: FastestDet", _fastestdet),
    NamedLayout("nanodet", "(N, classes + 4 * 8), distances as distributions: NanoDet, NanoDet-Plus", _nanodet),
    *(NamedLayout(name, f"maps of 3 anchors a cell before the sigmoid: {title}", partial(_anchored, name=name))
      for name, title in (("yolov5-raw", "YOLOv5"), ("yolov7-raw", "YOLOv7"))),
]  # fmt: skip
