"""DALI's pixels against OpenCV's, on the CPU; with a GPU also there."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from repq.data import decode_image, letterbox
from repq.data.dali import DaliLoader
from repq.errors import DataError
from repq.preprocessing import preset
from repq.recipe import LetterboxConfig

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed: pip install 'repq[dali]' (about 1 GB)")


def photograph(height: int, width: int, seed: int = 0) -> bytes:
    """A JPEG of smooth shapes with some noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (height // 40 + 2, width // 40 + 2, 3)).astype(np.float32)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) + rng.normal(0, 8, (height, width, 3))
    return cv2.imencode(".jpg", np.clip(image, 0, 255).astype(np.uint8))[1].tobytes()


def by_opencv(file: bytes, imgsz: tuple[int, int], config: LetterboxConfig = LetterboxConfig()) -> NDArray[np.uint8]:
    return letterbox(decode_image(file, "test"), imgsz, config)[0].transpose(2, 0, 1)


def mean_difference(found: NDArray[np.uint8], expected: NDArray[np.uint8]) -> float:
    return float(np.abs(found.astype(int) - expected.astype(int)).mean())


SIZES = [(96, 128), (60, 128), (192, 256), (100, 131), (480, 640), (350, 90), (31, 40), (1080, 1920)]


def test_pixels_and_places_are_those_of_opencv() -> None:
    files = [photograph(*size, seed) for seed, size in enumerate(SIZES)]
    images, transforms = DaliLoader((96, 128), len(files))(files)
    for file, image, transform in zip(files, images, transforms, strict=True):
        expected, where = letterbox(decode_image(file, "test"), (96, 128))
        assert transform == where
        assert mean_difference(image, expected.transpose(2, 0, 1)) < 1


@pytest.mark.parametrize(
    "config", [LetterboxConfig(border=5, inner_size=100), LetterboxConfig(upscale=False, border=16)]
)
def test_every_setting(config: LetterboxConfig) -> None:
    files = [photograph(50, 60), photograph(200, 150, 1)]
    images, _ = DaliLoader((96, 128), 2, config=config)(files)
    for file, image in zip(files, images, strict=True):
        assert mean_difference(image, by_opencv(file, (96, 128), config)) < 1


def test_real_images(shared: Path) -> None:
    files = [path.read_bytes() for path in sorted((shared / "data/coco128/images/val2017").glob("*.jpg"))[:16]]
    for size in (320, 640):
        images, _ = DaliLoader((size, size), 16)(files)
        pairs = zip(files, images, strict=True)
        means = [mean_difference(image, by_opencv(file, (size, size))) for file, image in pairs]
        assert np.mean(means) < 1


def test_types_and_colours() -> None:
    file = photograph(96, 128)
    (bytes_,), _ = DaliLoader((96, 128), 1)([file])
    (floats,), _ = DaliLoader((96, 128), 1, dtype="float32")([file])
    (blue_first,), _ = DaliLoader((96, 128), 1, preprocessing=preset("yolox"))([file])
    np.testing.assert_array_equal(floats, bytes_.astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(blue_first, bytes_[::-1])


def test_bad_input() -> None:
    loader = DaliLoader((96, 128), 2)
    with pytest.raises(DataError, match="batches of 2"):
        loader([photograph(10, 10)] * 3)
    with pytest.raises(DataError, match="cannot decode"):
        loader([b"no image at all"])
    assert loader([photograph(10, 10)])[0].shape == (1, 3, 96, 128)  # and it goes on after that
    with pytest.raises(DataError, match="does not fit"):
        DaliLoader((96, 128), 1, config=LetterboxConfig(border=48))
