"""COCO accuracy."""

from __future__ import annotations

from repq.results.base import Result


class ClassAccuracy(Result):
    name: str
    objects: int
    ap: float | None  # None: no object of the class in the data
    ap50: float | None


class Accuracy(Result):
    """COCO metrics, fractions in 0..1; None where the data has no object of that size."""

    ap: float
    ap50: float
    ap75: float
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    per_class: tuple[ClassAccuracy, ...]
    images: int
    objects: int
    detections: int


class Accuracies(Result):
    """COCO metrics of the engines of a run, by name: ``openvino-int8`` …"""

    models: dict[str, Accuracy]
