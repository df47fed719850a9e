"""Batches: in order, complete, bounded ahead, equal for any number of threads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_sets import write_image

from repq.data import ImageRecord, LetterboxedImages, batches, letterbox, read_image
from repq.errors import DataError
from repq.recipe import LetterboxConfig


@pytest.fixture
def records(tmp_path: Path) -> list[ImageRecord]:
    sizes = [(40 + 3 * n, 30 + n) for n in range(7)]
    paths = [write_image(tmp_path / f"{n}.png", *size, seed=n) for n, size in enumerate(sizes)]
    return [ImageRecord(path.name, path, *size) for path, size in zip(paths, sizes, strict=True)]


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("batch", [1, 3, 7, 100])
def test_batches_hold_the_letterboxed_images_in_order(records: list[ImageRecord], workers: int, batch: int) -> None:
    config = LetterboxConfig(border=2)
    found = list(batches(records, (32, 64), batch, config, workers=workers))
    assert [len(part) for part in found[:-1]] == [batch] * (len(found) - 1)
    assert [index for part in found for index in part.indices] == list(range(7))
    images = np.concatenate([part.images for part in found])
    assert images.dtype == np.float32
    assert images.shape == (7, 3, 32, 64)
    for record, image, transform in zip(records, images, [t for part in found for t in part.transforms], strict=True):
        expected, where = letterbox(read_image(record.path), (32, 64), config)
        assert transform == where
        np.testing.assert_array_equal((image.transpose(1, 2, 0) * 255).round(), expected)
        assert image.min() >= 0
        assert image.max() <= 1


def test_no_records_no_batches() -> None:
    assert list(batches([], (32, 32), 4)) == []


def test_a_vanished_image_is_an_error(records: list[ImageRecord]) -> None:
    records[4].path.unlink()
    with pytest.raises(DataError, match="cannot read the image"):
        list(batches(records, (32, 32), 2))


@pytest.mark.parametrize("room", [0, 3 * 32 * 64 * 3, 1 << 20])
def test_kept_images_are_the_same_and_as_many_as_there_is_room_for(records: list[ImageRecord], room: int) -> None:
    kept, (whole,) = LetterboxedImages(room), batches(records, (32, 64), 7)
    (first,) = batches(records, (32, 64), 7, kept=kept)
    gone = min(7, room // (32 * 64 * 3))
    found = [record.path for record in records if kept.get(record.path) is not None]
    assert len(found) == gone
    for path in found:
        path.unlink()  # it is not read again
    (again,) = batches(records, (32, 64), 7, kept=kept)
    for part in (first, again):
        np.testing.assert_array_equal(part.images, whole.images)
        assert part.transforms == whole.transforms
