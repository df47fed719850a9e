"""COCO average precision of detections, computed by faster-coco-eval from annotations that are built in memory.

AP is the mean over the IoU thresholds 0.50, 0.55 … 0.95, over 101 recall points and over the classes that have objects,
with the best 100 detections of each image (Lin et al., "Microsoft COCO", and its evaluation server). Objects are small
below 32² square pixels, large from 96² on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repq.data import DetectionDataset, ImageRecord, demand_objects, pixel_boxes
from repq.evaluate.detections import Detections, Predict, detect_all
from repq.layout import OutputLayout
from repq.preprocessing import Preprocessing
from repq.progress import Progress, silent
from repq.recipe import EvalConfig
from repq.results import Accuracy, ClassAccuracy

_ALL, _SMALL, _MEDIUM, _LARGE = range(4)
_MAX_DETECTIONS = [1, 10, 100]
_DECIMALS = 3  # of a pixel, which the float32 fractions of labels hold: an IoU of just 0.5 comes out as that
_IOU_50, _IOU_75 = 0, 5  # positions in 0.50, 0.55 … 0.95


def coco_accuracy(detections: Detections, dataset: DetectionDataset) -> Accuracy:
    """Score detections against the objects of the data set; ``detections`` must follow its records.

    Crowd regions are no objects: detections in them count neither as right nor as wrong. A class without objects has
    AP None and is not part of the mean. In a data set without any object AP is undefined; it is reported as 0 and
    ``objects`` as 0.

    Raises:
        DataError: the detections are of other images.
    """
    detections.demand_images_of(dataset)
    precision = precision_of(dataset.records, detections.boxes, dataset.num_classes)
    counts = np.bincount(
        np.concatenate([record.labels[:, 0] for record in dataset.records]).astype(int), minlength=dataset.num_classes
    )
    return Accuracy(
        ap=_mean(precision[..., _ALL]) or 0.0,
        ap50=_mean(precision[_IOU_50, ..., _ALL]) or 0.0,
        ap75=_mean(precision[_IOU_75, ..., _ALL]) or 0.0,
        ap_small=_mean(precision[..., _SMALL]),
        ap_medium=_mean(precision[..., _MEDIUM]),
        ap_large=_mean(precision[..., _LARGE]),
        per_class=tuple(
            ClassAccuracy(
                name=name,
                objects=int(counts[index]),
                ap=_mean(precision[:, :, index, _ALL]),
                ap50=_mean(precision[_IOU_50, :, index, _ALL]),
            )
            for index, name in enumerate(dataset.names)
        ),
        images=len(dataset),
        objects=int(counts.sum()),
        detections=detections.count,
        tta=detections.tta,
    )


def evaluate(
    predict: Predict,
    dataset: DetectionDataset,
    imgsz: tuple[int, int],
    config: EvalConfig,
    progress: Progress = silent,
    *,
    layout: OutputLayout = OutputLayout(),
    preprocessing: Preprocessing = Preprocessing(),
) -> Accuracy:
    """Run a detector over a data set and return its COCO AP; see `detect_all` and `coco_accuracy` for the two halves.

    Args:
        predict: network input (B, 3, H, W), as ``preprocessing`` says, to detections in network pixels, in ``layout``.
        imgsz: height and width of the network input.

    Raises:
        DataError: the detector's output does not fit the data set, no image has a labelled object, or an image can no
            longer be read.
    """
    demand_objects(dataset)
    found = detect_all(
        predict, dataset, imgsz, config, progress, label="evaluating", layout=layout, preprocessing=preprocessing
    )
    return coco_accuracy(found, dataset)


def _mean(precision: NDArray[np.floating]) -> float | None:
    """Mean of the defined entries; those without objects are -1."""
    defined = precision[precision > -1]
    return float(defined.mean()) if len(defined) else None


def precision_of(
    records: Sequence[ImageRecord], boxes: Sequence[NDArray[np.float32]], num_classes: int
) -> NDArray[np.float64]:
    """Precision over (IoU threshold, recall point, class, object size); -1 where there is no object.

    Thresholds are 0.50, 0.55 … 0.95, recalls 0, 0.01 … 1, sizes all, small, medium and large.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    truth = coco_index(COCO, records, num_classes, truth_entries(records))
    found = coco_index(COCO, records, num_classes, found_entries(boxes))
    run = COCOeval_faster(truth, found, iouType="bbox")
    run.params.maxDets = _MAX_DETECTIONS
    run.evaluate()
    run.accumulate()
    return np.asarray(run.eval["precision"])[..., -1]


def coco_index(
    library: type[Any], records: Sequence[ImageRecord], num_classes: int, annotations: list[dict[str, Any]]
) -> Any:
    """Annotations as a ``COCO`` of pycocotools or faster-coco-eval.

    Image ids are positions in ``records``, category ids are classes.
    """
    images = [{"id": index, "width": r.width, "height": r.height} for index, r in enumerate(records)]
    for number, annotation in enumerate(annotations, start=1):  # both libraries take the id 0 for "no match"
        annotation["id"] = number
    coco = library()
    categories = [{"id": index, "name": str(index)} for index in range(num_classes)]
    coco.dataset = {"images": images, "categories": categories, "annotations": annotations}
    coco.createIndex()
    return coco


def truth_entries(records: Sequence[ImageRecord]) -> list[dict[str, Any]]:
    """The labelled objects and crowd regions as COCO annotations."""
    return [entry for image, record in enumerate(records) for entry in _truth(image, record)]


def found_entries(boxes: Sequence[NDArray[np.float32]]) -> list[dict[str, Any]]:
    """Detections, per image as in `Detections.boxes`, as COCO annotations."""
    return [entry for image, rows in enumerate(boxes) for entry in _found(image, rows)]


def _truth(image: int, record: ImageRecord) -> list[dict[str, Any]]:
    labels = np.concatenate([record.labels, record.crowds])
    corners = np.round(pixel_boxes(labels, record.width, record.height), _DECIMALS)
    crowd_areas = np.prod(record.crowds[:, 3:5], axis=1) * record.width * record.height
    areas = np.concatenate([record.areas, crowd_areas])
    crowd = np.arange(len(labels)) >= len(record.labels)
    return [
        _entry(image, int(label[0]), box) | {"area": float(area), "iscrowd": int(is_crowd)}
        for label, box, area, is_crowd in zip(labels, corners, areas, crowd, strict=True)
    ]


def _found(image: int, rows: NDArray[np.float32]) -> list[dict[str, Any]]:
    return [
        _entry(image, int(row[5]), row[:4])
        | {"area": float((row[2] - row[0]) * (row[3] - row[1])), "iscrowd": 0, "score": float(row[4])}
        for row in rows.astype(np.float64)
    ]


def _entry(image: int, class_id: int, box: NDArray[np.float64]) -> dict[str, Any]:
    x1, y1, x2, y2 = box.tolist()
    return {"image_id": image, "category_id": class_id, "bbox": [x1, y1, x2 - x1, y2 - y1]}
