"""The detection loss: class scores, an IoU loss on boxes, distribution focal loss and L1 on box sides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from repq.model.geometry import boxes_from_distances, expected_distances
from repq.recipe import TrainConfig
from repq.train.assigner import Assignment, Objects, assign_atss, assign_in_slices, assign_task_aligned
from repq.train.boxes import AnchorGrid, distances_from_boxes
from repq.train.class_losses import ClassLoss, class_loss
from repq.train.distill import Imitation, class_divergence, side_divergence
from repq.train.iou_losses import IouLoss, iou_loss
from repq.train.simota import assign_simota

Assign = Callable[[Tensor, Tensor, Objects, AnchorGrid], Assignment]
ASSIGNERS: dict[str, Assign] = {"task_aligned": assign_task_aligned, "simota": assign_simota}


@dataclass(frozen=True)
class LossOptions:
    """Which losses, and how much of each.

    Attributes:
        assign: of objects to predictions.
        class_weights: a factor of every class; none means 1 each.
    """

    class_kind: ClassLoss = "varifocal"
    iou_kind: IouLoss = "siou"
    assign: Assign = assign_task_aligned
    class_: float = 1.0
    iou: float = 2.5
    dfl: float = 0.5
    l1: float = 0.0
    class_weights: tuple[float, ...] = ()

    @staticmethod
    def from_config(config: TrainConfig) -> LossOptions:
        return LossOptions(
            class_kind=config.class_loss,
            iou_kind=config.iou_loss,
            assign=ASSIGNERS[config.assigner],
            class_=config.class_weight,
            iou=config.iou_weight,
            dfl=config.dfl_weight,
            l1=config.l1_weight,
            class_weights=config.class_weights,
        )


@dataclass(frozen=True)
class DetectionLoss:
    """The loss of one batch, as sums.

    Attributes:
        sums: the weighted parts by name, scalars with gradients.
        target_score: the sum of the target scores, a scalar without: what the sums are divided by if it is above one.

    Sums and target scores of several batches, added up, are those of the joined batch.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    target_score: Tensor = field(default_factory=lambda: torch.zeros(()))

    @property
    def total_sum(self) -> Tensor:
        return torch.stack(list(self.sums.values())).sum()

    @property
    def total(self) -> Tensor:
        """The loss of this batch alone."""
        return self.total_sum / self.target_score.clamp(min=1)

    def part(self, name: str) -> Tensor:
        """One part of ``total``."""
        return self.sums[name] / self.target_score.clamp(min=1)


def detection_loss(
    scores: Tensor,
    distances: Tensor,
    objects: Objects,
    grid: AnchorGrid,
    *,
    reg_max: int,
    options: LossOptions = LossOptions(),
    warm_up: bool = False,
    imitation: Imitation | None = None,
) -> DetectionLoss:
    """Assign the objects to the predictions and compare (YOLOv6 report, sections 2.2 and 2.3).

    Args:
        scores: (B, N, C) after the sigmoid.
        distances: (B, N, 4) in cells or, with DFL, (B, N, 4 * (reg_max + 1)) logits.
        reg_max: 0 without DFL.
        warm_up: assign with ATSS in place of the assigner of the options.
        imitation: what the teacher says to the same images, and how much it counts.
    """
    scores, distances = scores.float(), distances.float()
    points = grid.points / grid.strides
    sides = side_lengths(distances, reg_max)
    boxes = boxes_from_distances(points, sides)
    assign = assign_atss if warm_up else options.assign
    target = assign_in_slices(assign, scores.detach(), boxes.detach() * grid.strides, objects, grid)

    positive = target.positive
    box_weights = target.scores.sum(-1)[positive]
    target_boxes = (target.boxes / grid.strides)[positive]
    target_sides = distances_from_boxes(points.expand(len(boxes), -1, -1)[positive], target_boxes)

    of_classes = class_loss(scores, target.labels, target.scores, options.class_kind)
    if options.class_weights:
        of_classes = of_classes * of_classes.new_tensor(options.class_weights)
    of_boxes = iou_loss(boxes[positive], target_boxes, options.iou_kind)
    sums = {
        "class": of_classes.sum() * options.class_,
        "iou": (of_boxes * box_weights).sum() * options.iou,
    }
    if reg_max > 0:
        logits = distances[positive].unflatten(-1, (4, reg_max + 1))
        of_sides = distribution_focal_loss(logits, target_sides).mean(-1)
        sums["dfl"] = (of_sides * box_weights).sum() * options.dfl
    if options.l1 > 0:
        sums["l1"] = ((sides[positive] - target_sides).abs().mean(-1) * box_weights).sum() * options.l1
    if imitation is not None:
        sums["distill_class"] = class_divergence(scores, imitation.scores) * imitation.class_weight
        if reg_max > 0:
            taught = imitation.distances[positive].unflatten(-1, (4, reg_max + 1))
            sums["distill_dfl"] = (side_divergence(logits, taught) * box_weights).sum() * imitation.dfl_weight
    return DetectionLoss(sums, target.scores.sum())


def side_lengths(distances: Tensor, reg_max: int) -> Tensor:
    """Raw box sides, one number or ``reg_max + 1`` logits each, as (…, 4) lengths in cells."""
    if reg_max == 0:
        return distances
    bins = torch.arange(reg_max + 1, device=distances.device, dtype=torch.float32)
    return expected_distances(distances, bins)


def distribution_focal_loss(logits: Tensor, sides: Tensor) -> Tensor:
    """Cross entropy with the two integers around each side, weighted by nearness (2006.04388, equation 6).

    Args:
        logits: (…, 4, reg_max + 1).
        sides: (…, 4) distances in cells, cut off just below reg_max.
    """
    reg_max = logits.shape[-1] - 1
    sides = sides.clamp(0, reg_max - 0.01)
    below = sides.floor()
    fraction = sides - below
    log_probability = logits.log_softmax(-1)
    index = below.long().unsqueeze(-1)
    at_below = log_probability.gather(-1, index).squeeze(-1)
    at_above = log_probability.gather(-1, index + 1).squeeze(-1)
    return -(at_below * (1 - fraction) + at_above * fraction)
