"""What was found in images and videos."""

from __future__ import annotations

from repq.results.base import Result, measured_time


class Comparison(Result):
    """Boxes of two models on the same images. ``changed``: images with a lost or new box, those with most first."""

    other: str
    same: int
    lost: int
    new: int
    changed: dict[str, int]


class PredictReport(Result):
    """What a model found, and where it was written. ``skipped`` names the first images that could not be read."""

    model: str
    engine: str
    precision: str
    imgsz: tuple[int, int]
    confidence: float
    images: int
    boxes: int
    per_class: dict[str, int]
    skipped_count: int
    skipped: tuple[str, ...]
    images_per_s: float = measured_time()
    compared: Comparison | None = None
    out: str
    files: tuple[str, ...]  # below ``out``
