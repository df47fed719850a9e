"""What YOLOX is trained for (section 2.1): every point says whether it holds an object, which, and where.

Only ``repq.train`` and what stands on it loads this module.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from repq.model.detector import Detector, TrainOutput
from repq.recipe import TrainConfig
from repq.train.assigner import Objects, assign_in_slices
from repq.train.boxes import AnchorGrid
from repq.train.distill import Imitation, class_divergence
from repq.train.losses import DetectionLoss, LossOptions, iou_loss
from repq.train.objective import Objective


class YoloxObjective(Objective):
    """``iou_weight * IoU loss + BCE of objectness and of classes + L1``, per positive point.

    The class that a point should name is weighted by the IoU of its box. L1 compares what the head writes, offsets from
    the cell's corner and logarithms of sizes, both in cells, in the last ``l1_epochs``.
    """

    def __init__(self, model: Detector, config: TrainConfig) -> None:
        super().__init__(model, config)
        self.options = LossOptions.from_config(config)
        self.l1_from = 0.0 if config.l1_epochs is None else 1 - config.l1_epochs / config.epochs

    def loss(
        self,
        output: TrainOutput,
        objects: Objects,
        grid: AnchorGrid,
        *,
        warm_up: bool = False,
        progress: float = 0.0,
        imitation: Imitation | None = None,
    ) -> DetectionLoss:
        assert output.raw is not None, "the family's detectors give it"
        raw, boxes, options = output.raw.float(), output.distances.float(), self.options
        objectness, classes = raw[..., 4], raw[..., 5:]
        with torch.no_grad():
            scores = (objectness.sigmoid().unsqueeze(-1) * classes.sigmoid()).sqrt()
        target = assign_in_slices(options.assign, scores, boxes.detach(), objects, grid)
        positive, wanted = target.positive, target.boxes[target.positive]

        of_classes = _entropy(classes[positive], target.scores[positive])
        if options.class_weights:
            of_classes = of_classes * of_classes.new_tensor(options.class_weights)
        sums = {
            "iou": iou_loss(boxes[positive], wanted, options.iou_kind).sum() * options.iou,
            "objectness": _entropy(objectness, positive.to(raw.dtype)).sum(),
            "class": of_classes.sum() * options.class_,
        }
        if options.l1 > 0:
            sums["l1"] = (raw[..., :4][positive] - written(wanted, grid, positive)).abs().sum() * options.l1
            if progress < self.l1_from - 1e-9:
                sums["l1"] = sums["l1"].detach() * 0
        if imitation is not None:
            sums["distill_class"] = class_divergence(output.scores.float(), imitation.scores) * imitation.class_weight
        return DetectionLoss(sums, positive.sum().to(raw.dtype))


def written(boxes: Tensor, grid: AnchorGrid, positive: Tensor) -> Tensor:
    """What the head should write, (P, 4), for boxes (P, 4) in pixels at the positive ones (B, N) of the points."""
    strides = grid.strides.expand(len(positive), -1, -1)[positive]
    corners = (grid.points - grid.strides / 2).expand(len(positive), -1, -1)[positive]
    low, high = boxes.chunk(2, dim=-1)
    sizes = (high - low) / strides
    return torch.cat((((low + high) / 2 - corners) / strides, (sizes + 1e-8).log()), dim=-1)


def _entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
