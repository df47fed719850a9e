"""Orders of an epoch: complete when balanced, fair to rare classes when asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from repq.data import ImageCache, ImageRecord
from repq.data.letterbox import rooms
from repq.errors import DataError
from repq.recipe import LetterboxConfig, LoopConfig
from repq.train import loader
from repq.train.loader import epoch_order, image_weights, scaled_size, training_batches


def record(*classes: int) -> ImageRecord:
    labels = np.array([[class_id, 0.5, 0.5, 0.2, 0.2] for class_id in classes], np.float32).reshape(-1, 5)
    return ImageRecord("a.jpg", Path("a.jpg"), 10, 10, labels)


RECORDS = [*[record(0)] * 80, *[record(0, 0, 1)] * 15, *[record(2)] * 1, *[record()] * 4]


def test_weights_follow_the_rarest_class_of_an_image() -> None:
    assert image_weights(RECORDS, 0).tolist() == [1.0] * 100
    weights = image_weights(RECORDS, 1)
    assert weights[[0, 80, 95, 96]] == pytest.approx([1, 95 / 15, 95, 1])
    assert image_weights(RECORDS, 0.5) == pytest.approx(np.sqrt(weights))
    assert image_weights([record(), record()], 1).tolist() == [1, 1]


def test_equal_weights_give_every_image_once() -> None:
    order = epoch_order(np.ones(17), seed=3, epoch=1)
    assert sorted(order) == list(range(17))
    assert order != epoch_order(np.ones(17), seed=3, epoch=2)
    assert order == epoch_order(np.ones(17), seed=3, epoch=1)


def test_images_come_as_often_as_their_weights_say() -> None:
    weights = image_weights(RECORDS, 0.5)
    expected = weights / weights.sum() * 100
    total = np.zeros(100)
    for epoch in range(200):
        counts = np.bincount(epoch_order(weights, 0, epoch), minlength=100)
        assert counts.sum() == 100
        assert (np.abs(counts - expected) < 1 + 1e-9).all()
        total += counts
    # each count is its floor plus a coin of known bias: 200 of them have a standard error below 0.5 / sqrt(200)
    assert total / 200 == pytest.approx(expected, abs=5 * 0.5 / np.sqrt(200))


sides = st.integers(1, 12).map(lambda count: 32 * count)


def has_room(size: tuple[int, int], config: LetterboxConfig) -> bool:
    try:
        rooms(size, config)
    except DataError:
        return False
    return True


@given(st.tuples(sides, sides), st.integers(0, 150), st.none() | st.integers(1, 384), st.floats(0.3, 3))
def test_what_has_room_in_the_input_has_it_in_every_size_that_is_drawn(
    imgsz: tuple[int, int], border: int, inner: int | None, ratio: float
) -> None:
    config = LoopConfig(letterbox=LetterboxConfig(border=border, inner_size=inner))
    assume(has_room(imgsz, config.letterbox))
    size = scaled_size(imgsz, ratio, 32)
    fitted = loader._fitted(config, imgsz, size).letterbox
    assert has_room(size, fitted)
    if size == imgsz:
        assert fitted == config.letterbox


def test_wide_inputs_of_many_sizes_keep_their_inner_size(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), np.zeros((40, 120, 3), np.uint8))
    cache = ImageCache([replace(record(0), file=path, width=120, height=40)] * 6, (96, 160), 1 << 20)
    config = LoopConfig(batch=1, workers=0, multi_scale=(0.5, 1.5), letterbox=LetterboxConfig(inner_size=90))
    sizes = {
        batch.images.shape[1:3]
        for epoch in range(5)
        for batch in training_batches(cache, (64, 96), config, seed=0, epoch=epoch)
    }
    assert len(sizes) > 3
