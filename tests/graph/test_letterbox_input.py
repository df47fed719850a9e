"""The letterbox in the graph against the one that the CPU path uses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto
from small_graphs import graph, kinds, normal, run

from repq.data import letterbox, letterbox_transform, read_image
from repq.errors import GraphError
from repq.graph import letterbox_input, uint8_input
from repq.graph.letterbox import Rooms, placement
from repq.recipe import LetterboxConfig

INPUT = (96, 128)
PLAIN = LetterboxConfig()


def pixels_out(imgsz: tuple[int, int]) -> ModelProto:
    """A graph whose output is its own input: a 1x1 convolution by the unit matrix."""
    height, width = imgsz
    model = graph(
        f"g (float[N,3,{height},{width}] x) => (float[N,3,{height},{width}] y) {{ y = Conv(x, c__weight) }}",
        c__weight=255 * np.eye(3, dtype=np.float32)[..., None, None],
    )
    return uint8_input(model)


def smooth_image(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Something like a photograph: noise of several widths."""
    rng = np.random.default_rng(seed)
    levels = [np.kron(rng.uniform(-1, 1, (height // k + 1, width // k + 1, 3)), np.ones((k, k, 1))) for k in (1, 5, 23)]
    total = sum(weight * level[:height, :width] for weight, level in zip((30, 40, 60), levels, strict=True))
    return np.clip(128 + total, 0, 255).astype(np.uint8)


def difference(image: NDArray[np.uint8], config: LetterboxConfig, dynamic: bool, imgsz=INPUT) -> NDArray[np.int64]:
    model = letterbox_input(pixels_out(imgsz), config, None if dynamic else image.shape[:2])
    (found,) = run(model, x=image[None])
    expected, _ = letterbox(image, imgsz, config)
    return np.abs(np.rint(found[0]).astype(np.int64) - expected.transpose(2, 0, 1).astype(np.int64))


SIZES = {
    "as it is": (96, 128),
    "only padded": (60, 128),
    "half": (192, 256),
    "a third, one row over": (289, 384),
    "wide": (101, 333),
    "high": (350, 90),
    "small": (31, 40),
    "one pixel": (1, 1),
}


@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "any size"])
@pytest.mark.parametrize("size", SIZES)
def test_the_pixels_are_those_of_opencv(size: str, dynamic: bool) -> None:
    height, width = SIZES[size]
    enlarged = min(INPUT[0] / height, INPUT[1] / width) > 1
    found = difference(smooth_image(height, width), PLAIN, dynamic)
    assert found.max() <= (2 if enlarged else 1)
    assert found.mean() < (0.2 if enlarged else 0.05)


@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "any size"])
@pytest.mark.parametrize(
    "config",
    [LetterboxConfig(border=5, inner_size=100), LetterboxConfig(upscale=False), LetterboxConfig(border=16)],
)
def test_every_setting(config: LetterboxConfig, dynamic: bool) -> None:
    for size in ((50, 60), (200, 150)):
        assert difference(smooth_image(*size), config, dynamic).max() <= 2


@given(st.integers(1, 4000), st.integers(1, 4000), st.sampled_from([(640, 640), (96, 128), (320, 64)]),
       st.sampled_from([PLAIN, LetterboxConfig(upscale=False), LetterboxConfig(border=3, inner_size=50)]))  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_the_geometry_in_whole_numbers_is_the_one_in_floats(
    height: int, width: int, imgsz: tuple[int, int], config: LetterboxConfig
) -> None:
    place = placement((height, width), Rooms.of(imgsz, config), config)
    there = letterbox_transform(width, height, imgsz, config)
    assert (place.left, place.top) == (there.left, there.top)
    assert (place.width, place.height) == (round(width * there.scale_x), round(height * there.scale_y))


def test_real_images(shared: Path) -> None:
    means = []
    for path in sorted((shared / "data/coco128/images/val2017").glob("*.jpg"))[:6]:
        found = difference(read_image(path), PLAIN, True, (320, 320))
        means.append(found.mean())
        assert found.max() <= 1
    assert np.mean(means) < 0.02


def test_batches_and_the_operators_of_each_case() -> None:
    images = np.stack([smooth_image(192, 256, seed) for seed in range(3)])
    model = letterbox_input(pixels_out(INPUT), PLAIN, (192, 256))
    (together,) = run(model, x=images)
    for index in range(3):
        (alone,) = run(model, x=images[index : index + 1])
        np.testing.assert_array_equal(together[index], alone[0])
    assert "AveragePool" in kinds(model) and "Resize" not in kinds(model)
    assert kinds(letterbox_input(pixels_out(INPUT), PLAIN, INPUT)) == ["Cast", "Transpose", "Conv"]
    assert "Resize" in kinds(letterbox_input(pixels_out(INPUT), PLAIN, (48, 50)))
    assert kinds(letterbox_input(pixels_out(INPUT), PLAIN, (200, 300))).count("MatMul") == 2


def test_refusals() -> None:
    plain = graph("g (float[1,3,8,8] x) => (float[1,4,8,8] y) { y = Conv(x, w) }", w=normal(1, 4, 3, 1, 1))
    with pytest.raises(GraphError, match="bytes"):
        letterbox_input(plain, PLAIN)
    with pytest.raises(GraphError, match="letterboxes already"):
        letterbox_input(letterbox_input(pixels_out(INPUT), PLAIN), PLAIN)
    with pytest.raises(GraphError, match="does not fit"):
        letterbox_input(pixels_out(INPUT), LetterboxConfig(border=48))
    free = graph("g (float[1,3,H,W] x) => (float[1,4,H,W] y) { y = Conv(x, w) }", w=normal(1, 4, 3, 1, 1))
    with pytest.raises(GraphError, match="one size"):
        letterbox_input(uint8_input(free), PLAIN)
