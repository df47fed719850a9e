"""Which files belong to a data set, and where the labels of an image lie."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from small_sets import write_data_yaml, write_image, write_yolo

from repq.data import calibration_set, load_dataset, read_manifest, write_manifest
from repq.data.image_files import below, find_images
from repq.errors import DataError
from repq.recipe import CalibrationConfig

BOX = "0 0.5 0.5 0.2 0.4"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPQ_CACHE", str(tmp_path / "cache"))


def objects(path: Path) -> dict[str, int]:
    return {record.name: len(record.labels) for record in load_dataset(path, "val").records}


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints/a.jpg", "._a.jpg", ".b/c/a.png", "@eaDir/a.jpg", "x/.a.jpg"])
def test_hidden_files_are_no_images_and_are_named(tmp_path: Path, hidden: str) -> None:
    path = write_yolo(tmp_path, {"a": BOX})
    write_image(tmp_path / "images" / "val" / hidden)
    data = load_dataset(path, "val")
    assert [record.name for record in data.records] == ["images/val/a.jpg"]
    (note,) = data.problems.notes
    assert hidden.split("/")[0].lstrip("x/") in note and note.startswith("1 ")


def test_a_root_below_a_hidden_folder_is_read(tmp_path: Path) -> None:
    assert objects(write_yolo(tmp_path / ".data" / "set", {"a": BOX})) == {"images/val/a.jpg": 1}


@pytest.mark.parametrize("linked", ["split", "images", "labels", "root", "file", "nested", "both"])
def test_links_lose_neither_images_nor_labels(tmp_path: Path, linked: str) -> None:
    store = tmp_path / "store"
    write_yolo(store, {"a": BOX, "b": f"{BOX}\n1 0.1 0.1 0.1 0.1"})
    root = tmp_path / "set"
    links = {
        "split": {"images/val": "images/val", "labels": "labels"},
        "images": {"images": "images", "labels": "labels"},
        "labels": {"images": "images", "labels/val": "labels/val"},
        "root": {"": ""},
        "file": {"images/val/a.jpg": "images/val/a.jpg", "images/val/b.jpg": "images/val/b.jpg", "labels": "labels"},
        "nested": {"images/val/deep/more": "images/val", "labels/val/deep/more": "labels/val"},
        "both": {"images/val": "images/val"},  # the labels are found beside what the link leads to
    }[linked]
    for name, target in links.items():
        link = root / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(store / target)
    found = objects(write_data_yaml(root, names=["a", "b"]))
    assert sorted(found.values()) == [1, 2]
    assert all(name.startswith("images/val/") for name in found)


def test_loops_end_and_folders_count_once(tmp_path: Path) -> None:
    path = write_yolo(tmp_path, {"a": BOX, "b": ""})
    folder = tmp_path / "images" / "val"
    (folder / "loop").symlink_to(folder)
    (folder / "up").symlink_to(tmp_path / "images")
    (folder / "gone").symlink_to(tmp_path / "nowhere")
    data = load_dataset(path, "val")
    assert [record.name for record in data.records] == ["images/val/a.jpg", "images/val/b.jpg"]
    assert any("loop" in note for note in data.problems.notes)


def test_every_suffix_that_opencv_decodes_is_taken(tmp_path: Path) -> None:
    path = write_yolo(tmp_path, {"a": BOX})
    folder = tmp_path / "images" / "val"
    expected = {"a.jpg"}
    image = np.full((8, 12, 3), 90, np.uint8)
    for suffix in (
        ".jfif",
        ".jpe",
        ".JPG",
        ".avif",
        ".gif",
        ".bmp",
        ".dib",
        ".webp",
        ".tiff",
        ".ppm",
        ".pnm",
        ".hdr",
        ".ras",
    ):
        kind = ".jpg" if suffix == ".jfif" else suffix.lower()
        try:
            ok, data = cv2.imencode(kind, image.astype(np.float32) if kind == ".hdr" else image)
        except cv2.error:
            continue
        if ok and cv2.imdecode(data, cv2.IMREAD_COLOR) is not None:
            (folder / f"x{len(expected)}{suffix}").write_bytes(data.tobytes())
            expected.add(f"x{len(expected)}{suffix}")
    assert len(expected) > 8
    assert {Path(name).name for name in objects(path)} == expected


def test_what_is_left_out_is_counted_and_named(tmp_path: Path) -> None:
    path = write_yolo(tmp_path, {"a": BOX, "b": None})
    for name in ("x.heic", "y.heic", "z.mp4", "notes.txt", "a.json"):
        (tmp_path / "images" / "val" / name).write_bytes(b"x")
    notes = load_dataset(path, "val").problems.notes
    assert any("2 .heic" in note and "1 .mp4" in note and ".txt" not in note for note in notes)
    assert any(note.startswith("1 of 2 images has no label file") for note in notes)


@pytest.mark.skipif(os.name == "nt", reason="file names are bytes elsewhere")
@pytest.mark.parametrize(
    "name", [b"caf\xe9", b"\xff\xfe", "ä\u2028b".encode(), b"a\x85b", b"a\x1b[31m", b"new\nline", b"back\\slash"]
)
@pytest.mark.parametrize("form", ["folder", "list"])
def test_any_file_name_is_read_kept_and_shown(tmp_path: Path, name: bytes, form: str) -> None:
    path = write_yolo(tmp_path, {"a": BOX})
    images, labels = tmp_path / "images" / "val", tmp_path / "labels" / "val"
    (images / "a.jpg").rename(images / os.fsdecode(name + b".jpg"))
    (labels / "a.txt").rename(labels / os.fsdecode(name + b".txt"))
    if form == "list":
        if b"\n" in name:
            pytest.skip("a list has one name a line")
        (tmp_path / "list.txt").write_bytes(b"images/val/" + name + b".jpg\n")
        path = write_data_yaml(tmp_path, val="list.txt", names=["a"])
    for _ in range(2):  # checked, and from the cache
        data = load_dataset(path, "val")
        assert [len(record.labels) for record in data.records] == [1]
    write_manifest(tmp_path / "manifest", data.records, data)
    assert list(read_manifest(tmp_path / "manifest")) == [data[0].name]
    assert calibration_set(data, CalibrationConfig(manifest=tmp_path / "manifest")) == list(data.records)
    assert calibration_set(data, CalibrationConfig()) == list(data.records)
    (images / os.fsdecode(name + b".jpg")).write_bytes(b"")
    with pytest.raises(DataError) as caught:
        load_dataset(path, "val")
    str(caught.value).encode()
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b""])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lists_of_any_editor(tmp_path: Path, mark: bytes, end: str) -> None:
    write_yolo(tmp_path, dict.fromkeys("abc", BOX))
    names = ["images/val/a.jpg", "images\\val\\b.jpg", ".\\images\\val\\c.jpg"]
    (tmp_path / "list.txt").write_bytes(mark + end.join(names).encode())
    assert len(objects(write_data_yaml(tmp_path, val="list.txt", names=["a"]))) == 3


def test_paths_are_joined_as_the_file_system_does(tmp_path: Path) -> None:
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "deep")
    assert below(tmp_path, "link/../x") == tmp_path / "real" / "x"
    assert below(tmp_path, "real/deep/../x") == tmp_path / "real" / "x"
    assert below(tmp_path, "link/x") == tmp_path / "link" / "x"
    assert below(tmp_path, "real\\deep") == tmp_path / "real" / "deep"
    assert below(tmp_path, str(tmp_path / "a")) == tmp_path / "a"


@pytest.mark.parametrize("source", ["\0", "a" * 5000, "~nosuchuser_x", "/dev/zero", "a/" * 3000])
def test_a_source_that_cannot_be_is_refused(tmp_path: Path, source: str) -> None:
    write_yolo(tmp_path, {"a": BOX})
    with pytest.raises(DataError):
        load_dataset(write_data_yaml(tmp_path, val=source, names=["a"]), "val")
    with pytest.raises(DataError):
        find_images((tmp_path / source,), tmp_path)


def test_an_image_that_is_a_link_to_itself_costs_no_other(tmp_path: Path) -> None:
    path = write_yolo(tmp_path, {"a": "0 0.5 0.5 0.2 0.4"})
    (tmp_path / "images" / "val" / "x.jpg").symlink_to("x.jpg")
    data = load_dataset(path, "val")
    assert [record.name for record in data.records] == ["images/val/a.jpg"]
    assert any("x.jpg" in line for line in data.problems.lines())
