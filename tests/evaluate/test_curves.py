"""Curves and confusions, against counts that are known."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repq.data import DetectionDataset, ImageRecord, pixel_boxes
from repq.evaluate import Detections, coco_accuracy, detection_curves
from repq.evaluate.coco_metrics import coco_index, found_entries, truth_entries
from repq.evaluate.curves import CONFIDENCE

NAMES = ("a", "b", "c")


def dataset(classes: list[list[int]]) -> DetectionDataset:
    """Images of 100x100 with objects side by side, of these classes."""
    records = []
    for number, objects in enumerate(classes):
        labels = np.array([[c, (i + 0.5) / 10, 0.5, 0.08, 0.4] for i, c in enumerate(objects)], np.float32)
        path = Path(f"{number}.jpg")
        records.append(ImageRecord(path.name, path, 100, 100, labels, np.full(len(labels), 320, np.float32)))
    return DetectionDataset(Path(), "val", NAMES, tuple(records))


def found(data: DetectionDataset, classes: list[list[int]], score: float = 0.9) -> Detections:
    """A detection on every object, of these classes."""
    boxes = []
    for record, named in zip(data.records, classes, strict=True):
        corners = pixel_boxes(record.labels, record.width, record.height)[:, :4]
        scores = np.full((len(corners), 1), score)
        boxes.append(np.concatenate([corners, scores, np.array(named).reshape(-1, 1)], axis=1).astype(np.float32))
    return Detections(tuple(record.name for record in data.records), tuple(boxes))


classes = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=4)


@settings(deadline=None, max_examples=25)
@given(classes, st.randoms(use_true_random=False))
def test_every_object_and_every_detection_is_counted_once(objects: list[list[int]], random) -> None:
    data = dataset(objects)
    named = [[random.randrange(3) for _ in row] for row in objects]
    curves = detection_curves(found(data, named), data)
    wanted = np.zeros((4, 4), int)
    for true, taken in zip(chain(*objects), chain(*named), strict=True):
        wanted[true, taken] += 1
    assert np.array_equal(curves.confusion, wanted)


@settings(deadline=None, max_examples=25)
@given(classes)
def test_precision_is_that_of_the_ap(objects: list[list[int]]) -> None:
    data = dataset(objects)
    detections = found(data, [[(c + i) % 3 for i, c in enumerate(row)] for row in objects])
    curves, accuracy = detection_curves(detections, data), coco_accuracy(detections, data)
    for values, row in zip(curves.precision, accuracy.per_class, strict=True):
        assert (row.ap50 is None) == (values == ())
        assert not values or np.mean(values) == pytest.approx(row.ap50)


def test_what_is_missed_and_what_is_found_of_nothing() -> None:
    data = dataset([[0, 1]])
    unsure = detection_curves(found(data, [[0, 1]], CONFIDENCE / 2), data)
    assert np.array_equal(np.array(unsure.confusion)[:, 3], [1, 1, 0, 0])
    away = found(data, [[0, 1]])
    away.boxes[0][:, [1, 3]] += 45
    shifted = np.array(detection_curves(away, data).confusion)
    assert shifted[3, :2].tolist() == [1, 1] and shifted[:2, 3].tolist() == [1, 1]


def boxes_between(low: int, high: int) -> st.SearchStrategy[list[int]]:
    """x, y, width, height of a box with sides of so many pixels, in an image of 64x64."""
    side = st.integers(low, high)
    return st.tuples(side, side).flatmap(
        lambda size: st.tuples(*(st.integers(0, 64 - one) for one in size)).map(lambda corner: [*corner, *size])
    )


scenes = st.lists(
    st.tuples(
        st.lists(boxes_between(4, 16), max_size=4),
        st.lists(boxes_between(16, 64), max_size=2),
        st.lists(boxes_between(4, 24), max_size=8),
    ),
    min_size=1,
    max_size=3,
)


@settings(deadline=None, max_examples=60)
@given(scenes)
def test_crowd_regions_count_as_in_pycocotools(images: list[tuple[list[list[int]], ...]]) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def labels(boxes: list[list[int]]) -> np.ndarray:
        rows = [[0, (x + w / 2) / 64, (y + h / 2) / 64, w / 64, h / 64] for x, y, w, h in boxes]
        return np.array(rows, np.float32).reshape(-1, 5)

    records, boxes = [], []
    for number, (objects, crowds, seen) in enumerate(images):
        areas = np.array([w * h for _, _, w, h in objects], np.float32)
        records.append(
            ImageRecord(f"{number}.jpg", Path(f"{number}.jpg"), 64, 64, labels(objects), areas, labels(crowds))
        )
        rows = [[x, y, x + w, y + h, 0.9 - 0.01 * place, 0] for place, (x, y, w, h) in enumerate(seen)]
        boxes.append(np.array(rows, np.float32).reshape(-1, 6))
    data = DetectionDataset(Path(), "val", ("a",), tuple(records))

    truth = coco_index(COCO, data.records, 1, truth_entries(data.records))
    run = COCOeval(truth, coco_index(COCO, data.records, 1, found_entries(boxes)), iouType="bbox")
    run.params.areaRng, run.params.iouThrs = run.params.areaRng[:1], np.array([0.5])
    run.evaluate()
    matched = missed = wrong = 0
    for row in filter(None, run.evalImgs):
        counted = ~row["dtIgnore"][0].astype(bool)
        hits = int((row["dtMatches"][0][counted] > 0).sum())
        matched, wrong = matched + hits, wrong + int(counted.sum()) - hits
        missed += int((np.asarray(row["gtIgnore"]) == 0).sum()) - hits
    found_by_us = detection_curves(Detections(tuple(r.name for r in records), tuple(boxes)), data)
    assert found_by_us.confusion == ((matched, missed), (wrong, 0))


def test_a_crowd_region_excuses_its_own_class_alone() -> None:
    record = dataset([[]]).records[0]
    crowd = replace(record, labels=np.zeros((0, 5), np.float32), crowds=np.array([[1, 0.5, 0.5, 0.8, 0.8]], np.float32))
    data = DetectionDataset(Path(), "val", NAMES, (crowd,))
    rows = np.array([[40, 40, 60, 60, 0.9, number] for number in range(3)], np.float32)
    confusion = np.array(detection_curves(Detections((record.name,), (rows,)), data).confusion)
    assert confusion[3].tolist() == [1, 0, 1, 0] and confusion.sum() == 2
