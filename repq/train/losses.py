"""The detection loss and its parts: class scores, an IoU loss on boxes, distribution focal loss and L1 on box sides."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from repq.model.geometry import boxes_from_distances, expected_distances
from repq.recipe import TrainConfig
from repq.train.assigner import Assignment, Objects, assign_atss, assign_in_slices, assign_task_aligned
from repq.train.boxes import AnchorGrid, distances_from_boxes
from repq.train.simota import assign_centre, assign_centre_area, assign_simota

ClassLoss = Literal["varifocal", "focal", "quality_focal", "poly"]
IouLoss = Literal["giou", "diou", "ciou", "siou", "iou"]

GAMMA = 2.0
ALPHA = 0.25  # weight of positives in the focal loss
VARIFOCAL_ALPHA = 0.75  # weight of negatives in the varifocal loss
POLY_EPSILON = 1.0
EPS = 1e-7  # keeps quotients and roots finite for boxes without extent

Assign = Callable[[Tensor, Tensor, Objects, AnchorGrid], Assignment]
ASSIGNERS: dict[str, Assign] = {
    "task_aligned": assign_task_aligned,
    "simota": assign_simota,
    "centre": assign_centre,
    "centre_area": assign_centre_area,
}


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
) -> DetectionLoss:
    """Assign the objects to the predictions and compare (YOLOv6 report, sections 2.2 and 2.3).

    Args:
        scores: (B, N, C) after the sigmoid.
        distances: (B, N, 4) in cells or, with DFL, (B, N, 4 * (reg_max + 1)) logits.
        reg_max: 0 without DFL.
        warm_up: assign with ATSS in place of the assigner of the options.
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


# --- losses of class scores: binary cross entropies that weigh easy points down, each in its own way


def class_loss(scores: Tensor, labels: Tensor, quality: Tensor, kind: ClassLoss) -> Tensor:
    """Loss of each score, of shape (…, C) like the arguments. With p the score, y the label and q the quality:

    - ``varifocal``: ``BCE(p, q)`` times q where y = 1, ``0.75 p^2`` elsewhere (Zhang et al. 2008.13367, equation 2).
    - ``quality_focal``: ``|q - p|^2 BCE(p, q)`` (Li et al. 2006.04388, equation 3).
    - ``focal``: ``a (1 - r)^2 BCE(p, y)``, r being p and a = 0.25 where y = 1, r = 1 - p and a = 0.75 elsewhere
      (Lin et al. 1708.02002, equation 5).
    - ``poly``: ``focal`` + ``a (1 - r)^3`` (Leng et al. 2204.12511, Poly-1 form of the focal loss, section 5).

    The weights take part in the gradient.

    Args:
        scores: after the sigmoid.
        labels: one-hot; zeros for points without an object.
        quality: the score that a point should give, 0..1; zero where the label is.
    """
    if kind == "varifocal":
        weights = VARIFOCAL_ALPHA * scores.pow(GAMMA) * (1 - labels) + quality * labels
        return _cross_entropy(scores, quality) * weights
    if kind == "quality_focal":
        return _cross_entropy(scores, quality) * (quality - scores).abs().pow(GAMMA)
    wrong = scores * (1 - labels) + (1 - scores) * labels
    alpha = ALPHA * labels + (1 - ALPHA) * (1 - labels)
    focal = alpha * wrong.pow(GAMMA) * _cross_entropy(scores, labels)
    return focal if kind == "focal" else focal + POLY_EPSILON * alpha * wrong.pow(GAMMA + 1)


def _cross_entropy(scores: Tensor, wanted: Tensor) -> Tensor:
    """The binary one, finite for a score that is not a number: torch stops at one, on CUDA with the whole process.

    The weights of all kinds of loss hold the score, so the loss is not a number then, which the training reports.
    """
    return F.binary_cross_entropy(scores.nan_to_num(0.5), wanted.nan_to_num(0.5), reduction="none")


# --- losses of boxes: ``1 - IoU`` plus a penalty that still has a gradient where boxes don't overlap


def iou_loss(predicted: Tensor, target: Tensor, kind: IouLoss) -> Tensor:
    """Loss of each pair of boxes (…, 4), x1 y1 x2 y2 in any one unit: shape (…).

    - ``iou``: ``1 - IoU^2``, without a penalty.
    - ``giou``: + the share of the enclosing box that neither covers (Rezatofighi et al. 1902.09630).
    - ``diou``: + squared centre distance over squared diagonal of the enclosing box (Zheng et al. 1911.08287).
    - ``ciou``: ``diou`` + ``alpha * v``, v the difference of the aspect angles (same paper, section 4.2).
    - ``siou``: + half of a distance cost, weighted by the angle to the nearest axis, and a shape cost
      (Gevorgyan 2205.12740).
    """
    size_p = predicted[..., 2:] - predicted[..., :2]
    size_t = target[..., 2:] - target[..., :2]
    overlap_min = torch.maximum(predicted[..., :2], target[..., :2])
    overlap_max = torch.minimum(predicted[..., 2:], target[..., 2:])
    overlap = (overlap_max - overlap_min).clamp(min=0).prod(-1)
    union = size_p.prod(-1) + size_t.prod(-1) - overlap + EPS
    iou = overlap / union
    if kind == "iou":
        return 1 - iou.square()
    enclosing = torch.maximum(predicted[..., 2:], target[..., 2:]) - torch.minimum(predicted[..., :2], target[..., :2])
    if kind == "giou":
        hull = enclosing.prod(-1) + EPS
        return 1 - iou + (hull - union) / hull
    offset = (target[..., :2] + target[..., 2:] - predicted[..., :2] - predicted[..., 2:]) / 2
    if kind == "siou":
        return 1 - iou + (_distance_cost(offset, enclosing) + _shape_cost(size_p, size_t)) / 2
    penalty = offset.square().sum(-1) / (enclosing.square().sum(-1) + EPS)
    if kind == "ciou":
        penalty = penalty + _aspect_penalty(size_p, size_t, iou)
    return 1 - iou + penalty


def _aspect_penalty(size_p: Tensor, size_t: Tensor, iou: Tensor) -> Tensor:
    angle_p = torch.atan(size_p[..., 0] / (size_p[..., 1] + EPS))
    angle_t = torch.atan(size_t[..., 0] / (size_t[..., 1] + EPS))
    v = 4 / math.pi**2 * (angle_t - angle_p).square()
    with torch.no_grad():
        alpha = v / (v - iou + 1 + EPS)
    return alpha * v


def _distance_cost(offset: Tensor, enclosing: Tensor) -> Tensor:
    """``sum over x, y of 1 - exp(-(2 - sin 2a) * (offset / enclosing)^2)``, a the angle to the nearest axis.

    With s the sine of a, the smaller share of the centre distance, ``sin 2a = 2 s sqrt(1 - s^2)``.
    """
    distance = offset.square().sum(-1).clamp(min=EPS**2).sqrt()
    sine = offset.abs().amin(-1) / distance
    double_sine = 2 * sine * (1 - sine.square()).sqrt()
    ratio = (offset / (enclosing + EPS)).square()
    return (1 - torch.exp((double_sine - 2).unsqueeze(-1) * ratio)).sum(-1)


def _shape_cost(size_p: Tensor, size_t: Tensor) -> Tensor:
    """``sum over w, h of (1 - exp(-|difference| / larger))^4``."""
    difference = (size_p - size_t).abs() / (torch.maximum(size_p, size_t) + EPS)
    return (1 - torch.exp(-difference)).pow(4).sum(-1)
