"""Data sets in YOLO form: sources, names, broken images and labels, the cache."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_sets import write_data_yaml, write_image, write_yolo

from repq.data import fingerprint, load_dataset
from repq.data.labels_cache import cache_path
from repq.data.yolo import parse_line, read_labels
from repq.errors import DataError

BOX = "0 0.5 0.5 0.2 0.4"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REPQ_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_records_names_and_areas(tmp_path: Path) -> None:
    dataset = load_dataset(write_yolo(tmp_path, {"b": BOX, "a": f"{BOX}\n1 0.25 0.25 0.5 0.5\n"}), "val")
    assert [record.name for record in dataset.records] == ["images/val/a.jpg", "images/val/b.jpg"]
    assert dataset.names == ("a", "b")
    assert not dataset.problems.count
    assert dataset.problems.lines() == ()
    first = dataset[0]
    assert (first.width, first.height) == (40, 30)
    np.testing.assert_allclose(first.labels, [[0, 0.5, 0.5, 0.2, 0.4], [1, 0.25, 0.25, 0.5, 0.5]], rtol=1e-6)
    np.testing.assert_allclose(first.areas, [8 * 12, 20 * 15], rtol=1e-6)


def test_images_without_objects_stay(tmp_path: Path) -> None:
    dataset = load_dataset(write_yolo(tmp_path, {"a": BOX, "empty": "", "blank": " \n\n", "missing": None}), "val")
    assert [len(record.labels) for record in dataset.records] == [1, 0, 0, 0]
    assert not dataset.problems.count


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0 0.5 0.5 0.2", "4 values instead of 5"),
        ("0 0.5 0.5 0.2 0.2 0.9", "6 values instead of 5"),
        ("0 0.5 half 0.2 0.2", "'half' is no number"),
        ("0_1 0.5 0.5 0.2 0.2", "'0_1' is no number"),
        ("1 0.5 0.5 0_0.2 0.2", "'0_0.2' is no number"),
        ("1 0.5 0.5 0.2 0.1_5", "'0.1_5' is no number"),
        ("\uff11 0.5 0.5 0.2 0.2", "'\uff11' is no number"),
        ("1 0.1 0.1 0.5_0 0.1 0.5 0.5 0.1 0.5", "'0.5_0' is no number"),
        ("1 0.5 0.5 0.2 1e400", "not finite"),
        ("\xff\xfe", "1 values"),
        ("0 nan 0.5 0.2 0.2", "not finite"),
        ("0 inf 0.5 0.2 0.2", "not finite"),
        ("2 0.5 0.5 0.2 0.2", "class 2 is none of 0 to 1"),
        ("-1 0.5 0.5 0.2 0.2", "class -1"),
        ("0.5 0.5 0.5 0.2 0.2", "class 0.5"),
        ("0 1.2 0.5 0.2 0.2", "outside 0..1"),
        ("0 0.5 -0.1 0.2 0.2", "outside 0..1"),
        ("0 0.5 0.5 0 0.2", "without area"),
        ("0 0.5 0.5 1e-60 0.2", "without area"),
        ("0 0.5 0.5 0.2 0.2 0.9 1", "track id"),
        ("0 0.5 0.5 0.2 0.2 0.9 17", "track id"),
        (BOX, "same as an earlier line"),
    ],
)
def test_a_broken_line_is_left_out_and_named(tmp_path: Path, line: str, reason: str) -> None:
    dataset = load_dataset(write_yolo(tmp_path, {"a": f"{BOX}\n{line}\n1 0.5 0.5 0.1 0.1"}), "val")
    assert dataset[0].labels[:, 0].tolist() == [0, 1]
    assert dataset.problems.count == 1
    assert reason in dataset.problems.labels[0]
    assert dataset.problems.labels[0].startswith("images/val/a.jpg, line 2:")


@pytest.mark.parametrize(("box", "said"), [("0.5 0.5 1 1", 0), ("0.8 0.8 0.4 0.4", 0), ("0.9 0.5 0.4 0.4", 1)])
def test_boxes_that_reach_beyond_their_image_are_said(tmp_path: Path, box: str, said: int) -> None:
    """As corners do that are read as centre and size."""
    problems = load_dataset(write_yolo(tmp_path, {"a": f"0 {box}"}), "val").problems
    assert [note.startswith("1 box reaches beyond") for note in problems.notes] == [True] * said
    assert not problems.count


@pytest.mark.parametrize("line", ["C:\\\\data\\\\a.jpg", '"images/val/a.jpg"', "https://host/a.jpg"])
def test_a_list_of_which_no_image_is_there_says_so(tmp_path: Path, line: str) -> None:
    write_yolo(tmp_path, {"a": BOX})
    (tmp_path / "list.txt").write_text(f"{line}\n")
    with pytest.raises(DataError, match=r"no image of the split 'val' .* is there"):
        load_dataset(write_data_yaml(tmp_path, val="list.txt", names=["a"]), "val")


def test_rounded_labels_are_corrected(tmp_path: Path) -> None:
    dataset = load_dataset(write_yolo(tmp_path, {"a": "0 0.5 0.5 1.00001 1"}), "val")
    assert dataset[0].labels[0].tolist() == [0, 0.5, 0.5, 1, 1]


def test_an_image_whose_labels_are_all_broken_is_no_background(tmp_path: Path) -> None:
    dataset = load_dataset(write_yolo(tmp_path, {"a": BOX, "b": "9 0.5 0.5 0.1 0.1"}), "val")
    assert [record.name for record in dataset.records] == ["images/val/a.jpg"]
    assert dataset.problems.images == ("images/val/b.jpg: all its labels are broken",)
    assert len(dataset.problems.labels) == 1


def test_broken_images_are_left_out_and_counted(tmp_path: Path) -> None:
    path = write_yolo(tmp_path, dict.fromkeys("abcdef", BOX))
    folder = tmp_path / "images" / "val"
    for name in "abcd":
        file = folder / f"{name}.jpg"
        file.write_bytes(file.read_bytes()[:-100])
    (folder / "e.jpg").write_bytes(b"")
    dataset = load_dataset(path, "val")
    assert [record.name for record in dataset.records] == ["images/val/f.jpg"]
    (line,) = dataset.problems.lines()
    assert line.startswith("5 images left out: images/val/a.jpg: ")
    assert line.endswith("; and 2 more")


def test_size_follows_the_exif_orientation(tmp_path: Path) -> None:
    path = write_yolo(tmp_path, {"a": BOX})
    image = tmp_path / "images" / "val" / "a.jpg"
    jpeg = image.read_bytes()
    body = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    image.write_bytes(jpeg[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + jpeg[2:])
    record = load_dataset(path, "val")[0]
    assert (record.width, record.height) == (30, 40)


def test_names_as_mapping_as_list_and_as_count(tmp_path: Path) -> None:
    for names, count, expected in (
        ({1: "b", 0: "a"}, None, ("a", "b")),
        (["a", "b"], 2, ("a", "b")),
        (None, 2, ("class0", "class1")),
        (["only"], 1, ("only",)),
    ):
        assert load_dataset(write_yolo(tmp_path, {"a": BOX}, names=names, nc=count), "val").names == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"names": None}, "names no classes"),
        ({"names": {0: "a", 2: "b"}}, "gaps"),
        ({"names": "a"}, "no list or mapping"),
        ({"nc": 3}, "disagree"),
        ({"nc": "many"}, "no class count"),
        ({"val": None}, "no usable 'val'"),
        ({"val": []}, "no usable 'val'"),
        ({"val": 3}, "no usable 'val'"),
        ({"val": "images/absent"}, "no image folder and no list file"),
        ({"val": "data.yaml"}, "no image folder and no list file"),
        ({"path": "absent"}, "root folder"),
    ],
)
def test_a_description_that_makes_no_sense_is_refused(tmp_path: Path, values: dict[str, object], message: str) -> None:
    write_yolo(tmp_path, {"a": BOX})
    with pytest.raises(DataError, match=message):
        load_dataset(write_data_yaml(tmp_path, **({"names": ["a", "b"]} | values)), "val")


def test_files_that_are_no_yaml_are_refused(tmp_path: Path) -> None:
    for content in (b"a: [", b"- 1", b"\xff\xfe\x00"):
        (tmp_path / "data.yaml").write_bytes(content)
        with pytest.raises(DataError):
            load_dataset(tmp_path / "data.yaml", "val")
    with pytest.raises(DataError, match="cannot read"):
        load_dataset(tmp_path / "absent.yaml", "val")


def test_nothing_usable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "images" / "val").mkdir(parents=True)
    with pytest.raises(DataError, match="has no images"):
        load_dataset(write_data_yaml(tmp_path, names=["a"]), "val")
    path = write_yolo(tmp_path, {"a": "nonsense"})
    with pytest.raises(DataError, match="nothing usable"):
        load_dataset(path, "val")
    (tmp_path / "labels" / "val" / "a.txt").unlink()
    with pytest.raises(DataError, match="has a label file"):
        load_dataset(path, "val")


def test_the_root_is_relative_to_the_description_and_may_be_missing(tmp_path: Path) -> None:
    write_yolo(tmp_path / "data", {"a": BOX})
    beside = write_yolo(tmp_path / "data", {"a": BOX}, path=None)
    away = write_data_yaml(tmp_path, path="data", names=["a", "b"])
    assert load_dataset(beside, "val")[0].path == load_dataset(away, "val")[0].path
    assert load_dataset(away, "val")[0].name == "images/val/a.jpg"


def test_list_files_and_lists_of_sources(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"a": BOX, "b": BOX, "c": BOX})
    write_image(tmp_path / "more" / "deep" / "d.png")
    (tmp_path / "more" / "deep" / "d.txt").write_text(BOX)
    lists = tmp_path / "lists"
    lists.mkdir()
    # One line relative to the list file, one to the root, one absolute, one twice, one that leads nowhere.
    (lists / "some.txt").write_text(
        f"../images/val/a.jpg\n\nimages/val/b.jpg\n{tmp_path}/images/val/c.jpg\nimages/val/b.jpg\nimages/val/x.jpg\n"
    )
    dataset = load_dataset(write_data_yaml(tmp_path, val=["lists/some.txt", "more"], names=["a"]), "val")
    assert [Path(record.name).stem for record in dataset.records] == ["a", "b", "c", "d"]
    assert all(len(record.labels) == 1 for record in dataset.records)
    assert dataset.problems.images == (
        "images/val/b.jpg: listed more than once",
        "images/val/x.jpg: No such file or directory",
    )


class TestCache:
    def calls(self, path: Path) -> int:
        """How many images a load checks."""
        seen = []

        def count(items, /, *, total=None, label=""):
            for item in items:
                seen.append(item)
                yield item

        self.dataset = load_dataset(path, "val", progress=count)
        return len(seen)

    def test_a_second_load_checks_nothing_and_gives_the_same(self, tmp_path: Path) -> None:
        path = write_yolo(tmp_path, {"a": f"{BOX}\nbroken", "b": "", "c": "1 0.1 0.2 0.1 0.1"})
        assert self.calls(path) == 3
        first = self.dataset
        assert self.calls(path) == 0
        assert fingerprint(self.dataset) == fingerprint(first)
        assert self.dataset.problems == first.problems
        assert [record.path for record in self.dataset.records] == [record.path for record in first.records]

    def test_any_change_means_a_new_check(self, tmp_path: Path) -> None:
        path = write_yolo(tmp_path, {"a": BOX, "b": None})
        assert self.calls(path) == 2
        image, label = tmp_path / "images" / "val" / "a.jpg", tmp_path / "labels" / "val" / "a.txt"
        prints = {fingerprint(self.dataset)}
        write_image(tmp_path / "images" / "val" / "new.jpg")
        assert self.calls(path) == 3
        prints.add(fingerprint(self.dataset))
        (tmp_path / "labels" / "val" / "b.txt").write_text(BOX)
        assert self.calls(path) == 3
        assert self.dataset.objects == 2
        prints.add(fingerprint(self.dataset))
        label.write_text(BOX.replace("0.2", "0.3"))  # as many bytes as before
        os.utime(label, ns=(1, 1))
        assert self.calls(path) == 3
        assert self.dataset[0].labels[0, 3] == np.float32(0.3)
        prints.add(fingerprint(self.dataset))
        write_image(image, width=64)
        assert self.calls(path) == 3
        assert self.dataset[0].width == 64
        prints.add(fingerprint(self.dataset))
        image.unlink()
        assert self.calls(path) == 2
        prints.add(fingerprint(self.dataset))
        assert len(prints) == 6
        write_data_yaml(tmp_path, names=["a", "b", "c"])
        assert self.calls(path) == 2
        assert self.dataset.num_classes == 3

    @pytest.mark.parametrize("swapped", [False, True])
    def test_a_change_of_the_same_size_and_time_is_seen(self, tmp_path: Path, swapped: bool) -> None:
        """As when an archive is unpacked over the set, in place or by renaming."""
        path = write_yolo(tmp_path, {"a": BOX})
        self.calls(path)
        label = tmp_path / "labels" / "val" / "a.txt"
        before = label.stat()
        written = label.with_suffix(".new") if swapped else label
        written.write_text(BOX.replace("0.2", "0.3"))
        os.utime(written, ns=(before.st_atime_ns, before.st_mtime_ns))
        written.replace(label)
        assert (label.stat().st_size, label.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
        assert self.calls(path) == 1
        assert self.dataset[0].labels[0, 3] == np.float32(0.3)

    @pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 no archive", None])
    def test_a_damaged_cache_is_made_again(self, tmp_path: Path, damage: bytes | None) -> None:
        path = write_yolo(tmp_path, {"a": BOX})
        assert self.calls(path) == 1
        file = cache_path(path, "val")
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
        assert self.calls(path) == 1
        assert self.calls(path) == 0

    def test_no_place_for_a_cache_is_no_error(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("REPQ_CACHE", str(tmp_path / "file" / "below"))
        path = write_yolo(tmp_path, {"a": BOX})
        assert self.calls(path) == 1
        assert self.calls(path) == 1

    def test_nothing_is_left_beside_it(self, tmp_path: Path, cache: Path) -> None:
        self.calls(write_yolo(tmp_path, {"a": BOX}))
        assert [path.suffix for path in cache.rglob("*") if path.is_file()] == [".npz"]


def test_the_time_for_a_label_file_grows_with_its_lines(tmp_path: Path) -> None:
    """Of 20,000 lines none is lost, and a line costs what one of 2,000 does, within the noise of a busy machine."""
    spent = []
    for count in (2_000, 20_000):
        boxes = np.random.default_rng(0).random((count, 4)) * 0.4 + 0.1
        path = tmp_path / f"{count}.txt"
        path.write_text("".join(f"0 {x:.9f} {y:.9f} {w:.9f} {h:.9f}\n" for x, y, w, h in boxes))
        times = []
        for _ in range(3):
            started = time.process_time()
            found = read_labels(path, 1, 640, 640)
            times.append(time.process_time() - started)
            assert not isinstance(found, str) and len(found.labels) == count
        spent.append(min(times) / count)
    assert spent[1] < 4 * spent[0]


def test_the_first_look_shows_how_far_it_is_and_the_second_gives_the_same(tmp_path: Path) -> None:
    path = write_yolo(tmp_path, {f"{number:03}": BOX for number in range(70)})  # more than a thread takes at a time
    seen: list[tuple[str, int | None, int]] = []

    def watched(items, /, *, total=None, label=""):
        count = 0
        for item in items:
            count += 1
            yield item
        seen.append((label, total, count))

    first, second = (load_dataset(path, "val", progress=watched) for _ in range(2))
    assert seen == [("checking images", 70, 70)]
    assert [record.path for record in first.records] == [record.path for record in second.records]
    assert fingerprint(first) == fingerprint(second)


numbers = st.integers(0, 1000).map(lambda value: value / 1000)


@given(points=st.integers(1, 6), values=st.integers(2, 3), given_=st.integers(1, 6), data=st.data())
def test_where_lines_hold_key_points_none_is_a_polygon(
    points: int, values: int, given_: int, data: st.DataObject
) -> None:
    count = points * values
    rest = data.draw(st.lists(numbers, min_size=count, max_size=count))
    row, forms = parse_line(["1", "0.5", "0.5", "0.2", "0.4", *map(str, rest)], 2, given_ * values)
    if given_ == points:
        assert (row, forms) == ((1, 0.5, 0.5, 0.2, 0.4), ("keypoints",))
    else:
        assert row == f"{5 + count} values instead of 5 or {5 + given_ * values}"


@pytest.mark.parametrize("shape", ["[17, 3]", "17", 17, [17], [17, 3, 1], [0, 3], [1.5, 2], [True, 2], []])
def test_a_kpt_shape_that_makes_no_sense_is_refused(tmp_path: Path, shape: object) -> None:
    """Lines with key points would be taken for polygons."""
    path = write_yolo(tmp_path, {"a": f"{BOX} 0.5 0.5 0.4 0.4"}, kpt_shape=shape)
    with pytest.raises(DataError, match="'kpt_shape' in"):
        load_dataset(path, "val")


@given(
    box=st.tuples(*[st.integers(300, 700)] * 2, *[st.integers(10, 600)] * 2),
    places=st.lists(st.tuples(*[st.integers(0, 100)] * 2), min_size=1, max_size=9),
    third=st.sampled_from([None, 0, 1, 2]),
)
def test_key_points_without_a_kpt_shape_are_noticed(
    box: tuple[int, ...], places: list[tuple[int, int]], third: int | None
) -> None:
    x, y, width, height = (value / 1000 for value in box)
    points = [((x + (a / 100 - 0.5) * width), (y + (b / 100 - 0.5) * height)) for a, b in places]
    texts = [f"{value:.6f}" for point in points for value in (*point, *(() if third is None else (third,)))]
    row, forms = parse_line(["0", *(f"{value:.6f}" for value in (x, y, width, height)), *texts], 1)
    if not isinstance(row, str):  # as of an even number, or of a value of 2
        assert forms == ("polygon", "doubtful")


@pytest.mark.parametrize("polygons", [0, 1])
def test_a_doubt_is_said_where_no_polygon_is_without(tmp_path: Path, polygons: int) -> None:
    lines = [f"{BOX} 0.5 0.5 0.45 0.4", *["0 0.1 0.1 0.3 0.1 0.3 0.3 0.1 0.3"][:polygons]]
    notes = load_dataset(write_yolo(tmp_path, {"a": "\n".join(lines)}), "val").problems.notes
    assert any("kpt_shape" in note for note in notes) == (not polygons)


def test_images_with_one_label_file_are_named(tmp_path: Path) -> None:
    path = write_yolo(tmp_path, {"a": BOX, "b": BOX, "none": None})
    write_image(tmp_path / "images/val/a.png")
    write_image(tmp_path / "images/val/none.png")
    write_image(tmp_path / "images/val/below/b.png")
    notes = "\n".join(load_dataset(path, "val").problems.notes)
    assert "2 images share a label file with another: images/val/a.jpg, images/val/a.png" in notes


def test_the_cache_knows_how_many_pixels_were_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_yolo(tmp_path, {"a": BOX, "b": BOX})
    write_image(tmp_path / "images/val/b.jpg", width=50)
    for limit, images in (("1300", 1), ("2000", 2), ("1300", 1)):
        monkeypatch.setenv("REPQ_MAX_IMAGE_PIXELS", limit)
        assert len(load_dataset(path, "val")) == images
