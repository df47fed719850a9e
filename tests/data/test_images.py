"""Reading images of every kind into 8-bit RGB, and refusing what is broken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from repq.data import read_image
from repq.data.images import image_size
from repq.errors import DataError


def encoded(suffix: str, image: np.ndarray) -> bytes:
    ok, data = cv2.imencode(suffix, image)
    assert ok
    return data.tobytes()


@pytest.fixture
def pixels() -> np.ndarray:
    # Photographs are smooth; noise is the worst case for a truncated file, since every byte matters.
    return np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def test_channels_are_red_green_blue(tmp_path: Path) -> None:
    red = np.zeros((4, 6, 3), np.uint8)
    red[..., 2] = 255  # OpenCV writes blue, green, red
    path = tmp_path / "a.png"
    path.write_bytes(encoded(".png", red))
    image = read_image(path)
    assert image.shape == (4, 6, 3)
    assert image.dtype == np.uint8
    assert (image == [255, 0, 0]).all()


@pytest.mark.parametrize("kind", ["grey", "grey16", "colour16", "alpha"])
def test_other_depths_become_8_bit_colour(tmp_path: Path, pixels: np.ndarray, kind: str) -> None:
    wide = pixels.astype(np.uint16) * 256 + 7
    source, expected = {
        "grey": (pixels[..., 0], np.repeat(pixels[..., :1], 3, axis=2)),
        "grey16": (wide[..., 0], np.repeat(pixels[..., :1], 3, axis=2)),
        "colour16": (wide, pixels[..., ::-1]),
        "alpha": (np.dstack([pixels, np.full((48, 64), 9, np.uint8)]), pixels[..., ::-1]),
    }[kind]
    path = tmp_path / "a.png"
    path.write_bytes(encoded(".png", source))
    np.testing.assert_array_equal(read_image(path), expected)


def with_exif_orientation(jpeg: bytes, orientation: int) -> bytes:
    tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0" + bytes([orientation, 0, 0, 0]) + b"\0\0\0\0"
    body = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + jpeg[2:]


def test_exif_orientation_turns_the_pixels(tmp_path: Path, pixels: np.ndarray) -> None:
    jpeg = encoded(".jpg", pixels)
    plain, turned = tmp_path / "plain.jpg", tmp_path / "turned.jpg"
    plain.write_bytes(jpeg)
    turned.write_bytes(with_exif_orientation(jpeg, 6))
    np.testing.assert_array_equal(read_image(turned), np.rot90(read_image(plain), -1))


@pytest.mark.parametrize("shape", [(4, 6, 3), (4, 6)])
def test_maps_of_floats_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    (tmp_path / "a.pfm").write_bytes(encoded(".pfm", np.full(shape, 0.9, np.float32)))
    for read in (read_image, image_size):
        with pytest.raises(DataError, match="floats"):
            read(tmp_path / "a.pfm")


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.9, 0.999])
def test_truncated_files_are_refused(tmp_path: Path, pixels: np.ndarray, suffix: str, share: float) -> None:
    data = encoded(suffix, pixels)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(DataError, match="cannot read the image"):
        read_image(path)


def test_the_end_of_a_thumbnail_is_not_the_end_of_the_image(tmp_path: Path, pixels: np.ndarray) -> None:
    jpeg, thumbnail = encoded(".jpg", pixels), encoded(".jpg", pixels[::8, ::8].copy())
    whole = jpeg[:2] + b"\xff\xe2" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail + jpeg[2:]
    path = tmp_path / "a.jpg"
    path.write_bytes(whole)
    assert read_image(path).shape == pixels.shape
    path.write_bytes(whole[:-2])
    with pytest.raises(DataError, match="ends too early"):
        read_image(path)


def test_bytes_after_the_end_do_no_harm(tmp_path: Path, pixels: np.ndarray) -> None:
    for suffix in (".jpg", ".png"):
        path = tmp_path / f"a{suffix}"
        path.write_bytes(encoded(suffix, pixels) + b"\0" * 500)
        assert read_image(path).shape == pixels.shape


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(DataError, match="no image that OpenCV can decode"):
        read_image(tmp_path / "text.jpg")
    with pytest.raises(DataError, match="No such file"):
        read_image(tmp_path / "absent.jpg")
    with pytest.raises(DataError):
        read_image(tmp_path)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tiff", ".ppm", ".jp2", ".pfm", ".hdr"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_the_size_is_that_of_the_pixels_and_what_cannot_be_read_has_none(
    tmp_path: Path, pixels: np.ndarray, suffix: str, orientation: int
) -> None:
    data = encoded(suffix, pixels.astype(np.float32) / 255 if suffix in (".pfm", ".hdr") else pixels)
    whole = with_exif_orientation(data, orientation) if suffix == ".jpg" else data
    path = tmp_path / f"a{suffix}"
    for share in (1.0, 0.9, 0.5, 0.05, 0.0):
        path.write_bytes(whole[: int(len(whole) * share)])
        assert outcome(image_size, path) == outcome(read_image, path)


def outcome(read: Callable[[Path], Any], path: Path) -> tuple[int, int] | str:
    """Width and height, or what is said."""
    try:
        found = read(path)
    except DataError as error:
        return str(error)
    return found if isinstance(found, tuple) else (found.shape[1], found.shape[0])
