"""A detection data set as values: records of images with their labels, class names, and what had to be left out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from repq.amounts import counted
from repq.errors import DataError, reason
from repq.identity import hash_files


def as_boxes(rows: Sequence[Sequence[float]] = ()) -> NDArray[np.float32]:
    """Rows of class, centre x, y, width, height as an (n, 5) float32 array; (0, 5) without rows."""
    return np.array(rows, np.float32).reshape(-1, 5) if len(rows) else NO_BOXES


LEAST = 1e-9
"""A width or height, as a fraction of the image, that is none: it would be lost among the digits of float32."""
NO_BOXES = np.zeros((0, 5), np.float32)
NO_AREAS = np.zeros(0, np.float32)


@dataclass(frozen=True, eq=False, slots=True)
class ImageRecord:
    """One image and its objects.

    Attributes:
        name: path relative to the data set's root, with ``/`` between folders: the image's identity on any machine.
        file: where it lies here; ``path`` is the same as a `Path`, which takes four times the memory of a text.
        width, height: of the pixels as `read_image` gives them, that is after the EXIF orientation.
        labels: (n, 5) float32 objects: class, box centre x, y, width, height as fractions of the image.
        areas: (n,) float32 object areas in square pixels, for the COCO size classes. The segment's area where the
            annotation gives one, else the box's.
        crowds: (k, 5) float32 regions of many objects, in the form of ``labels``: no targets for training; in
            evaluation detections in them count neither as right nor as wrong.
    """

    name: str
    file: Path | str
    width: int
    height: int
    labels: NDArray[np.float32] = field(default_factory=as_boxes)
    areas: NDArray[np.float32] = field(default_factory=lambda: NO_AREAS)
    crowds: NDArray[np.float32] = field(default_factory=as_boxes)

    @property
    def path(self) -> Path:
        return Path(self.file)


@dataclass(frozen=True, eq=False)
class Annotation:
    """Boxes of one image, whatever they were read from; see `ImageRecord` for the arrays.

    Attributes:
        problems: what was left out and why.
        counts: how many labels of an unusual form were used, by form; see `repq.data.load.FORMS`.
    """

    labels: NDArray[np.float32]
    areas: NDArray[np.float32]
    crowds: NDArray[np.float32] = field(default_factory=as_boxes)
    problems: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_spoilt(self) -> bool:
        """Whether there were boxes and not one is usable: the image must not pass for one without objects."""
        return bool(self.problems) and not len(self.labels) and not len(self.crowds)


@dataclass(frozen=True)
class Problems:
    """What a user should know of a data set that was read.

    Attributes:
        images, labels: what was left out, one line each: the name, then the reason.
        notes: what was not taken as it is written, or does not belong to the set, one sentence each.
    """

    images: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """How many images and labels were left out."""
        return len(self.images) + len(self.labels)

    def __add__(self, other: Problems) -> Problems:
        return Problems(self.images + other.images, self.labels + other.labels, self.notes + other.notes)

    def lines(self, show: int = 3) -> tuple[str, ...]:
        """How many images and how many labels were left out, with the first few of each, and the notes."""
        lines = []
        for what, problems in (("image", self.images), ("label", self.labels)):
            if problems:
                more = f"; and {len(problems) - show} more" if len(problems) > show else ""
                lines.append(f"{counted(len(problems), what)} left out: {'; '.join(problems[:show])}{more}")
        return (*lines, *self.notes)

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
        return replace(self, records=tuple(records))


def pixel_boxes(labels: NDArray[np.float32], width: int, height: int) -> NDArray[np.float64]:
    """Turn (n, 5) labels into (n, 4) boxes x1, y1, x2, y2 in pixels of the image."""
    centre = labels[:, 1:3].astype(np.float64)
    half = labels[:, 3:5].astype(np.float64) / 2
    size = np.array([width, height], np.float64)
    return np.concatenate([(centre - half) * size, (centre + half) * size], axis=1)


def image_hashes(records: Sequence[ImageRecord]) -> dict[str, str]:
    """Name to SHA-256 of every image file.

    Raises:
        DataError: an image can no longer be read.
    """
    try:
        hashes = hash_files([record.path for record in records])
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the image {getattr(error, 'filename', '')}", found=reason(error)) from None
    return {record.name: digest for record, digest in zip(records, hashes, strict=True)}


def fingerprint(dataset: DetectionDataset) -> str:
    """Hash all that a result can depend on: class names, labels, and each image's name, size and content.

    It depends neither on where the data set lies nor on the times of its files.

    Raises:
        DataError: an image is no longer there.
    """
    digest = hashlib.sha256(json.dumps(dataset.names).encode())
    hashes = image_hashes(dataset.records)
    for record in dataset.records:
        digest.update(json.dumps((record.name, record.width, record.height, hashes[record.name])).encode())
        for array in (record.labels, record.areas, record.crowds):
            digest.update(array.tobytes() + b"|")
    return digest.hexdigest()
