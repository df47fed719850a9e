"""The accuracy of a detector on a data set."""

from __future__ import annotations

from repq.data import DetectionDataset, demand_objects
from repq.evaluate.coco_metrics import coco_accuracy
from repq.evaluate.detections import Predict, detect_all
from repq.progress import Progress, silent
from repq.recipe import EvalConfig
from repq.results import Accuracy


def evaluate(
    predict: Predict,
    dataset: DetectionDataset,
    imgsz: tuple[int, int],
    config: EvalConfig,
    progress: Progress = silent,
) -> Accuracy:
    """Run a detector over a data set and return its COCO AP; see `detect_all` and `coco_accuracy` for the two halves.

    Args:
        predict: images (B, 3, H, W), RGB in 0..1, to detections (B, N, 5 + classes) in network pixels.
        imgsz: height and width of the network input.

    Raises:
        DataError: the detector's output does not fit the data set, no image has a labelled object, or an image can no
            longer be read.
    """
    demand_objects(dataset)
    return coco_accuracy(detect_all(predict, dataset, imgsz, config, progress, label="evaluating"), dataset)
