"""Data sets in COCO form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_sets import write_data_yaml, write_image

from repq.data import load_dataset
from repq.errors import DataError


def content() -> dict[str, Any]:
    """Two images of 40x30; category ids with gaps and out of order."""
    return {
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "images": [
            {"id": 1, "file_name": "a.jpg", "width": 40, "height": 30},
            {"id": 2, "file_name": "b.jpg", "width": 40, "height": 30},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 7, "bbox": [4, 6, 8, 12], "area": 50.5, "iscrowd": 0},
            {"id": 2, "image_id": 1, "category_id": 3, "bbox": [0, 0, 20, 15], "iscrowd": 0},
            {"id": 3, "image_id": 1, "category_id": 3, "bbox": [20, 15, 20, 15], "area": 9, "iscrowd": 1},
        ],
    }


def write_coco(root: Path, values: dict[str, Any]) -> Path:
    for name in ("a", "b"):
        write_image(root / "images" / "val" / f"{name}.jpg")
    path = root / "annotations" / "instances_val.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(values))
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPQ_CACHE", str(tmp_path / "cache"))


def test_boxes_areas_and_crowds(tmp_path: Path) -> None:
    dataset = load_dataset(write_coco(tmp_path, content()), "val")
    assert dataset.names == ("cat", "dog")  # by category id
    assert [record.name for record in dataset.records] == ["images/val/a.jpg", "images/val/b.jpg"]
    first, second = dataset.records
    np.testing.assert_allclose(first.labels, [[1, 0.2, 0.4, 0.2, 0.4], [0, 0.25, 0.25, 0.5, 0.5]], rtol=1e-6)
    np.testing.assert_allclose(first.areas, [50.5, 300], rtol=1e-6)
    np.testing.assert_allclose(first.crowds, [[0, 0.75, 0.75, 0.5, 0.5]], rtol=1e-6)
    assert not len(second.labels)
    assert not dataset.problems.count


def test_every_way_to_name_it_gives_the_same(tmp_path: Path) -> None:
    path = write_coco(tmp_path, content())
    expected = [record.labels.tolist() for record in load_dataset(path, "val").records]
    json_name = "annotations/instances_val.json"
    for values in (
        {"val": "images/val", "val_annotations": json_name},
        {"val": json_name},
        {"val": json_name, "val_images": "images/val"},
        {"val": json_name, "names": ["cat", "dog"]},
    ):
        dataset = load_dataset(write_data_yaml(tmp_path, **values), "val")
        assert [record.labels.tolist() for record in dataset.records] == expected
        assert dataset.names == ("cat", "dog")


def test_names_of_the_description_fix_the_class_ids(tmp_path: Path) -> None:
    write_coco(tmp_path, content())
    path = write_data_yaml(tmp_path, val="annotations/instances_val.json", names=["bird", "dog", "cat"])
    dataset = load_dataset(path, "val")
    assert dataset.names == ("bird", "dog", "cat")
    assert dataset[0].labels[:, 0].tolist() == [1, 2]
    write_data_yaml(tmp_path, val="annotations/instances_val.json", names=["cat"])
    with pytest.raises(DataError, match=r"(?s)do not fit.*dog"):
        load_dataset(path, "val")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"category_id": 99}, "unknown category 99"),
        ({"category_id": [1]}, "unknown category"),
        ({"bbox": [1, 2, 3]}, "no bbox of four numbers"),
        ({"bbox": [1, 2, "x", 3]}, "no bbox of four numbers"),
        ({"bbox": [1, 2, "0_1", 3]}, "no bbox of four numbers"),
        ({"bbox": [1, 2, "\uff15", 3]}, "no bbox of four numbers"),
        ({"bbox": [1, 2, "nan", 3]}, "no bbox of four numbers"),
        ({"bbox": None}, "no bbox of four numbers"),
        ({"bbox": [1, 2, float("nan"), 3]}, "not finite"),
        ({"bbox": [1, 2, 0, 3]}, "without area"),
        ({"bbox": [1, 2, 1e-60, 3]}, "without area"),
        ({"bbox": [], "segmentation": {"size": [30, 40], "counts": [3, 4]}}, "only a mask"),
        ({"bbox": [50, 2, 5, 3]}, "without area inside the image"),
        ({"image_id": 99}, "no image 99"),
    ],
)
def test_a_broken_annotation_is_left_out_and_named(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    values = content()
    values["annotations"][0].update(change)
    dataset = load_dataset(write_coco(tmp_path, values), "val")
    assert dataset.objects == 1
    assert len(dataset.problems.labels) == 1
    assert reason in dataset.problems.labels[0]


def test_boxes_are_cut_at_the_edges(tmp_path: Path) -> None:
    values = content()
    values["annotations"] = [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [-10, 15, 20, 100]}]
    labels = load_dataset(write_coco(tmp_path, values), "val")[0].labels
    np.testing.assert_allclose(labels, [[0, 0.125, 0.75, 0.25, 0.5]], rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bbox": [4, 6, 36.9, 12]}, None),
        ({"bbox": [4, 6, 38, 12]}, "1 box reaches beyond its image and is cut"),
        ({"ignore": 1}, "1 annotation is marked as ignored or difficult"),
        ({"difficult": True}, "1 annotation is marked as ignored or difficult"),
        ({"ignore": 0, "difficult": "0"}, None),
        ({"bbox": [0, 0, 20, 15], "category_id": 3}, "1 annotation repeats an earlier one"),
    ],
)
def test_what_counts_otherwise_than_it_is_written_is_said(
    tmp_path: Path, change: dict[str, Any], said: str | None
) -> None:
    values = content()
    values["annotations"][0].update(change)
    dataset = load_dataset(write_coco(tmp_path, values), "val")
    assert dataset.objects == 2 and not dataset.problems.count
    assert [note[: len(said or "")] for note in dataset.problems.notes] == ([said] if said else [])


def test_boxes_in_fractions_of_the_image_are_refused(tmp_path: Path) -> None:
    values = content()
    for annotation in values["annotations"]:
        annotation["bbox"] = [value / 40 for value in annotation["bbox"]]
    with pytest.raises(DataError, match="cannot be in pixels"):
        load_dataset(write_coco(tmp_path, values), "val")


@pytest.mark.parametrize("form", [int, float, str])
@pytest.mark.parametrize("key", ["id", "image_id", "category_id", "width"])
def test_numbers_count_by_their_value(tmp_path: Path, form: type, key: str) -> None:
    """Tables write ids as 1.0, other tools as "1"."""
    values = content()
    for entry in (entry for entries in values.values() for entry in entries if key in entry):
        entry[key] = form(entry[key])
    dataset = load_dataset(write_coco(tmp_path, values), "val")
    assert [len(record.labels) for record in dataset.records] == [2, 0]
    assert not dataset.problems.count


@pytest.mark.parametrize("name", ["\ud800.jpg", "a\0.jpg", "x" * 5000, "~nosuchuser/a.jpg", "http://host/a.jpg"])
def test_a_file_name_that_cannot_be_costs_one_image(tmp_path: Path, name: str) -> None:
    values = content()
    values["images"][1]["file_name"] = name
    dataset = load_dataset(write_coco(tmp_path, values), "val")
    assert len(dataset) == 1 and len(dataset.problems.images) == 1


def test_images_of_another_size_or_missing_are_left_out(tmp_path: Path) -> None:
    values = content()
    values["images"][1].update(width=400, height=300)
    values["images"].append({"id": 3, "file_name": "absent.jpg"})
    dataset = load_dataset(write_coco(tmp_path, values), "val")
    assert len(dataset) == 1
    assert dataset.problems.images == (
        "absent.jpg: No such file or directory",
        "images/val/b.jpg: the image has 40x30 pixels, the annotation file says 400x300",
    )


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"images": 1, "categories": 2}', "null", "\udcff"])
def test_what_is_no_annotation_file_is_refused(tmp_path: Path, text: str) -> None:
    path = write_coco(tmp_path, {})
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=r"no valid JSON|no COCO annotation file"):
        load_dataset(path, "val")


def test_real_annotations_agree_with_the_yolo_labels(shared: Path) -> None:
    root = shared / "data" / "bccd"
    yolo = load_dataset(root / "data.yaml", "val")
    coco = load_dataset(root / "annotations" / "instances_val.json", "val")
    assert [record.name for record in coco.records] == [record.name for record in yolo.records]
    assert coco.names == yolo.names
    for a, b in zip(coco.records, yolo.records, strict=True):
        np.testing.assert_allclose(a.labels, b.labels, atol=1e-5)
        np.testing.assert_allclose(a.areas, b.areas, rtol=1e-4)


@pytest.mark.parametrize("second", ["a.jpg", "./a.jpg", "below/../a.jpg", "images/val/a.jpg", "val/a.jpg"])
@pytest.mark.parametrize("first", ["a.jpg", "images/val/a.jpg"])
def test_an_image_of_two_entries_has_the_objects_of_both(tmp_path: Path, first: str, second: str) -> None:
    """However its name is written: joined files of several people name it in several ways."""
    values = content()
    for image, name in zip(values["images"], (first, second), strict=True):
        image["file_name"] = name
    for annotation, image in zip(values["annotations"], (1, 2, 2), strict=True):
        annotation["image_id"] = image
    path = write_coco(tmp_path, values)
    extra = {"val": "annotations/instances_val.json", "val_images": ["images/val", "images", "."]}
    (record,) = load_dataset(write_data_yaml(tmp_path, **extra), "val").records
    assert (len(record.labels), len(record.crowds)) == (2, 1)
    values["images"][0]["width"] = 41
    path.write_text(json.dumps(values))
    if first != second:  # of equal names the last counts
        with pytest.raises(DataError, match="the annotation file says 41x30"):
            load_dataset(path.parents[1] / "data.yaml", "val")


@pytest.mark.parametrize("form", [int, float, str])
def test_areas_count_by_their_value(tmp_path: Path, form: type) -> None:
    values = content()
    for annotation in values["annotations"]:
        annotation["area"] = form(17)
    assert load_dataset(write_coco(tmp_path, values), "val")[0].areas.tolist() == [17, 17]
