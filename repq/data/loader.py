"""Batches of letterboxed images: decoded by background threads, yielded in order, bounded in memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from repq.concurrency import prefetch
from repq.data.dataset import DetectionDataset, ImageRecord
from repq.data.images import read_image
from repq.data.letterbox import DEFAULT, USUAL, LetterboxTransform, letterbox
from repq.preprocessing import Preprocessing
from repq.recipe import LetterboxConfig


@dataclass(frozen=True, eq=False)
class Batch:
    """Network input for some records.

    Attributes:
        images: (B, 3, H, W) float32, as the preprocessing says.
        transforms: how each image was placed.
        indices: the position of each image in the sequence of records.
    """

    images: NDArray[np.float32]
    transforms: tuple[LetterboxTransform, ...]
    indices: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.indices)


class LetterboxedImages:
    """Images as a network gets them, and where they lie in its input, by file; all of one size and preprocessing.

    The first that fit into ``max_bytes`` stay. Threads may share it.
    """

    def __init__(self, max_bytes: int) -> None:
        self._kept: dict[Path, tuple[NDArray[np.uint8], LetterboxTransform]] = {}
        self._free = max_bytes
        self._lock = threading.Lock()

    def get(self, path: Path) -> tuple[NDArray[np.uint8], LetterboxTransform] | None:
        """The image (H, W, 3) and its place; None: it is not here."""
        return self._kept.get(path)

    def add(self, path: Path, image: NDArray[np.uint8], transform: LetterboxTransform) -> None:
        """Keep an image if there is room."""
        with self._lock:
            if path not in self._kept and image.nbytes <= self._free:
                self._kept[path] = image, transform
                self._free -= image.nbytes


def to_input(images: Sequence[NDArray[np.uint8]], preprocessing: Preprocessing = USUAL) -> NDArray[np.float32]:
    """Stack B images (H, W, 3) uint8, colours in order, into network input (B, 3, H, W) float32."""
    stacked = np.empty((len(images), 3, *images[0].shape[:2]), np.float32)
    for planes, image in zip(stacked, images, strict=True):
        for plane, colour in zip(planes, cv2.split(image), strict=True):  # faster than a transposed copy
            plane[:] = colour
    normalized: NDArray[np.float32] = preprocessing.normalize(stacked)
    return normalized


def batches(
    records: Sequence[ImageRecord] | DetectionDataset,
    imgsz: tuple[int, int],
    batch: int,
    letterbox_config: LetterboxConfig = DEFAULT,
    preprocessing: Preprocessing = USUAL,
    *,
    scale: float = 1.0,
    workers: int = 2,
    kept: LetterboxedImages | None = None,
) -> Iterator[Batch]:
    """Yield the records' images in order, ``batch`` at a time; the last batch may be smaller.

    Args:
        imgsz: height and width of the network input in pixels.
        preprocessing: of the model that they are for.
        scale: of the room that each has in the input, see `repq.data.letterbox.rooms`.
        workers: background threads; 0 loads in the caller's thread.
        kept: images that need not be read again, of this size, letterbox, preprocessing and scale; others are added.

    Raises:
        DataError: an image can no longer be read, or the letterbox does not fit.
    """
    if isinstance(records, DetectionDataset):
        records = records.records

    def load(record: ImageRecord) -> tuple[NDArray[np.uint8], LetterboxTransform]:
        if kept is not None and (found := kept.get(record.path)) is not None:
            return found
        image = read_image(record.path, bgr=preprocessing.bgr)
        placed = letterbox(image, imgsz, letterbox_config, preprocessing, scale)
        if kept is not None:
            kept.add(record.path, *placed)
        return placed

    loaded = prefetch(load, records, workers=workers, ahead=2 * batch)
    for start in range(0, len(records), batch):
        images, transforms = zip(*islice(loaded, batch), strict=True)
        yield Batch(to_input(images, preprocessing), transforms, tuple(range(start, start + len(images))))
