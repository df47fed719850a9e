"""The accuracy of a detector on a data set."""

from __future__ import annotations

from repq.data import DetectionDataset
from repq.evaluate.coco_metrics import coco_accuracy
from repq.evaluate.detections import Predict, detect_all
from repq.layout import OutputLayout
from repq.progress import Progress, silent
from repq.recipe import EvalConfig
from repq.results import Accuracy


def evaluate(
    predict: Predict,
    dataset: DetectionDataset,
    imgsz: tuple[int, int],
    config: EvalConfig,
    progress: Progress = silent,
    layout: OutputLayout = OutputLayout(),
) -> Accuracy:
    """Run a detector over a data set and return its COCO AP; see `detect_all` and `coco_accuracy` for the two halves.

    Args:
        predict: images (B, 3, H, W), RGB in 0..1, to detections in network pixels, with the columns of ``layout``.
        imgsz: height and width of the network input.

    Raises:
        DataError: the detector's output does not fit the data set, or an image can no longer be read.
    """
    found = detect_all(predict, dataset, imgsz, config, progress, label="evaluating", layout=layout)
    return coco_accuracy(found, dataset)
