"""Decoded training images, kept in memory up to a bound."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from repq.data.dataset import ImageRecord, pixel_boxes
from repq.data.images import read_image
from repq.errors import DataError
from repq.printable import printable


class ImageCache:
    """Decoded images of some records, shrunk to fit ``imgsz`` and never enlarged.

    They keep their shape, or with ``stretch`` shrink on each side as far as that needs, for models that take images
    stretched. The first images that fit into ``max_bytes`` stay in memory, the others are decoded each time; what
    `image` returns is the same either way. Threads may share a cache.
    """

    def __init__(
        self, records: Sequence[ImageRecord], imgsz: tuple[int, int], max_bytes: int, *, stretch: bool = False
    ) -> None:
        self.records = tuple(records)
        self.imgsz, self.stretch = imgsz, stretch
        self._images: dict[int, NDArray[np.uint8]] = {}
        self._free = max_bytes
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.records)

    def image(self, index: int) -> NDArray[np.uint8]:
        """The image (h, w, 3), RGB; not to be written to.

        Raises:
            DataError: the file can no longer be read, or has another size than its record says.
        """
        found = self._images.get(index)
        if found is not None:
            return found
        record = self.records[index]
        whole = read_image(record.path)
        if whole.shape[:2] != (record.height, record.width):
            raise DataError(
                f"the image {printable(record.name)} is another one than when the data set was read",
                found=f"{whole.shape[1]}x{whole.shape[0]} pixels in place of {record.width}x{record.height}",
                fix="leave the files alone while they are trained on, and start again",
            )
        image = _shrunk(whole, self.size(index))
        image.setflags(write=False)
        with self._lock:
            if index not in self._images and image.nbytes <= self._free:
                self._images[index] = image
                self._free -= image.nbytes
        return image

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of ``image(index)``, which is not decoded for it."""
        record = self.records[index]
        if self.stretch:
            return min(self.imgsz[0], record.height), min(self.imgsz[1], record.width)
        ratio = min(self.imgsz[0] / record.height, self.imgsz[1] / record.width)
        if ratio >= 1:
            return record.height, record.width
        return max(1, round(record.height * ratio)), max(1, round(record.width * ratio))

    def objects(self, index: int) -> NDArray[np.float32]:
        """Rows of class, x1, y1, x2, y2 in pixels of ``image(index)``."""
        labels = self.records[index].labels
        height, width = self.size(index)
        return np.concatenate((labels[:, :1], pixel_boxes(labels, width, height)), axis=1).astype(np.float32)


def _shrunk(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    if image.shape[:2] == size:
        return image
    return np.asarray(cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA), np.uint8)
