"""Reading images: one definition of what the pixels, and so the width and the height, of a file are."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from repq.errors import DataError

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".jp2", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def read_image(path: Path) -> NDArray[np.uint8]:
    """Return the image as (H, W, 3) uint8 RGB, turned as its EXIF orientation says.

    Grey images get three equal channels, 16-bit ones lose their low byte, an alpha channel is dropped.

    Raises:
        DataError: the file cannot be read, is truncated, or holds no image.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the image {path}", found=error.strerror or str(error)) from None
    return decode_image(data, str(path))


def decode_image(data: bytes, name: str, *, bgr: bool = False) -> NDArray[np.uint8]:
    """Return the image in a file's bytes as ``read_image`` does; ``bgr``: with blue first.

    Raises:
        DataError: it is truncated, or holds no image.
    """
    if not _is_whole(data):
        raise DataError(f"cannot read the image {name}", found="the file ends too early", fix="fetch it again")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise DataError(f"cannot read the image {name}", found=str(error.err or error)) from None
    if image is None:
        raise DataError(f"cannot read the image {name}", found="no image that OpenCV can decode")
    return np.asarray(image if bgr else cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def _is_whole(data: bytes) -> bool:
    """Whether a file has its end. Some decoders fill what is missing with grey and say nothing."""
    if not data:
        return False
    if data.startswith(b"\x89PNG"):
        return b"IEND" in data
    if data.startswith(b"\xff\xd8"):
        return data.find(b"\xff\xd9", _start_of_scan(data)) >= 0
    return True


def _start_of_scan(data: bytes) -> int:
    """Offset of a JPEG's first scan. Walking the segments steps over thumbnails, which have an end of their own."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        is_fill = data[at + 1] == 0xFF
        at += 1 if is_fill else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return at
