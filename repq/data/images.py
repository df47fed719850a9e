"""Reading images: one definition of what the pixels, and so the width and the height, of a file are."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from repq.data.image_size import header_size, jpeg_segments
from repq.errors import DataError
from repq.printable import printable
from repq.reading import MIB, read_bytes, whole

# fmt: off
IMAGE_SUFFIXES = frozenset((
    ".avif", ".bmp", ".dib", ".exr", ".gif", ".hdr", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".jxl", ".pam",
    ".pbm", ".pgm", ".pic", ".png", ".pnm", ".ppm", ".pxm", ".ras", ".sr", ".tif", ".tiff", ".webp",
))
# fmt: on
"""Of files that are taken for images; OpenCV goes by their content. One that this OpenCV cannot decode is named."""

MAX_PIXELS = 1 << 27  # 400 MB decoded
PIXELS_VARIABLE = "REPQ_MAX_IMAGE_PIXELS"
_MAX_BYTES = 1024 * MIB


def read_image(path: Path, *, bgr: bool = False) -> NDArray[np.uint8]:
    """Return the image as (H, W, 3) uint8 RGB (``bgr``: blue first), turned as its EXIF orientation says.

    Grey images get three equal channels, 16-bit ones lose their low byte, an alpha channel is dropped.

    Raises:
        DataError: the file cannot be read, is truncated, holds no image, or one of more pixels than ``MAX_PIXELS`` (or
            the environment variable ``REPQ_MAX_IMAGE_PIXELS``).
    """
    return decode_image(_bytes_of(path), str(path), bgr=bgr)


def image_size(path: Path | str) -> tuple[int, int]:
    """Return width and height of what `read_image` gives, and refuse what it refuses.

    The whole file is decoded, to grey: half the work of colours, and the same errors.

    Raises:
        DataError: as `read_image`.
    """
    height, width = _decoded(_bytes_of(path), str(path), cv2.IMREAD_GRAYSCALE).shape
    return width, height


def decoder() -> tuple[str, str]:
    """What else than its bytes decides whether an image is read: OpenCV's version, and the pixels that are allowed."""
    return cv2.__version__, os.environ.get(PIXELS_VARIABLE, "")


def read_file(path: Path) -> bytes:
    """Return the bytes of an image file, which is whole and holds no more pixels than are allowed.

    Raises:
        DataError: as `read_image`, but for what only decoding shows.
    """
    return _checked(_bytes_of(path), str(path))


def _bytes_of(path: Path | str) -> bytes:
    return read_bytes(path, _MAX_BYTES, what="the image ", error=DataError)


def decode_image(data: bytes, name: str, *, bgr: bool = False) -> NDArray[np.uint8]:
    """Return the image in a file's bytes as ``read_image`` does; ``bgr``: with blue first.

    Raises:
        DataError: it is truncated, holds no image, or one of too many pixels.
    """
    image = _decoded(data, name, cv2.IMREAD_COLOR)
    return image if bgr else np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def _decoded(data: bytes, name: str, form: int) -> NDArray[np.uint8]:
    """What OpenCV makes of a file; ``form``: a constant of its ``ImreadModes``."""
    try:
        image = cv2.imdecode(np.frombuffer(_checked(data, name), np.uint8), form)
    except cv2.error as error:
        found = " ".join(str(error.err or error).split())
        raise DataError(f"cannot read the image {printable(name)}", found=found) from None
    if image is None:
        raise DataError(f"cannot read the image {printable(name)}", found="no image that OpenCV can decode")
    return np.asarray(image, np.uint8)


def _checked(data: bytes, name: str) -> bytes:
    """The same bytes, unless they cannot be decoded or must not be."""
    _demand_moderate(data, name)
    if not _is_whole(data):
        raise DataError(f"cannot read the image {printable(name)}", found="the file ends too early", fix="copy it anew")
    if data[:2] in (b"PF", b"Pf"):  # OpenCV cuts their numbers to whole ones, which makes most of them black
        raise DataError(
            f"cannot read the image {printable(name)}", found="a map of floats (PFM), which have no range",
            fix="write it as an image of 8 or 16 bits",
        )  # fmt: skip
    return data


def _demand_moderate(data: bytes, name: str) -> None:
    """Refuse an image whose pixels would take too much memory, before they are decoded."""
    own = os.environ.get(PIXELS_VARIABLE, "")
    limit = MAX_PIXELS if (given := whole(own, digits=15)) is None else given
    try:
        width, height = header_size(data) or (0, 0)
    except ValueError as error:
        raise DataError(
            f"cannot read the image {printable(name)}", found=f"a damaged header: {error}", fix="copy it anew"
        ) from None
    if width * height > limit:
        raise DataError(
            f"cannot read the image {printable(name)}",
            found=f"{width}x{height} pixels, more than {limit}",
            fix=f"make it smaller, or set {PIXELS_VARIABLE} if there is memory for it",
        )


def is_jpeg(data: bytes) -> bool:
    """Whether a file begins as a JPEG does."""
    return data.startswith(b"\xff\xd8")


def _is_whole(data: bytes) -> bool:
    """Whether a file has its end. Some decoders fill what is missing with grey and say nothing."""
    if not data:
        return False
    if data.startswith(b"\x89PNG"):
        return b"IEND" in data
    if is_jpeg(data):
        if data.endswith(b"\xff\xd9"):  # as nearly all do
            return True
        scan = max((at for _, at in jpeg_segments(data)), default=2)
        return data.find(b"\xff\xd9", scan) >= 0
    return True
