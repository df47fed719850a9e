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
from repq.train.boxes import AnchorGrid, pairwise_iou
from repq.train.losses import DetectionLoss, LossOptions, iou_loss
from repq.train.objective import Objective
from repq.train.simota import CENTRE_CELLS, near_centre


class YoloxObjective(Objective):
    """``iou_weight * IoU loss + BCE of objectness and of classes + L1``, per positive point.

    The class that a point should name is weighted by the IoU of its box. L1 compares what the head writes, offsets from
    the cell's corner and logarithms of sizes, both in cells, in the last ``l1_epochs``.
    """

    unused = ("class_loss", "dfl_weight", "atss_epochs")

    def __init__(self, model: Detector, config: TrainConfig) -> None:
        super().__init__(model, config)
        self.options = LossOptions.from_config(config)

    def loss(
        self,
        output: TrainOutput,
        objects: Objects,
        grid: AnchorGrid,
        *,
        warm_up: bool = False,
        progress: float = 0.0,
    ) -> DetectionLoss:
        assert output.raw is not None, "the family's detectors give it"
        raw, boxes, options = output.raw.float(), output.distances.float(), self.options
        objectness, classes = raw[..., 4], raw[..., 5 : 5 + self.spec.num_classes]
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
        if self.spec.one_to_one:
            sums["one_to_one"] = one_to_one_loss(raw[..., -1], scores.square(), boxes.detach(), objects, grid)
        return DetectionLoss(self.with_l1_at_the_end(sums, progress), positive.sum().to(raw.dtype))


QUALITY = 0.8  # share of the IoU in what decides which point is the one of an object


def one_to_one_loss(logits: Tensor, scores: Tensor, boxes: Tensor, objects: Objects, grid: AnchorGrid) -> Tensor:
    """The sum of ``BCE(sigmoid(logits) * scores, one-hot)``: a point per object keeps its score, all others lose it.

    The point of an object is that of the best ``score^0.2 IoU^0.8`` around its centre (Wang et al., DeFCN, 2012.03544,
    section 3.1, "POTO"), objects taken in the order of their quality. Scores and boxes have no gradient.

    Args:
        logits: (B, N) of being the one.
        scores: (B, N, C) with the objectness.
        boxes: (B, N, 4) corners in pixels.
    """
    chosen = one_point_each(scores, boxes, objects, grid)
    wanted = torch.zeros_like(scores)
    image, rank = (chosen >= 0).nonzero(as_tuple=True)
    wanted[image, chosen[image, rank], objects.classes[image, rank]] = 1
    kept = (logits.sigmoid().unsqueeze(-1) * scores).clamp(max=1 - 1e-6)
    return F.binary_cross_entropy(kept, wanted, reduction="sum")


@torch.no_grad()
def one_point_each(scores: Tensor, boxes: Tensor, objects: Objects, grid: AnchorGrid) -> Tensor:
    """The point of each object, (B, M); -1 where no point is left around its centre."""
    index = objects.classes.unsqueeze(-1).expand(-1, -1, scores.shape[1])
    own = scores.transpose(1, 2).gather(1, index)
    quality = own.pow(1 - QUALITY) * pairwise_iou(objects.boxes, boxes).pow(QUALITY) + 1e-9
    quality = quality * near_centre(objects, grid, CENTRE_CELLS)
    chosen = torch.full_like(objects.classes, -1)
    rows = torch.arange(len(quality), device=quality.device)
    for _ in range(quality.shape[1]):
        best, place = quality.flatten(1).max(-1)
        rank, point = place // quality.shape[2], place % quality.shape[2]
        chosen[rows, rank] = torch.where(best > 0, point, chosen[rows, rank])
        quality[rows, rank] = 0
        quality[rows, :, point] = torch.where(best[:, None] > 0, 0, quality[rows, :, point])
    return chosen


def written(boxes: Tensor, grid: AnchorGrid, positive: Tensor) -> Tensor:
    """What the head should write, (P, 4), for boxes (P, 4) in pixels at the positive ones (B, N) of the points."""
    strides = grid.strides.expand(len(positive), -1, -1)[positive]
    corners = (grid.points - grid.strides / 2).expand(len(positive), -1, -1)[positive]
    low, high = boxes.chunk(2, dim=-1)
    sizes = (high - low) / strides
    return torch.cat((((low + high) / 2 - corners) / strides, (sizes + 1e-8).log()), dim=-1)


def _entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
