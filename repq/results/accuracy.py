"""COCO accuracy, and pictures of what both models find."""

from __future__ import annotations

from pydantic import ConfigDict

from repq.results.base import Result, measured_time


class ClassAccuracy(Result):
    name: str
    objects: int
    ap: float | None  # None: no object of the class in the data
    ap50: float | None


class TtaCost(Result):
    """What test-time augmentation costs: passes for an image, and their time over that of the plain one."""

    passes: int
    time_ratio: float = measured_time()


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
    resampled: tuple[float, ...] = ()  # AP of resamples of the images, the same ones for all models on so many images
    tta: TtaCost | None = None

    def defined(self, metric: str = "ap") -> float | None:
        """A metric by its name; None where the data holds no object, so that there is no AP."""
        found: float | None = getattr(self, metric)
        return found if self.objects else None


def change_interval(before: Accuracy, after: Accuracy) -> tuple[float, float] | None:
    """What the change of AP may be on other images of the kind: between these, in 95 % of a paired bootstrap.

    None: the two were not resampled, or are of different images.
    """
    pairs = list(zip(before.resampled, after.resampled, strict=False))
    if not pairs or (before.images, before.objects) != (after.images, after.objects):
        return None
    changes = sorted(second - first for first, second in pairs)
    tail = round(0.025 * (len(changes) - 1))
    return changes[tail], changes[-1 - tail]


def metric_of(found: Accuracy | None, metric: str = "ap") -> float | None:
    """A metric by its name; None where it was not measured, or there is no object to measure it with."""
    return None if found is None else found.defined(metric)


class Curves(Result):
    """Precision over recall, and the confusion of classes, at one IoU.

    Attributes:
        precision: per class, at the recalls 0, 0.01 … 1; empty: the data has no such object.
        confusion: counts of objects (rows) by what they were found as (columns); the last of each is nothing.
        confidence: score from which detections are in the confusion.
    """

    names: tuple[str, ...]
    precision: tuple[tuple[float, ...], ...]
    confusion: tuple[tuple[int, ...], ...]
    confidence: float
    iou: float


class Accuracies(Result):
    """COCO metrics of the engines of a run, by name: ``openvino-int8`` …"""

    models: dict[str, Accuracy]


class Panel(Result):
    """An image with the boxes of one model, as JPEG bytes; so many of them are marked, as ``lost``, ``new`` …"""

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    title: str
    boxes: int
    marked: int
    mark: str
    jpeg: bytes


class DrawnImage(Result):
    """One image, once for each of what is compared."""

    name: str
    panels: tuple[Panel, ...]


class Pictures(Result):
    """Images with the boxes that an engine found, those of at least this score, of so many that were looked at."""

    engine: str
    confidence: float
    images: tuple[DrawnImage, ...]
    looked_at: int
