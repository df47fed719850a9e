"""Settings of the folder that is deployed."""

from __future__ import annotations

from repq.recipe.base import Config, Share, setting
from repq.recipe.data import Detections


class DeployConfig(Config):
    """What the folder ``deploy`` of a run says of the use of its engine; the letterbox is that of ``eval``."""

    confidence: Share = setting(0.25, help="Score above which a box counts.")
    iou: float = setting(0.65, gt=0, le=1, help="IoU threshold of the suppression.")
    max_detections: Detections = setting(300, help="Boxes of an image at most.")
