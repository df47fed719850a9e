"""Decoded training images, kept in memory up to a bound."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from repq.data.dataset import ImageRecord, pixel_boxes
from repq.data.images import read_image


class ImageCache:
    """Decoded images of some records, shrunk to fit ``imgsz`` and never enlarged.

    The first images that fit into ``max_bytes`` stay in memory, the others are decoded each time; what `image` returns
    is the same either way. Threads may share a cache.
    """

    def __init__(self, records: Sequence[ImageRecord], imgsz: tuple[int, int], max_bytes: int) -> None:
        self.records = tuple(records)
        self.imgsz = imgsz
        self._images: dict[int, NDArray[np.uint8]] = {}
        self._free = max_bytes
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.records)

    def image(self, index: int) -> NDArray[np.uint8]:
        """The image (h, w, 3), RGB; not to be written to.

        Raises:
            DataError: the file can no longer be read.
        """
        found = self._images.get(index)
        if found is not None:
            return found
        image = _shrink(read_image(self.records[index].path), self.imgsz)
        image.setflags(write=False)
        with self._lock:
            if index not in self._images and image.nbytes <= self._free:
                self._images[index] = image
                self._free -= image.nbytes
        return image

    def objects(self, index: int) -> NDArray[np.float32]:
        """Rows of class, x1, y1, x2, y2 in pixels of ``image(index)``."""
        labels = self.records[index].labels
        height, width = self.image(index).shape[:2]
        return np.concatenate((labels[:, :1], pixel_boxes(labels, width, height)), axis=1).astype(np.float32)


def _shrink(image: NDArray[np.uint8], imgsz: tuple[int, int]) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    ratio = min(imgsz[0] / height, imgsz[1] / width)
    if ratio >= 1:
        return image
    size = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
