"""Data sets as labelling tools export them: every one holds the same two images and three objects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from small_sets import write_image

from repq.data import DetectionDataset, load_dataset

WIDTH, HEIGHT = 40, 30
BOXES = {"a": [(0, 4.0, 3.0, 20.0, 15.0), (1, 10.0, 6.0, 8.0, 9.0)], "b": [(1, 0.0, 0.0, 40.0, 30.0)]}
NAMES = ["cat", "dog"]


def line(row: tuple[float, ...], polygon: bool = False) -> str:
    label, x, y, w, h = row
    if polygon:
        corners = [(x, y), (x + w, y), (x + w, y + h), (x, y + h)]
        values = [value for cx, cy in corners for value in (cx / WIDTH, cy / HEIGHT)]
    else:
        values = [(x + w / 2) / WIDTH, (y + h / 2) / HEIGHT, w / WIDTH, h / HEIGHT]
    return " ".join([str(int(label)), *(f"{value:.6f}" for value in values)])


def labelled(images: Path, labels: Path, *, suffix: str = ".jpg", polygon: bool = False, end: str = "\n") -> None:
    labels.mkdir(parents=True, exist_ok=True)
    for seed, (name, rows) in enumerate(BOXES.items()):
        write_image(images / f"{name}{suffix}", WIDTH, HEIGHT, seed)
        (labels / f"{name}.txt").write_bytes("".join(line(row, polygon) + end for row in rows).encode())


def coco(first: int = 1, prefix: str = "", root: bool = False, **further: Any) -> dict[str, Any]:
    categories = [{"id": first + index, "name": name, "supercategory": ""} for index, name in enumerate(NAMES)]
    if root:
        categories = [{"id": 0, "name": "animals", "supercategory": "none"}, *categories]
    annotations = [
        {"id": 10 * number + index, "image_id": number, "category_id": first + int(row[0]), "bbox": list(row[1:]),
         "area": row[3] * row[4], "iscrowd": 0, "segmentation": [], **further}
        for number, rows in enumerate(BOXES.values()) for index, row in enumerate(rows)
    ]  # fmt: skip
    images = [{"id": number, "file_name": f"{prefix}{name}.jpg", "width": WIDTH, "height": HEIGHT}
              for number, name in enumerate(BOXES)]  # fmt: skip
    return {"info": {}, "licenses": [], "images": images, "categories": categories, "annotations": annotations}


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content) if path.suffix == ".json" else yaml.safe_dump(content))
    return path


def pictures(folder: Path) -> None:
    for seed, name in enumerate(BOXES):
        write_image(folder / f"{name}.jpg", WIDTH, HEIGHT, seed)


def cvat_ultralytics(root: Path) -> Path:
    labelled(root / "images" / "train", root / "labels" / "train", polygon=True)
    (root / "train.txt").write_text("".join(f"data/images/train/{name}.jpg\n" for name in BOXES))
    return write(root / "data.yaml", {"names": dict(enumerate(NAMES)), "path": ".", "val": "images/train"})


def cvat_yolo_1(root: Path) -> Path:
    labelled(root / "obj_train_data", root / "obj_train_data")
    (root / "obj.names").write_text("\n".join(NAMES))
    return write(root / "data.yaml", {"val": "obj_train_data", "names": NAMES})


def cvat_coco(root: Path) -> Path:
    pictures(root / "images")
    attributes = {"attributes": {"occluded": False, "rotation": 0.0}}
    return write(root / "annotations" / "instances_default.json", coco(**attributes))


def label_studio_yolo(root: Path) -> Path:
    labelled(root / "images", root / "labels", end="\r\n")
    (root / "notes.json").write_text(json.dumps({"categories": []}))
    (root / "classes.txt").write_text("\n".join(NAMES) + "\n")
    names = (root / "classes.txt").read_text().split()
    return write(root / "data.yaml", {"val": "images", "names": names})


def label_studio_coco(root: Path) -> Path:
    pictures(root / "images")
    return write(root / "result.json", coco(first=0, prefix="images\\", ignore=0))


def roboflow_yolo(root: Path) -> Path:
    labelled(root / "valid" / "images", root / "valid" / "labels")
    content = {"val": "../valid/images", "nc": 2, "names": NAMES, "roboflow": {"workspace": "x", "version": 1}}
    return write(root / "data.yaml", content)


def roboflow_coco(root: Path) -> Path:
    pictures(root / "valid")
    return write(root / "valid" / "_annotations.coco.json", coco(root=True))


EXPORTS = [cvat_ultralytics, cvat_yolo_1, cvat_coco, label_studio_yolo, label_studio_coco, roboflow_yolo, roboflow_coco]


def objects(dataset: DetectionDataset) -> dict[str, list[tuple[str, Any]]]:
    return {
        Path(record.name).stem: sorted((dataset.names[int(row[0])], *np.round(row[1:], 3)) for row in record.labels)
        for record in dataset.records
    }


@pytest.mark.parametrize("make", EXPORTS, ids=lambda make: make.__name__)
def test_an_export_is_read_as_it_was_labelled(make: Any, tmp_path: Path) -> None:
    dataset = load_dataset(make(tmp_path), "val")
    expected = {
        name: sorted(
            (
                NAMES[int(c)],
                *np.round(np.float32([(x + w / 2) / WIDTH, (y + h / 2) / HEIGHT, w / WIDTH, h / HEIGHT]), 3),
            )
            for c, x, y, w, h in rows
        )
        for name, rows in BOXES.items()
    }
    assert objects(dataset) == expected
    assert not dataset.problems.images and not dataset.problems.labels
    assert (make is cvat_ultralytics) == any("polygons" in note for note in dataset.problems.notes)
