"""COCO AP on made-up data where the answer is known."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from repq.data import DetectionDataset, ImageRecord, pixel_boxes
from repq.data.dataset import as_boxes
from repq.errors import DataError
from repq.evaluate import Detections, coco_accuracy
from repq.evaluate.coco_metrics import coco_index, found_entries, precision_of, truth_entries
from repq.results import Accuracy


def record(index: int, labels: list[list[float]], crowds: list[list[float]] | None = None) -> ImageRecord:
    rows = np.array(labels, np.float32).reshape(-1, 5)
    return ImageRecord(
        f"{index}.jpg",
        Path(f"{index}.jpg"),
        200,
        100,
        rows,
        rows[:, 3] * rows[:, 4] * 20_000,
        np.array(crowds or [], np.float32).reshape(-1, 5),
    )


def dataset(*records: ImageRecord, names: tuple[str, ...] = ("a", "b", "c")) -> DetectionDataset:
    return DetectionDataset(Path(), "val", names, records)


def found(data: DetectionDataset, boxes: list[np.ndarray]) -> Detections:
    images = tuple(entry.name for entry in data.records)
    return Detections(images, tuple(np.asarray(rows, np.float32).reshape(-1, 6) for rows in boxes))


def perfect(data: DetectionDataset, score: float = 0.5) -> Detections:
    rows = []
    for entry in data.records:
        boxes = pixel_boxes(entry.labels, entry.width, entry.height)
        rows.append(np.column_stack([boxes, np.full(len(boxes), score), entry.labels[:, 0]]))
    return found(data, rows)


def random_set(seed: int, names: tuple[str, ...] = ("a", "b", "c")) -> DetectionDataset:
    rng = np.random.default_rng(seed)
    records = []
    for index in range(6):
        count = int(rng.integers(0, 5))
        classes = rng.integers(0, len(names), (count, 1))
        records.append(record(index, np.hstack([classes, rng.uniform(0.3, 0.6, (count, 4))]).tolist()))
    return dataset(*records, record(9, [[0, 0.5, 0.5, 0.1, 0.1]]), names=names)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("names", [("only",), ("a", "b", "c")])
def test_perfect_detections_reach_one(seed: int, names: tuple[str, ...]) -> None:
    data = random_set(seed, names)
    accuracy = coco_accuracy(perfect(data), data)
    assert accuracy.ap == accuracy.ap50 == accuracy.ap75 == pytest.approx(1)
    assert (accuracy.images, accuracy.objects, accuracy.detections) == (7, data.objects, data.objects)
    for row, name in zip(accuracy.per_class, names, strict=True):
        assert row.name == name
        assert row.ap == (pytest.approx(1) if row.objects else None)


def test_no_detections_at_all() -> None:
    data = random_set(0)
    accuracy = coco_accuracy(found(data, [[]] * len(data)), data)
    assert accuracy.ap == accuracy.ap50 == accuracy.ap75 == 0
    assert accuracy.detections == 0
    assert {row.ap for row in accuracy.per_class if row.objects} == {0}


def test_no_objects_at_all() -> None:
    data = dataset(record(0, []), record(1, []))
    accuracy = coco_accuracy(found(data, [[[1, 1, 9, 9, 0.5, 0]], []]), data)
    assert (accuracy.ap, accuracy.objects, accuracy.detections) == (0, 0, 1)
    assert accuracy.ap_small is accuracy.ap_medium is accuracy.ap_large is None
    assert all(row.ap is None and row.ap50 is None for row in accuracy.per_class)


def test_classes_without_objects_are_not_part_of_the_mean() -> None:
    data = dataset(record(0, [[1, 0.5, 0.5, 0.4, 0.4]]))
    detections = found(data, [[[60, 30, 140, 70, 0.5, 1], [0, 0, 50, 50, 0.9, 2]]])
    accuracy = coco_accuracy(detections, data)
    assert accuracy.ap == pytest.approx(1)
    assert [row.ap for row in accuracy.per_class] == [None, pytest.approx(1), None]


def test_size_classes() -> None:
    # 20x20, 40x40 and 100x100 pixels; only the middle one is found.
    data = dataset(record(0, [[0, 0.1, 0.2, 0.1, 0.2], [0, 0.4, 0.4, 0.2, 0.4], [0, 0.75, 0.5, 0.5, 1]]))
    accuracy = coco_accuracy(found(data, [[[60, 20, 100, 60, 0.9, 0]]]), data)
    assert (accuracy.ap_small, accuracy.ap_medium, accuracy.ap_large) == (0, pytest.approx(1), 0)
    # One of three objects: precision 1 up to recall 0.33, which 34 of the 101 recall points reach.
    assert accuracy.ap == pytest.approx(34 / 101)


def test_overlap_decides_at_which_threshold_a_box_counts() -> None:
    # Shifting a box of width 100 by 10 gives IoU 90 / 110 = 0.818: right at 0.50 … 0.80, wrong at 0.85, 0.90, 0.95.
    data = dataset(record(0, [[0, 0.5, 0.5, 0.5, 0.5]]))
    accuracy = coco_accuracy(found(data, [[[60, 25, 160, 75, 0.9, 0]]]), data)
    assert accuracy.ap50 == accuracy.ap75 == pytest.approx(1)
    assert accuracy.ap == pytest.approx(0.7)


def test_boxes_in_a_crowd_are_neither_right_nor_wrong() -> None:
    crowd = [[0, 0.75, 0.5, 0.5, 1]]
    labels = [[0, 0.2, 0.4, 0.2, 0.4]]
    boxes = [[20, 20, 60, 60, 0.5, 0], [110, 10, 140, 60, 0.9, 0], [150, 20, 190, 90, 0.8, 0]]
    with_crowd = dataset(record(0, labels, crowd))
    accuracy = coco_accuracy(found(with_crowd, [boxes]), with_crowd)
    assert accuracy.ap == pytest.approx(1)
    assert accuracy.objects == 1
    without = dataset(record(0, labels))
    assert coco_accuracy(found(without, [boxes]), without).ap < 0.5


def test_a_crowd_alone_is_no_object() -> None:
    data = dataset(record(0, [], [[0, 0.5, 0.5, 0.5, 0.5]]), record(1, [[1, 0.5, 0.5, 0.5, 0.5]]))
    assert [row.ap for row in coco_accuracy(perfect(data), data).per_class] == [None, pytest.approx(1), None]


def test_nothing_is_printed_and_the_result_is_plain_json(capfd: pytest.CaptureFixture[str]) -> None:
    data = random_set(1)
    accuracy = coco_accuracy(perfect(data), data)
    assert capfd.readouterr() == ("", "")
    assert Accuracy.model_validate(json.loads(accuracy.model_dump_json())) == accuracy


def test_detections_of_other_images_are_refused() -> None:
    data = random_set(2)
    with pytest.raises(DataError, match="other images"):
        coco_accuracy(perfect(data), data.subset(data.records[1:]))


def crowded(seed: int, images: int = 12, classes: int = 4) -> tuple[list[ImageRecord], list[np.ndarray]]:
    """Objects and crowd regions of all sizes, and detections near them: many ties, more than 100 in some images."""
    rng = np.random.default_rng(seed)
    records, boxes = [], []
    for index in range(images):
        places = rng.uniform(0.2, 0.8, (int(rng.integers(0, 30)), 2))
        rows = np.hstack([rng.integers(0, classes, (len(places), 1)), places, rng.uniform(0.02, 0.6, (len(places), 2))])
        entry = record(index, rows.tolist())
        entry = replace(entry, width=640, height=480, areas=rows[:, 3] * rows[:, 4] * 640 * 480)
        crowd = rng.random(len(rows)) < 0.1
        entry = replace(
            entry, labels=entry.labels[~crowd], areas=entry.areas[~crowd].astype(np.float32), crowds=rows[crowd]
        )
        near = np.tile(rows, (int(rng.integers(0, 9)), 1))
        corners = pixel_boxes(near, 640, 480) + rng.normal(0, 6, (len(near), 4))
        scores = rng.integers(1, 20, len(near)) / 20
        boxes.append(np.column_stack([corners, scores, near[:, 0]]).astype(np.float32))
        records.append(entry)
    return records, boxes


@pytest.mark.parametrize("seed", range(6))
def test_precision_is_that_of_pycocotools(seed: int) -> None:
    """To rounding: pycocotools divides by one spacing more than the number of detections."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    records, boxes = crowded(seed)
    truth, detected = (
        coco_index(COCO, records, 5, entries) for entries in (truth_entries(records), found_entries(boxes))
    )
    reference = COCOeval(truth, detected, iouType="bbox")
    reference.evaluate()
    reference.accumulate()
    np.testing.assert_array_max_ulp(precision_of(records, boxes, 5), reference.eval["precision"][..., -1], maxulp=2)


@given(seed=st.integers(0, 10**6), step=st.sampled_from([1, 4, 10]), size=st.tuples(*[st.integers(60, 400)] * 2))
def test_boxes_in_whole_pixels_give_the_digits_of_pycocotools(seed: int, step: int, size: tuple[int, int]) -> None:
    """Whose boxes never were fractions of the image: an IoU of just 0.5 counts for it, and here."""
    rng, (width, height) = np.random.default_rng(seed), size
    records, truth, rows = [], [], []
    for image in range(3):
        labels, areas, crowds, boxes = [], [], [], []
        for _ in range(int(rng.integers(1, 7))):
            w, h = (rng.integers(1, 6, 2) * step).tolist()
            x, y, label = int(rng.integers(0, width - w)), int(rng.integers(0, height - h)), int(rng.integers(0, 3))
            row, crowd = [label, (x + w / 2) / width, (y + h / 2) / height, w / width, h / height], rng.random() < 0.2
            (crowds if crowd else labels).append(row)
            areas += [] if crowd else [w * h]
            truth.append({"image_id": image, "category_id": label, "bbox": [x, y, w, h], "area": w * h,
                          "iscrowd": int(crowd), "id": len(truth) + 1})  # fmt: skip
            for part in rng.integers(1, 4, int(rng.integers(0, 3))).tolist():
                other = int(rng.integers(0, 4)) if rng.random() < 0.2 else label
                boxes.append([x, y, x + max(w // part, 1), y + h, float(np.float32(rng.integers(1, 9) / 10)), other])
        records.append(ImageRecord(f"{image}.jpg", "", width, height, as_boxes(labels), np.array(areas, np.float32),
                                   as_boxes(crowds)))  # fmt: skip
        rows.append(np.array(sorted(boxes, key=lambda box: -box[4]), np.float32).reshape(-1, 6))
    data = dataset(*records, names=("a", "b", "c", "never seen"))
    accuracy = coco_accuracy(found(data, rows), data)
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = {"images": [{"id": image} for image in range(3)], "annotations": truth,
                         "categories": [{"id": label} for label in range(4)]}  # fmt: skip
        known.createIndex()
        entries = [{key: entry[key] for key in ("image_id", "category_id", "bbox", "score")}
                   for entry in found_entries(rows)]  # fmt: skip
        run = COCOeval(known, known.loadRes(entries) if entries else COCO(), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    values = (getattr(accuracy, name) for name in ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"))
    nothing = 0 if data.objects == 0 else -1
    expected = [nothing if value < 0 and place < 3 else value for place, value in enumerate(run.stats[:6])]
    np.testing.assert_allclose([-1 if value is None else value for value in values], expected, rtol=0, atol=1e-12)
