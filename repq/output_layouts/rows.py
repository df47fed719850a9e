"""Layouts with a row for each cell that is decoded, or nearly: box, perhaps an objectness, and class scores."""

from __future__ import annotations

import numpy as np

from repq.layout import OutputLayout, cells_of
from repq.output_layouts.seen import (
    Array,
    Fit,
    NamedLayout,
    Outputs,
    are_probabilities,
    columns_of,
    fits_classes,
    form_by_cells,
    is_ranked,
    only,
)

_PUBLIC = (20, 80, 365)
"""Classes of VOC, COCO and Objects365: where nothing says how many there are, rows that are as wide have these."""


def _of_public_classes(outputs: Outputs, width: int) -> bool:
    """Whether rows without an objectness would have as many classes as a public data set has."""
    return not outputs.told and outputs.classes is None and width - 4 in _PUBLIC


def may_lack_objectness(outputs: Outputs, rows: Array) -> bool:
    """Whether rows that were taken for such with an objectness may as well have a class there: nothing shows it.

    Not where cells have several anchors, as only detectors with an objectness have, nor where the column is constant.
    """
    unsaid = outputs.classes is None and rows.shape[1] - 5 not in _PUBLIC
    return unsaid and bool(outputs.levels(len(rows), anchors=(1,))) and np.ptp(rows[:, 4]) > 0


def _with_objectness(outputs: Outputs) -> Array | None:
    """Rows of 5 + classes."""
    rows = only(outputs)
    if rows is None or rows.shape[0] <= rows.shape[1] or not fits_classes(outputs, rows.shape[1], beside=5):
        return None
    if _of_public_classes(outputs, rows.shape[1]):
        return None
    return None if is_ranked(rows) or not are_probabilities(outputs, rows[:, 4:]) else rows


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
    if not outputs.told and outputs.classes is None and form_by_cells(outputs, rows) == "corners":
        return None  # this layout has centres
    return OutputLayout(), rows.shape[1] - 5


def _yolox_raw(outputs: Outputs) -> Fit | None:
    rows = _with_objectness(outputs)
    if rows is None or _decoded(outputs, rows):
        return None
    strides = outputs.levels(len(rows), anchors=(1,))
    return (OutputLayout(grid=strides), rows.shape[1] - 5) if strides else None


def _yolov8(outputs: Outputs) -> Fit | None:
    found = only(outputs)
    if found is None:
        return None
    first = (found.shape[0] < found.shape[1] and bool(outputs.levels(found.shape[1]))) or (
        outputs.classes is not None and (found.shape[0] == 4 + outputs.classes)
    )
    rows = found.T if first else found
    if not fits_classes(outputs, rows.shape[1], beside=4):
        return None
    if not are_probabilities(outputs, rows[:, 4:]):
        return None
    corners = _decoded(outputs, rows) and form_by_cells(outputs, rows) == "corners"
    sure = first or corners or outputs.told or _of_public_classes(outputs, rows.shape[1])
    if not sure and outputs.classes is None:
        return None  # as well a layout with objectness
    return columns_of(outputs, rows, columns_first=bool(first)), rows.shape[1] - 4


LAYOUTS = [
    NamedLayout("yolov5", "(N, 5 + classes) with objectness, in pixels: YOLOv5, v6, v7, decoded YOLOX", _yolov5),
    NamedLayout("yolox-raw", "(N, 5 + classes) relative to cells: YOLOX as it is usually exported", _yolox_raw),
    NamedLayout("yolov8", "(4 + classes, N) or (N, 4 + classes): YOLOv8, 11, RT-DETR", _yolov8),
]
