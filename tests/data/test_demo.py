"""The drawn data set: the same for the same seed, true labels, all or nothing on disk."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from repq.data import demo as demo_module
from repq.data import load_dataset, make_demo_set
from repq.data.demo import SHAPES, draw_image
from repq.errors import DataError
from repq.recipe import DemoConfig

SMALL = DemoConfig(train_images=6, val_images=3, size=64, classes=3, seed=5)


def hashes(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_same_settings_same_files(tmp_path: Path) -> None:
    first, second = make_demo_set(tmp_path / "a", SMALL), make_demo_set(tmp_path / "b", SMALL)
    assert hashes(first.parent) == hashes(second.parent)
    other = make_demo_set(tmp_path / "c", SMALL.model_copy(update={"seed": 6}))
    assert hashes(other.parent)["images/train/00000.jpg"] != hashes(first.parent)["images/train/00000.jpg"]


def test_a_complete_set_is_reused_and_another_one_replaced(tmp_path: Path) -> None:
    data = make_demo_set(tmp_path / "set", SMALL)
    written = data.stat().st_mtime_ns
    assert make_demo_set(tmp_path / "set", SMALL) == data
    assert data.stat().st_mtime_ns == written
    make_demo_set(tmp_path / "set", SMALL.model_copy(update={"train_images": 2}))
    assert len(list((tmp_path / "set" / "images" / "train").iterdir())) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="other files"):
        make_demo_set(tmp_path, SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_nothing_is_left_of_a_drawing_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(config: DemoConfig, split: int, index: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_module, "draw_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_demo_set(tmp_path / "set", SMALL)
    assert not list(tmp_path.iterdir())


def test_loads_as_a_data_set_without_problems(tmp_path: Path) -> None:
    data = make_demo_set(tmp_path / "set", SMALL)
    train, val = load_dataset(data, "train"), load_dataset(data, "val")
    assert (len(train), len(val), train.problems.count) == (6, 3, 0)
    assert train.names == SHAPES[:3]
    assert train.objects > 0
    assert {record.width for record in train.records} == {64}


@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_the_boxes_reach_as_far_as_the_shapes(shape: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On black ground with white shapes, the boxes together reach as far as what is not black."""
    monkeypatch.setattr(demo_module, "SHAPES", SHAPES[shape:] + SHAPES[:shape])
    monkeypatch.setattr(demo_module, "_background", lambda rng, size: np.zeros((size, size, 3), np.uint8))
    monkeypatch.setattr(demo_module, "_contrasting_colour", lambda rng, under: np.full(3, 255.0))
    config = DemoConfig(size=96, classes=1)
    for index in range(10):
        drawn = draw_image(config, 0, index)
        rows, columns = np.nonzero(drawn.image.min(axis=2) > 80)
        found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        low = (drawn.labels[:, 1:3] - drawn.labels[:, 3:] / 2).min(axis=0) * 96
        high = (drawn.labels[:, 1:3] + drawn.labels[:, 3:] / 2).max(axis=0) * 96
        # soft edges, and thin tips that cover little of their last pixels
        assert found == pytest.approx((*low, *high), abs=2.5)


def test_labels_are_inside_the_image_and_cover_all_classes() -> None:
    config = DemoConfig(size=96, classes=8)
    labels = np.concatenate([draw_image(config, 0, index).labels for index in range(40)])
    assert set(labels[:, 0]) == set(range(8))
    assert (labels[:, 1:3] - labels[:, 3:] / 2 >= -1e-9).all()
    assert (labels[:, 1:3] + labels[:, 3:] / 2 <= 1 + 1e-9).all()
    assert (labels[:, 3:] * 96 > 4).all()
