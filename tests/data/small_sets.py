"""Small data sets on disk for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import yaml


def write_image(path: Path, width: int = 40, height: int = 30, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    assert cv2.imwrite(str(path), image)
    return path


def write_yolo(root: Path, labels: dict[str, str | None], *, names: object = ("a", "b"), **extra: object) -> Path:
    """Write images/val/NAME.jpg and labels/val/NAME.txt (none for None) and the data.yaml, whose path is returned."""
    for seed, (name, text) in enumerate(labels.items()):
        write_image(root / "images" / "val" / f"{name}.jpg", seed=seed)
        if text is not None:
            label = root / "labels" / "val" / f"{name}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text(text)
    return write_data_yaml(root, names=list(names) if isinstance(names, tuple) else names, **extra)


def write_data_yaml(root: Path, **values: object) -> Path:
    path = root / "data.yaml"
    content = {"path": ".", "val": "images/val", **values}
    path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    return path
