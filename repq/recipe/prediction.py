"""Settings of a model's use: those that travel with it, and those of finding objects in images and videos."""

from __future__ import annotations

from repq.recipe.base import Batch, Config, Count, Share, Threads, setting
from repq.recipe.data import Detections


class DeployConfig(Config):
    """What counts as found where the model is used: its files say it, and so does ``deploy/model.json`` of a run."""

    confidence: Share | None = setting(
        None, flag="--use-conf", help="For `predict`: score above which a box counts.  [default: the model's, or 0.25]"
    )
    iou: float | None = setting(
        None, gt=0, le=1, flag="--use-iou",
        help="For `predict`: IoU threshold of the suppression.  [default: the model's, or 0.65]",
    )  # fmt: skip
    max_detections: Detections | None = setting(
        None, flag="--use-max-detections", help="For `predict`: boxes of an image.  [default: the model's, or 300]"
    )


class PredictConfig(Config):
    """What counts as found, and what is written of it. ``predictions.json`` is written always."""

    confidence: Share | None = setting(
        None, flag="--conf", help="Boxes of a higher score count.  [default: the model's, or 0.25]"
    )
    iou: float | None = setting(
        None, gt=0, le=1, flag="--iou", help="IoU threshold of the suppression.  [default: the model's, or 0.65]"
    )
    max_detections: Detections | None = setting(
        None, flag="--max-detections", help="Boxes of an image at most.  [default: the model's, or 300]"
    )
    batch: Batch | None = setting(
        None, flag="--batch", help="Images of one forward pass.  [default: the model's, or 1]"
    )
    draw: bool = setting(True, flag="--draw/--no-draw", help="Images and videos with the boxes, in OUT/drawn.")
    txt: bool = setting(False, flag="--txt", help="Boxes as YOLO labels, in OUT/labels.")
    scores: bool = setting(False, flag="--scores", needs="--txt", help="The score as sixth column of --txt.")
    coco: bool = setting(False, flag="--coco", help="Boxes as COCO annotations with a score, in OUT/coco.json.")
    as_eval: bool = setting(
        False, flag="--as-eval", needs="--coco",
        help="Boxes as `repq eval` counts them, so that their AP is its AP: by its thresholds where none are given, "
        "several classes of a place, not cut at the image's edges.",
    )  # fmt: skip
    frames: Count | None = setting(None, flag="--frames", help="Stop after so many images or frames of each source.")
    workers: Threads = setting(
        2, flag="--workers", no_effect=True, help="Threads that decode, and as many that draw, beside the model."
    )
