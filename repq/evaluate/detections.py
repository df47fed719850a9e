"""Running a detector over a data set and keeping what it finds in each image."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
from numpy.typing import NDArray

from repq.concurrency import concurrently, prefetch
from repq.data import Batch, DetectionDataset, ImageRecord, batches, read_image
from repq.errors import DataError
from repq.evaluate.augmented import PLAIN, View, demand_library, merged, mirror_boxes, mirror_images, views
from repq.evaluate.postprocess import postprocess
from repq.layout import OutputLayout
from repq.preprocessing import Preprocessing
from repq.progress import Progress, silent
from repq.recipe import EvalConfig
from repq.results import TtaCost

Predict = Callable[[NDArray[np.float32]], NDArray[np.floating]]
"""Network input (B, 3, H, W) to detections (a layout's columns) in network pixels; the last B may be smaller."""

Detect = Callable[[Sequence[NDArray[np.uint8]]], list[NDArray[np.float32]]]
"""Images (h, w, 3), RGB, of any sizes, to boxes (k, 6) in each one's own pixels, as in `Detections.boxes`."""


@dataclass(frozen=True, eq=False)
class Detections:
    """What a detector found.

    Attributes:
        images: the names of the images, in the order of the data set's records.
        boxes: per image (k, 6) float32: x1, y1, x2, y2 in pixels of the original image, score, class; best first.
        tta: what test-time augmentation cost; None: there was none.
    """

    images: tuple[str, ...]
    boxes: tuple[NDArray[np.float32], ...]
    tta: TtaCost | None = None

    @property
    def count(self) -> int:
        return sum(len(boxes) for boxes in self.boxes)

    def demand_images_of(self, dataset: DetectionDataset) -> None:
        """Check that they follow the data set's records.

        Raises:
            DataError: they are of other images.
        """
        if self.images != _names(dataset.records):
            raise DataError(
                "the detections are of other images than the data set's",
                found=f"{len(self.images)} images with detections, {len(dataset)} in the data set",
                fix="detect and evaluate on the same split",
            )


def detect_all(
    predict: Predict,
    dataset: DetectionDataset,
    imgsz: tuple[int, int],
    config: EvalConfig,
    progress: Progress = silent,
    *,
    label: str = "detecting",
    layout: OutputLayout = OutputLayout(),
    preprocessing: Preprocessing = Preprocessing(),
    at_once: int = 1,
) -> Detections:
    """Find the objects in every image of a data set; a few batches of images are in memory at a time.

    With ``config.tta`` every image is looked at several times, and what is found is merged.

    Args:
        at_once: how many threads may call ``predict`` at once.

    Raises:
        DataError: the output of ``predict`` does not fit the data set's classes, or an image can no longer be read.
        RepqError: the library that merges is not installed.
    """
    tta = config.tta or PLAIN
    demand_library(tta)
    looks = views(imgsz, config.tta)

    def pass_of(view: View, part: DetectionDataset, progress: Progress) -> _Pass:
        return _one_pass(predict, part, view, config, progress, label, layout, preprocessing, at_once)

    passes = [pass_of(view, dataset, progress) for view in looks]
    of_images = zip(*(one.boxes for one in passes), strict=True)
    boxes = tuple(merged(found, tta, config.max_detections) for found in of_images)
    cost = None
    if config.tta is not None and len(dataset):
        plain = passes[0]
        if looks[0].size != imgsz:  # none of the passes tells how long a plain one takes
            plain = pass_of(View(imgsz, False), dataset.subset(dataset.records[: 2 * at_once * config.batch]), silent)
        cost = TtaCost(passes=len(passes), time_ratio=sum(one.seconds for one in passes) / plain.seconds)
    return Detections(_names(dataset.records), boxes, cost)


@dataclass(frozen=True, eq=False)
class _Pass:
    """What one look at every image found: boxes per image, and the median of the seconds that a batch took."""

    boxes: list[NDArray[np.float32]]
    seconds: float


def _one_pass(
    predict: Predict, dataset: DetectionDataset, view: View, config: EvalConfig, progress: Progress, label: str,
    layout: OutputLayout, preprocessing: Preprocessing, at_once: int,
) -> _Pass:  # fmt: skip
    def look(batch: Batch) -> tuple[list[NDArray[np.float32]], float]:
        images = mirror_images(batch.images) if view.mirrored else batch.images
        start = time.perf_counter()
        output = np.asarray(predict(images))
        took = time.perf_counter() - start
        mirrored = view.size[1] if view.mirrored else None
        return boxes_in_images(output, batch, dataset.names, config, layout, mirrored), took

    loaded = batches(dataset, view.size, config.batch, config.letterbox, preprocessing, scale=view.scale)
    looked = progress(concurrently(look, loaded, at_once), total=-(-len(dataset) // config.batch), label=label)
    boxes: list[NDArray[np.float32]] = []
    times: list[float] = []
    for boxes_of_batch, took in looked:
        boxes.extend(boxes_of_batch)
        times.append(took)
    return _Pass(boxes, float(np.median(times)) if times else 0.0)


def detect_images(
    detect: Detect, dataset: DetectionDataset, batch: int, progress: Progress = silent, *, at_once: int = 1
) -> Detections:  # fmt: skip
    """Find the objects in every image of a data set with a detector that takes the images as they are.

    Args:
        at_once: how many threads may call ``detect`` at once.

    Raises:
        DataError: an image can no longer be read.
    """
    loaded = prefetch(lambda record: read_image(record.path), dataset.records, ahead=2 * batch)
    steps = -(-len(dataset) // batch)
    looked = concurrently(detect, (list(islice(loaded, batch)) for _ in range(steps)), at_once)
    found = list(chain.from_iterable(progress(looked, total=steps, label="evaluating")))
    return Detections(_names(dataset.records), tuple(found))


def boxes_in_images(
    output: NDArray[np.floating],
    batch: Batch,
    names: Sequence[str],
    config: EvalConfig,
    layout: OutputLayout = OutputLayout(),
    mirrored: int | None = None,
) -> list[NDArray[np.float32]]:
    """Turn one batch of network output into boxes (k, 6) in pixels of the original images, as in `Detections.boxes`.

    Args:
        mirrored: width of the input where the network saw it mirrored.

    Raises:
        DataError: the output does not fit the batch or the classes.
    """
    _check_output(output, len(batch), names, layout)
    found = postprocess(output, config, layout)
    if mirrored is not None:
        found = [mirror_boxes(boxes, mirrored) for boxes in found]
    for boxes, transform in zip(found, batch.transforms, strict=True):
        boxes[:, :4] = transform.to_original(boxes[:, :4], clip=config.clip)
    return found


def _names(records: Sequence[ImageRecord]) -> tuple[str, ...]:
    return tuple(record.name for record in records)


def _check_output(output: NDArray[np.floating], images: int, names: Sequence[str], layout: OutputLayout) -> None:
    width = layout.width(len(names))
    if max(layout.boxes + 4, (layout.objectness or 0) + 1) > width:
        raise DataError(
            "the layout of the model's output names columns that it lacks",
            found=f"a box from column {layout.boxes} on, an objectness at {layout.objectness}, and {width} columns",
            fix="export the model again, or say what it gives with --layout",
        )
    if output.ndim != 3 or output.shape[0] != images or layout.rows(output).shape[2] != width:
        fitting = f"({images}, {width}, N)" if layout.columns_first else f"({images}, N, {width})"
        raise DataError(
            "the model's output does not fit the data set",
            found=f"shape {output.shape} for {images} images and {len(names)} classes; {fitting} fits",
            fix="use a data set with the classes that the model was trained for",
        )
