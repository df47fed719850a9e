"""Images that settings are chosen on and accuracy is reported on."""

from __future__ import annotations

from pathlib import Path

from repq.data import load_dataset, make_demo_set, warn_of_overlap
from repq.recipe import DemoConfig


def test_equal_images_are_warned_of_whatever_their_names(tmp_path: Path) -> None:
    data = make_demo_set(tmp_path / "set", DemoConfig(train_images=3, val_images=2, size=64))
    train, val = (load_dataset(data, split) for split in ("train", "val"))
    said: list[str] = []
    warn_of_overlap(train.records, val.records, said.append)
    assert said == []
    val.records[1].path.write_bytes(train.records[2].path.read_bytes())
    warn_of_overlap(train.records, val.records, said.append)
    assert len(said) == 1 and "1 of 3 images" in said[0] and train.records[2].name in said[0]
