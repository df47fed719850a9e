"""Precision over recall, and which classes are taken for which: what a mean over classes and thresholds hides."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from repq.data import DetectionDataset, pixel_boxes
from repq.evaluate.coco_metrics import precision_of
from repq.evaluate.detections import Detections
from repq.results import Curves

CONFIDENCE = 0.25
IOU = 0.5


def detection_curves(detections: Detections, dataset: DetectionDataset) -> Curves:
    """Curves at an IoU of 0.5, over 101 recall points as in COCO, and the confusion of classes.

    For the confusion, detections with a score of 0.25 and more choose the object of any class that they overlap most,
    the surest first, each object once. One that chose none and lies in a crowd region of its class is not counted.

    Raises:
        DataError: the detections are of other images.
    """
    detections.demand_images_of(dataset)
    precision = precision_of(dataset.records, detections.boxes, dataset.num_classes)[0, :, :, 0]  # (recall, class)
    nothing = dataset.num_classes
    confusion = np.zeros((nothing + 1, nothing + 1), dtype=int)  # object, found as
    for record, rows in zip(dataset.records, detections.boxes, strict=True):
        objects, crowds = (pixel_boxes(rows, record.width, record.height) for rows in (record.labels, record.crowds))
        classes = record.labels[:, 0].astype(int)
        free = np.ones(len(objects), dtype=bool)
        for row in rows[np.argsort(-rows[:, 4], kind="stable")]:
            if row[4] < CONFIDENCE:
                break
            overlaps = np.where(free, _ious(row[:4], objects), 0.0)
            best = int(overlaps.argmax()) if len(overlaps) else -1
            if best >= 0 and overlaps[best] >= IOU:
                confusion[classes[best], int(row[5])] += 1
                free[best] = False
            elif not (_shares_inside(row[:4], crowds[record.crowds[:, 0] == row[5]]) >= IOU).any():
                confusion[nothing, int(row[5])] += 1
        np.add.at(confusion[:, nothing], classes[free], 1)
    return Curves(
        names=dataset.names,
        precision=tuple(tuple(map(float, column)) if column.max() >= 0 else () for column in precision.T),
        confusion=tuple(tuple(map(int, row)) for row in confusion),
        confidence=CONFIDENCE,
        iou=IOU,
    )


def _ious(box: NDArray[np.floating], others: NDArray[np.floating]) -> NDArray[np.floating]:
    """(N,) IoU of a box with N others, corners in pixels."""
    overlap = _overlaps(box, others)
    areas = (others[:, 2:4] - others[:, :2]).prod(axis=1)
    return overlap / np.maximum((box[2:] - box[:2]).prod() + areas - overlap, 1e-9)


def _shares_inside(box: NDArray[np.floating], others: NDArray[np.floating]) -> NDArray[np.floating]:
    """(N,) share of a box's area that lies in each of N others: what COCO compares with an IoU for crowd regions."""
    return _overlaps(box, others) / np.maximum((box[2:] - box[:2]).prod(), 1e-9)


def _overlaps(box: NDArray[np.floating], others: NDArray[np.floating]) -> NDArray[np.floating]:
    """(N,) area that a box has in common with N others."""
    sides = np.minimum(box[2:], others[:, 2:4]) - np.maximum(box[:2], others[:, :2])
    return np.clip(sides, 0, None).prod(axis=1)
