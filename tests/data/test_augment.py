"""Boxes follow the pixels: white rectangles are drawn, transformed, and found again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repq.data import ImageCache, ImageRecord, letterbox, letterbox_transform
from repq.data.augment import (
    MIN_SIDE,
    Placement,
    SamplePlan,
    blend,
    mirror,
    mix,
    mosaic_placements,
    place_objects,
    plan_sample,
    recolour,
    render,
    shifting_table,
    single_placement,
    turn_over,
)
from repq.errors import DataError
from repq.preprocessing import PRESETS, Preprocessing
from repq.recipe import LetterboxConfig, TrainConfig

QUIET = TrainConfig(hsv=(0, 0, 0), flip=0.5, translate=0.2, scale=0.5, mosaic=0.0)


def records(folder: Path, size: tuple[int, int], count: int = 6) -> list[ImageRecord]:
    """Black images with one white rectangle each, and its label."""
    rng = np.random.default_rng(0)
    height, width = size
    found = []
    for index in range(count):
        x1, y1 = rng.integers(0, width // 2), rng.integers(0, height // 2)
        x2, y2 = x1 + rng.integers(20, width // 2), y1 + rng.integers(20, height // 2)
        image = np.zeros((height, width, 3), np.uint8)
        image[y1:y2, x1:x2] = 255
        path = folder / f"{index}.png"
        cv2.imwrite(str(path), image)
        row = [0, (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height]
        found.append(ImageRecord(path.name, path, width, height, np.array([row], np.float32)))
    return found


class Sample(NamedTuple):
    image: np.ndarray
    objects: np.ndarray


def draw_sample(cache: ImageCache, *arguments: Any) -> Sample:
    plan = plan_sample(cache, *arguments)
    return Sample(render(plan, cache), plan.objects)


def drawn_extent(image: np.ndarray, box: np.ndarray) -> tuple[float, ...]:
    """Extent of the white pixels in and around a box."""
    x1, y1, x2, y2 = (int(v) for v in (box[0] - 4, box[1] - 4, box[2] + 5, box[3] + 5))
    x1, y1 = max(x1, 0), max(y1, 0)
    rows, columns = np.nonzero(image[y1:y2, x1:x2].min(axis=2) > 185)  # between grey and white
    return columns.min() + x1, rows.min() + y1, columns.max() + 1 + x1, rows.max() + 1 + y1


@pytest.mark.parametrize("size", [(120, 160), (320, 200)])
@pytest.mark.parametrize("mosaic", [0.0, 1.0])
@pytest.mark.parametrize("imgsz", [(128, 128), (96, 160)])
def test_boxes_lie_where_the_pixels_are(tmp_path: Path, size, mosaic: float, imgsz) -> None:
    config = QUIET.model_copy(update={"mosaic": mosaic})
    cache = ImageCache(records(tmp_path, size), imgsz, max_bytes=1 << 24)
    checked = 0
    for index in range(40):
        sample = draw_sample(cache, index % len(cache), imgsz, config, np.random.default_rng(index))
        assert sample.image.shape == (*imgsz, 3)
        boxes = sample.objects[:, 1:]
        assert (boxes >= 0).all()
        assert (boxes <= [imgsz[1], imgsz[0]] * 2).all()
        for box in boxes:
            if (box[2:] - box[:2]).min() > 6:
                assert drawn_extent(sample.image, box) == pytest.approx(tuple(box), abs=1.5)  # soft edges
                checked += 1
    assert checked > 25


def test_cutting_drops_what_is_hardly_left() -> None:
    objects = np.array(
        [[0, 10, 10, 30, 30], [1, -95, 0, 5, 100], [2, -50, 0, 50, 100], [3, 60, 60, 61, 90], [4, 200, 200, 220, 220]],
        np.float32,
    )
    kept = place_objects(objects, Placement(np.eye(2), np.zeros(2), (0, 0, 100, 100)))
    assert kept.tolist() == [[0, 10, 10, 30, 30], [2, 0, 0, 50, 100]]  # 1: a 20th left; 3: one pixel wide; 4: outside


def test_an_empty_region_or_no_object_leaves_nothing() -> None:
    objects = np.array([[0, 10, 10, 30, 30]], np.float32)
    assert place_objects(objects, Placement(np.eye(2), np.zeros(2), (20, 0, 20, 100))).shape == (0, 5)
    assert place_objects(objects[:0], Placement(np.eye(2), np.zeros(2), (0, 0, 100, 100))).shape == (0, 5)


def plan_of(*rows: list[float], imgsz: tuple[int, int] = (20, 30)) -> SamplePlan:
    """A plan without images, with these objects."""
    return SamplePlan(imgsz, 114, (), np.array(rows, np.float32))


def test_mirror_twice_is_nothing() -> None:
    plan = plan_of([1, 2, 3, 9, 8])
    once = mirror(plan)
    assert once.mirrored
    assert once.objects.tolist() == [[1, 21, 3, 28, 8]]
    twice = mirror(once)
    assert not twice.mirrored
    assert (twice.objects == plan.objects).all()


def test_colours_keep_grey_grey_and_zero_strength_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (16, 16, 3), np.uint8)
    assert shifting_table((0, 0, 0), rng) == ()
    grey = np.repeat(image[..., :1], 3, axis=2)
    shifted = recolour(grey, *shifting_table((0.1, 0.7, 0.0), rng))
    assert np.abs(shifted.astype(int) - grey).max() <= 1  # rounding through HSV


def test_same_generator_same_sample_and_the_cache_changes_nothing(tmp_path: Path) -> None:
    found = records(tmp_path, (120, 160))
    config = TrainConfig(mosaic=0.5)
    caches = [ImageCache(found, (128, 128), max_bytes) for max_bytes in (0, 50_000, 1 << 24)]
    for index in range(12):
        samples = [draw_sample(cache, index % 6, (128, 128), config, np.random.default_rng(index)) for cache in caches]
        assert all((sample.image == samples[0].image).all() for sample in samples)
        assert all((sample.objects == samples[0].objects).all() for sample in samples)


def test_the_cache_keeps_to_its_bound(tmp_path: Path) -> None:
    cache = ImageCache(records(tmp_path, (120, 160)), (128, 128), max_bytes=100_000)  # 96 x 128 x 3 bytes each
    for index in range(len(cache)):
        cache.image(index)
    assert len(cache._images) == 2


@given(side=st.tuples(st.integers(1, 300), st.integers(1, 300)))
def test_images_for_stretched_inputs_keep_what_the_input_has_room_for(side: tuple[int, int]) -> None:
    record = ImageRecord("a.png", Path("a.png"), side[1], side[0])
    cache = ImageCache([record], (96, 160), 0, stretch=True)
    assert cache.size(0) == (min(96, side[0]), min(160, side[1]))


def test_a_stretched_sample_is_what_evaluation_sees(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (48, 400, 3), dtype=np.uint8)
    image = cv2.GaussianBlur(image, (0, 0), 3)
    cv2.imwrite(str(tmp_path / "a.png"), image)
    cache = ImageCache([ImageRecord("a.png", tmp_path / "a.png", 400, 48)], (96, 96), 1 << 20, stretch=True)
    config = TrainConfig(mosaic=0, flip=0, hsv=(0, 0, 0), translate=0, scale=(1, 1))
    form = Preprocessing(stretch=True)
    drawn = draw_sample(cache, 0, (96, 96), config, np.random.default_rng(0), form).image
    seen = letterbox(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), (96, 96), config.letterbox, form)[0]
    assert np.abs(drawn.astype(int) - seen).mean() < 1


def test_a_plan_needs_no_image_and_its_sample_has_its_objects(tmp_path: Path) -> None:
    found = records(tmp_path, (120, 160))
    config = TrainConfig(mosaic=0.5, mixup=0.5, flip=0.5, flip_vertical=0.5)
    absent = ImageCache([replace(record, file=tmp_path / "absent.png") for record in found], (96, 96), 1 << 24)
    cache = ImageCache(found, (96, 96), 1 << 24)
    assert all(cache.size(index) == cache.image(index).shape[:2] for index in range(len(cache)))
    for index in range(12):
        plan = plan_sample(absent, index % 6, (96, 96), config, np.random.default_rng(index))
        sample = draw_sample(cache, index % 6, (96, 96), config, np.random.default_rng(index))
        assert (render(plan, cache) == sample.image).all()
        assert (plan.objects == sample.objects).all()


def test_a_file_that_changed_since_the_set_was_read_is_refused(tmp_path: Path) -> None:
    cache = ImageCache(records(tmp_path, (120, 160)), (128, 128), 1 << 24)
    cv2.imwrite(str(cache.records[0].path), np.zeros((120, 100, 3), np.uint8))
    with pytest.raises(DataError, match="100x120 pixels in place of 160x120"):
        draw_sample(cache, 0, (128, 128), QUIET, np.random.default_rng(0))


def test_turn_over_twice_is_nothing() -> None:
    plan = plan_of([1, 2, 3, 9, 8])
    once = turn_over(plan)
    assert once.turned_over
    assert once.objects.tolist() == [[1, 2, 12, 9, 17]]
    twice = turn_over(once)
    assert not twice.turned_over
    assert (twice.objects == plan.objects).all()


@pytest.mark.parametrize("changes", [{"rotate": 30.0}, {"shear": 15.0}, {"rotate": 180.0, "shear": 10.0}])
@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_turned_boxes_lie_around_the_turned_pixels(tmp_path: Path, changes: dict, mosaic: float) -> None:
    config = QUIET.model_copy(update={"scale": (0.8, 1.2), "mosaic": mosaic, "flip_vertical": 0.5, **changes})
    cache = ImageCache(records(tmp_path, (120, 160)), (128, 128), max_bytes=1 << 24)
    checked = 0
    for index in range(60):
        sample = draw_sample(cache, index % len(cache), (128, 128), config, np.random.default_rng(index))
        white = sample.image.min(axis=2) > 185
        for x1, y1, x2, y2 in sample.objects[:, 1:]:
            # a turned box that the line between two images cuts may be wider than what is left of its pixels
            is_whole = not mosaic and min(x1, y1) > 2 and max(x2, y2) < 126
            if is_whole and min(x2 - x1, y2 - y1) > 12:
                # corners of turned rectangles are thin, so the last pixels of them are grey
                assert drawn_extent(sample.image, np.array([x1, y1, x2, y2])) == pytest.approx((x1, y1, x2, y2), abs=3)
                checked += 1
        covered = np.zeros_like(white)
        for x1, y1, x2, y2 in sample.objects[:, 1:]:
            covered[max(int(y1) - 1, 0) : int(y2) + 2, max(int(x1) - 1, 0) : int(x2) + 2] = True
        # what no box covers is what was dropped: hardly anything was left of it
        assert (white & ~covered).sum() < 0.05 * white.size
    assert mosaic or checked > 10


def test_mixed_samples_blend_pixels_and_keep_all_objects() -> None:
    rng = np.random.default_rng(0)
    both = mix(plan_of([0, 1, 1, 5, 5]), plan_of(*[[1, 1, 1, 5, 5]] * 2), 0.3)
    assert both.objects[:, 0].tolist() == [0, 1, 1]
    images = [rng.integers(0, 255, (8, 8, 3), np.uint8) for _ in range(2)]
    expected = 0.3 * images[0].astype(float) + 0.7 * images[1]
    assert np.abs(blend(*images, both.share) - expected).max() <= 0.5 + 1e-6


def test_mixup_adds_the_objects_of_another_image(tmp_path: Path) -> None:
    cache = ImageCache(records(tmp_path, (120, 160)), (128, 128), max_bytes=1 << 24)
    still = TrainConfig(hsv=(0, 0, 0), flip=0, translate=0, scale=0, mixup=1)
    sample = draw_sample(cache, 2, (128, 128), still, np.random.default_rng(0))
    assert len(sample.objects) == 2
    assert set(np.unique(sample.image)) - {0, 114, 255}  # partly covered


@pytest.mark.parametrize("border", [0, 8])
def test_the_letterbox_leaves_its_border(tmp_path: Path, border: int) -> None:
    letterbox = LetterboxConfig(border=border)
    config = TrainConfig(hsv=(0, 0, 0), flip=0, translate=0, scale=0, letterbox=letterbox)
    cache = ImageCache(records(tmp_path, (128, 128)), (128, 128), max_bytes=1 << 24)
    sample = draw_sample(cache, 0, (128, 128), config, np.random.default_rng(0), Preprocessing(pad=80))
    grey = (sample.image == 80).all(axis=2)
    inside = slice(border + 1, 128 - border - 1)
    assert not grey[inside, inside].any()
    assert grey[:, : max(border - 1, 0)].all()
    assert (sample.objects[:, 1:] >= border - 1e-3).all()
    assert (sample.objects[:, 1:] <= 128 - border + 1e-3).all()


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_grey_and_16_bit_images_are_samples_like_others(tmp_path: Path, kind: type) -> None:
    image = np.full((64, 64), np.iinfo(kind).max, kind)
    cv2.imwrite(str(tmp_path / "grey.png"), image)
    row = np.array([[0, 0.5, 0.5, 1, 1]], np.float32)
    cache = ImageCache([ImageRecord("grey.png", tmp_path / "grey.png", 64, 64, row)], (64, 64), 1 << 20)
    config = TrainConfig(translate=0, scale=0, hsv=(0, 0, 0))
    sample = draw_sample(cache, 0, (64, 64), config, np.random.default_rng(0))
    assert (sample.image == 255).all()
    assert sample.objects.tolist() == [[0, 0, 0, 64, 64]]


SHARE = st.floats(0, 1)


@settings(max_examples=60, deadline=None)
@given(SHARE, SHARE, SHARE, SHARE, st.integers(0, 2**32 - 1), st.booleans())
def test_boxes_stay_inside_and_upright(a: float, b: float, c: float, d: float, seed: int, mosaic: bool) -> None:
    """Any box, at the border or outside it after the move: what is left is inside and large enough to see."""
    rng = np.random.default_rng(seed)
    config = TrainConfig(rotate=20, shear=10, scale=0.9, translate=0.4)
    objects = np.array([[3, min(a, b) * 90, min(c, d) * 50, max(a, b) * 90, max(c, d) * 50]], np.float32)
    size, imgsz = (50, 90), (64, 96)
    placements = (
        mosaic_placements([size] * 4, imgsz, config, rng) if mosaic else [single_placement(size, imgsz, config, rng)]
    )
    for placement in placements:
        for class_id, x1, y1, x2, y2 in place_objects(objects, placement):
            left, top, right, bottom = placement.region
            assert class_id == 3
            assert left <= x1 <= x2 - MIN_SIDE
            assert x2 <= right
            assert top <= y1 <= y2 - MIN_SIDE
            assert y2 <= bottom


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
@pytest.mark.parametrize("mosaic", [False, True])
@given(side=st.tuples(st.integers(20, 400), st.integers(20, 400)), seed=st.integers(0, 99))
def test_images_have_the_shape_that_evaluation_gives_them(
    preset: Any, mosaic: bool, side: tuple[int, int], seed: int
) -> None:
    config = TrainConfig(translate=0.3, scale=(1, 1))
    rng = np.random.default_rng(seed)
    place = letterbox_transform(side[1], side[0], (96, 160), config.letterbox, preset.preprocessing)
    make = mosaic_placements if mosaic else single_placement
    made = make([side] * 4 if mosaic else side, (96, 160), config, rng, preset.preprocessing)  # type: ignore[arg-type]
    for placement in made if mosaic else [made]:
        extent = placement.linear @ [side[1], side[0]]
        np.testing.assert_allclose(extent, [place.scale_x * side[1], place.scale_y * side[0]], atol=1)  # whole pixels
