"""Settings of a model's use, which travel with it."""

from __future__ import annotations

from repq.recipe.base import Config, Share, setting
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
