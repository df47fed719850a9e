"""A detection data set as values: records of images with their labels, class names, and what had to be left out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from repq.errors import DataError
from repq.identity import hash_files


def _no_boxes() -> NDArray[np.float32]:
    return np.zeros((0, 5), np.float32)


@dataclass(frozen=True, eq=False)
class ImageRecord:
    """One image and its objects.

    Attributes:
        name: path relative to the data set's root, with ``/`` between folders: the image's identity on any machine.
        path: where the file lies here.
        width, height: of the pixels as `read_image` gives them, that is after the EXIF orientation.
        labels: (n, 5) float32 objects: class, box centre x, y, width, height as fractions of the image.
        areas: (n,) float32 object areas in square pixels, for the COCO size classes. The segment's area where the
            annotation gives one, else the box's.
        crowds: (k, 5) float32 regions of many objects, in the form of ``labels``: no targets for training; in
            evaluation detections in them count neither as right nor as wrong.
    """

    name: str
    path: Path
    width: int
    height: int
    labels: NDArray[np.float32] = field(default_factory=_no_boxes)
    areas: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    crowds: NDArray[np.float32] = field(default_factory=_no_boxes)


@dataclass(frozen=True)
class Problems:
    """What was left out, one line each: the name, then the reason."""

    images: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        return len(self.images) + len(self.labels)

    def lines(self, show: int = 3) -> tuple[str, ...]:
        """Say how many images and how many labels were left out, with the first few of each; no line if none were."""
        lines = []
        for what, problems in (("image", self.images), ("label", self.labels)):
            if problems:
                plural = "s" if len(problems) > 1 else ""
                more = f"; and {len(problems) - show} more" if len(problems) > show else ""
                lines.append(f"{len(problems)} {what}{plural} left out: {'; '.join(problems[:show])}{more}")
        return tuple(lines)

    def __str__(self) -> str:
        return "\n".join(self.lines())


@dataclass(frozen=True, eq=False)
class DetectionDataset:
    """One split of a data set. ``records`` are sorted by name, so their order is the same on every machine."""

    root: Path
    split: str
    names: tuple[str, ...]
    records: tuple[ImageRecord, ...]
    problems: Problems = Problems()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> ImageRecord:
        return self.records[index]

    @property
    def num_classes(self) -> int:
        return len(self.names)

    @property
    def objects(self) -> int:
        return sum(len(record.labels) for record in self.records)

    def identity(self) -> str:
        """What results depend on; see `fingerprint`."""
        return fingerprint(self)

    def subset(self, records: Sequence[ImageRecord]) -> DetectionDataset:
        """The same data set with these images only."""
        return DetectionDataset(self.root, self.split, self.names, tuple(records), self.problems)


def pixel_boxes(labels: NDArray[np.float32], width: int, height: int) -> NDArray[np.float64]:
    """Turn (n, 5) labels into (n, 4) boxes x1, y1, x2, y2 in pixels of the image."""
    centre = labels[:, 1:3].astype(np.float64)
    half = labels[:, 3:5].astype(np.float64) / 2
    size = np.array([width, height], np.float64)
    return np.concatenate([(centre - half) * size, (centre + half) * size], axis=1)


def fingerprint(dataset: DetectionDataset) -> str:
    """Hash all that a result can depend on: class names, labels, and each image's name, size and content.

    It does not depend on where the data set lies.

    Raises:
        DataError: an image is no longer there.
    """
    digest = hashlib.sha256(json.dumps(dataset.names).encode())
    try:
        hashes = hash_files([record.path for record in dataset.records])
    except OSError as error:
        raise DataError(f"cannot read the image {error.filename}", found=error.strerror or str(error)) from None
    for record, content in zip(dataset.records, hashes, strict=True):
        digest.update(json.dumps((record.name, record.width, record.height, content)).encode())
        for array in (record.labels, record.areas, record.crowds):
            digest.update(array.tobytes() + b"|")
    return digest.hexdigest()
