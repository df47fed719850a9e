"""The letterbox: geometry, the two options against the grey border, and the way back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from repq.data import letterbox, letterbox_transform
from repq.errors import DataError
from repq.recipe import LetterboxConfig

sides = st.integers(1, 2000)
inputs = st.tuples(st.integers(32, 640), st.integers(32, 640))


@given(sides, sides, inputs, st.integers(0, 12), st.booleans(), st.integers(0, 9))
@settings(max_examples=200, deadline=None)
def test_boxes_come_back_to_where_they_were(
    width: int, height: int, imgsz: tuple[int, int], border: int, upscale: bool, seed: int
) -> None:
    transform = letterbox_transform(width, height, imgsz, LetterboxConfig(border=border, upscale=upscale))
    corners = np.random.default_rng(seed).uniform(-0.2, 1.2, (5, 4)) * [width, height, width, height]
    # Double precision: only the rounding of one multiplication and one division is left.
    atol = 1e-9 * max(width, height)
    np.testing.assert_allclose(transform.to_original(transform.to_input(corners)), corners, atol=atol)
    clipped = transform.to_original(transform.to_input(corners), clip=True)
    assert (clipped >= 0).all()
    assert (clipped <= [width, height, width, height]).all()


@given(width=sides, height=sides, imgsz=inputs, border=st.integers(0, 12), inner=st.none() | st.integers(16, 640))
@settings(max_examples=200, deadline=None)
def test_the_image_keeps_its_shape_and_stays_inside_the_border(
    width: int, height: int, imgsz: tuple[int, int], border: int, inner: int | None
) -> None:
    room = (imgsz[0] - 2 * border, imgsz[1] - 2 * border)
    assume(inner is None or inner <= max(room))
    transform = letterbox_transform(width, height, imgsz, LetterboxConfig(border=border, inner_size=inner))
    x1, y1, x2, y2 = transform.to_input(np.array([[0, 0, width, height]]))[0]
    limit = max(room) if inner is None else inner
    assert border <= x1
    assert border <= y1
    assert x2 <= imgsz[1] - border + 1e-9
    assert y2 <= imgsz[0] - border + 1e-9
    assert max(x2 - x1, y2 - y1) <= limit + 1e-9
    # Each side is cut to whole pixels, so it is short of the exact size by less than one, or is the one pixel it needs.
    ratio = min(room[0] / height, room[1] / width, limit / max(width, height))
    assert max(1, ratio * width) - (x2 - x1) < 1
    assert max(1, ratio * height) - (y2 - y1) < 1
    # It lies in the middle, up to the pixel that an odd rest leaves.
    assert -1e-9 <= imgsz[1] - x2 - x1 <= 1 + 1e-9
    assert -1e-9 <= imgsz[0] - y2 - y1 <= 1 + 1e-9


def test_an_image_of_the_right_size_is_left_alone() -> None:
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    np.testing.assert_array_equal(letterbox(image, (48, 64))[0], image)


def test_small_images_grow_only_if_wanted() -> None:
    assert letterbox_transform(10, 10, (64, 64)).scale_x == 6.4
    assert letterbox_transform(10, 10, (64, 64), LetterboxConfig(upscale=False)).scale_x == 1


@pytest.mark.parametrize("config", [LetterboxConfig(border=16), LetterboxConfig(border=2, inner_size=29)])
def test_a_border_without_room_is_refused(config: LetterboxConfig) -> None:
    with pytest.raises(DataError, match="does not fit"):
        letterbox_transform(10, 10, (32, 32), config)
