"""The whole way from image files to AP."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from repq.data import DetectionDataset, ImageRecord, load_dataset, pixel_boxes
from repq.data.letterbox import letterbox_transform
from repq.errors import DataError
from repq.evaluate import Predict, coco_accuracy, detect_all, detect_images, evaluate
from repq.recipe import EvalConfig, LetterboxConfig


@pytest.fixture
def dataset(tmp_path: Path) -> DetectionDataset:
    """Five images of different sizes; the first has no objects."""
    rng = np.random.default_rng(0)
    records = []
    for index in range(5):
        width, height = 60 + 31 * index, 150 - 23 * index
        path = tmp_path / f"{index}.png"
        assert cv2.imwrite(str(path), rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        labels = np.column_stack([rng.integers(0, 2, index), rng.uniform(0.3, 0.6, (index, 4))]).astype(np.float32)
        areas = labels[:, 3] * labels[:, 4] * width * height
        records.append(ImageRecord(path.name, path, width, height, labels, areas))
    return DetectionDataset(tmp_path, "val", ("a", "b"), tuple(records))


def oracle(dataset: DetectionDataset, imgsz: tuple[int, int], config: LetterboxConfig) -> Predict:
    """A detector that knows the labels and puts them where the letterbox puts the image."""
    records = iter(dataset.records)

    def predict(images: np.ndarray) -> np.ndarray:
        assert images.shape[1:] == (3, *imgsz)
        output = np.zeros((len(images), 10, 7), np.float32)
        for rows in output:
            record = next(records)
            where = letterbox_transform(record.width, record.height, imgsz, config)
            boxes = where.to_input(pixel_boxes(record.labels, record.width, record.height))
            count = len(boxes)
            rows[:count, :2] = (boxes[:, :2] + boxes[:, 2:]) / 2
            rows[:count, 2:4] = boxes[:, 2:] - boxes[:, :2]
            rows[:, 4] = 1
            rows[np.arange(count), 5 + record.labels[:, 0].astype(int)] = 0.9
        return output

    return predict


@pytest.mark.parametrize("imgsz", [(96, 96), (64, 160)])
@pytest.mark.parametrize("config", [LetterboxConfig(), LetterboxConfig(border=5), LetterboxConfig(inner_size=60)])
@pytest.mark.parametrize("clip", [False, True])
def test_a_detector_that_is_always_right_has_ap_one(
    dataset: DetectionDataset, imgsz: tuple[int, int], config: LetterboxConfig, clip: bool
) -> None:
    settings = EvalConfig(batch=2, letterbox=config, iou=1.0, clip=clip)
    accuracy = evaluate(oracle(dataset, imgsz, config), dataset, imgsz, settings)
    assert accuracy.ap == pytest.approx(1)
    assert (accuracy.images, accuracy.objects, accuracy.detections) == (5, 10, 10)


def test_evaluate_is_detecting_and_scoring(dataset: DetectionDataset) -> None:
    config = EvalConfig(batch=3, iou=1.0)
    steps = []

    def progress(items, /, *, total=None, label=""):
        for item in items:
            steps.append((total, label))
            yield item

    predict = oracle(dataset, (96, 96), config.letterbox)
    detections = detect_all(predict, dataset, (96, 96), config, progress)
    assert steps == [(2, "detecting")] * 2
    assert [len(boxes) for boxes in detections.boxes] == [0, 1, 2, 3, 4]
    for boxes, record in zip(detections.boxes, dataset.records, strict=True):
        expected = pixel_boxes(record.labels, record.width, record.height)
        # Boxes travel as float32 pixels of some hundreds.
        np.testing.assert_allclose(np.sort(boxes[:, :4], axis=0), np.sort(expected, axis=0), atol=1e-3)
    predict = oracle(dataset, (96, 96), config.letterbox)
    assert coco_accuracy(detections, dataset) == evaluate(predict, dataset, (96, 96), config)


@pytest.mark.parametrize("batch", [1, 2])
def test_images_in_several_threads_keep_their_boxes(dataset: DetectionDataset, batch: int) -> None:
    threads = set[str]()

    def slow(images: np.ndarray) -> np.ndarray:
        """A box that depends on the images' brightness, and so does the time that it takes."""
        threads.add(threading.current_thread().name)
        time.sleep(0.02 * float(images.max() - images.mean()))
        rows = np.zeros((len(images), 1, 7), np.float32)
        rows[:, 0, :4], rows[:, 0, 4], rows[:, 0, 5] = 40 + 8 * images.mean((1, 2, 3))[:, None], 1, 0.9
        return rows

    def slowly(images: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [row[:, :6] for row in slow(np.stack([cv2.resize(image, (8, 8)) for image in images]) / 255)]

    config = EvalConfig(batch=batch)
    for one, many in [
        (detect_all(slow, dataset, (96, 96), config), detect_all(slow, dataset, (96, 96), config, at_once=3)),
        (detect_images(slowly, dataset, batch), detect_images(slowly, dataset, batch, at_once=3)),
    ]:
        assert one.images == many.images
        for alone, beside in zip(one.boxes, many.boxes, strict=True):
            np.testing.assert_array_equal(alone, beside)
    assert len(threads) > 2  # the caller's own, and more


def test_boxes_beyond_the_image_are_cut_only_if_wanted(dataset: DetectionDataset) -> None:
    def predict(images: np.ndarray) -> np.ndarray:
        return np.tile(np.array([48, 48, 500, 500, 1, 0.9, 0], np.float32), (len(images), 1, 1))

    whole = detect_all(predict, dataset, (96, 96), EvalConfig())
    cut = detect_all(predict, dataset, (96, 96), EvalConfig(clip=True))
    for record, before, after in zip(dataset.records, whole.boxes, cut.boxes, strict=True):
        assert before[0, 0] < 0
        assert after[0, :4].tolist() == [0, 0, record.width, record.height]


def test_a_detector_that_finds_nothing(dataset: DetectionDataset) -> None:
    accuracy = evaluate(lambda images: np.zeros((len(images), 4, 7), np.float32), dataset, (64, 64), EvalConfig())
    assert (accuracy.ap, accuracy.detections) == (0, 0)


@pytest.mark.parametrize("shape", [(5, 9, 8), (1, 9, 7), (5, 7), (5, 9, 6)])
def test_output_that_does_not_fit_is_refused(dataset: DetectionDataset, shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="does not fit the data set"):
        evaluate(lambda images: np.zeros(shape, np.float32), dataset, (64, 64), EvalConfig())


@pytest.mark.parametrize(
    ("name", "data", "size", "ap", "ap50"),
    [
        ("yolov6lite_s_coco", "coco128", 320, 0.3044, 0.4357),
        ("yolov6n_bccd_repopt", "bccd", 256, 0.4657, 0.7792),
    ],
)
def test_known_accuracy_of_real_checkpoints(
    shared: Path, name: str, data: str, size: int, ap: float, ap50: float
) -> None:
    """Figures of the official implementation. They leave 0.001 for the resizing and the order of float sums."""
    import torch

    from repq.model import load_checkpoint
    from repq.reparam import fuse

    model = fuse(load_checkpoint(shared / "checkpoints" / f"{name}.pt").model).eval()
    dataset = load_dataset(shared / "data" / data / "data.yaml", "val")

    def predict(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.from_numpy(images)).numpy()

    accuracy = evaluate(predict, dataset, (size, size), EvalConfig())
    assert accuracy.ap == pytest.approx(ap, abs=0.001)
    assert accuracy.ap50 == pytest.approx(ap50, abs=0.001)
    assert accuracy.images == len(dataset)
