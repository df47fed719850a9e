"""The number of pixels is known, and bounded, before an image is decoded."""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repq.data import decode_image, read_image
from repq.data.image_size import header_size
from repq.errors import DataError

KINDS = (".avif", ".bmp", ".gif", ".hdr", ".jpg", ".pam", ".png", ".pnm", ".ras", ".tif", ".webp")


def encoded(kind: str, width: int, height: int) -> bytes:
    image = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    try:
        ok, data = cv2.imencode(kind, image.astype(np.float32) if kind == ".hdr" else image)
    except cv2.error:
        ok = False
    if not ok:
        pytest.skip(f"this OpenCV writes no {kind}")
    return data.tobytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("width", "height"), [(7, 5), (300, 17), (2, 400)])
def test_the_header_says_what_is_decoded(kind: str, width: int, height: int) -> None:
    assert header_size(encoded(kind, width, height)) == (width, height)


@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_is_a_setting_and_holds_for_every_format(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(kind, 40, 30)
    monkeypatch.setenv("REPQ_MAX_IMAGE_PIXELS", "1199")
    with pytest.raises(DataError, match=r"(?s)40x30 pixels.*REPQ_MAX_IMAGE_PIXELS"):
        decode_image(data, "a")
    monkeypatch.setenv("REPQ_MAX_IMAGE_PIXELS", "1200")
    assert decode_image(data, "a").shape == (30, 40, 3)


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("width", "height"), [(32000, 32000), (2**31 - 1, 1), (1 << 20, 1 << 20), (2**32 - 1, 2**32 - 1)]
)
def test_bombs_are_refused_without_memory(tmp_path: Path, width: int, height: int) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(width, height))
    with pytest.raises(DataError, match="pixels"):
        read_image(path)


@given(st.sampled_from(KINDS), st.integers(0, 200), st.binary(min_size=1, max_size=4), st.integers(0, 400))
@settings(max_examples=150, deadline=None)
def test_damaged_headers_are_errors_or_images(kind: str, at: int, patch: bytes, cut: int) -> None:
    data = encoded(kind, 20, 10)
    data = data[: min(at, len(data))] + patch + data[at + len(patch) :]
    data = data[: len(data) - cut] if cut < 200 else data
    with suppress(ValueError):
        header_size(data)
    with suppress(DataError):
        assert decode_image(data, "a").size <= 3 << 27


def test_a_jpeg_of_fill_bytes_is_refused_quickly() -> None:
    for body in (b"\xff" * 5_000_000, b"\xff\xe0\0\2" * 1_000_000, b"\0" * 5_000_000):
        with pytest.raises(DataError):
            decode_image(b"\xff\xd8" + body, "a")
