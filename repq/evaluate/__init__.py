"""From network output to boxes, and from boxes to COCO average precision."""

from repq.evaluate.augmented import views
from repq.evaluate.coco_metrics import coco_accuracy, evaluate
from repq.evaluate.curves import detection_curves
from repq.evaluate.detections import Detections, Predict, boxes_in_images, detect_all, detect_images
from repq.evaluate.matches import Matcher, Matches, bootstrap_drop, resample_weights, resampled_accuracy
from repq.evaluate.postprocess import postprocess

__all__ = [
    "Detections",
    "Matcher",
    "Matches",
    "Predict",
    "bootstrap_drop",
    "boxes_in_images",
    "coco_accuracy",
    "detect_all",
    "detect_images",
    "detection_curves",
    "evaluate",
    "postprocess",
    "resample_weights",
    "resampled_accuracy",
    "views",
]
