"""SimOTA: every object takes as many points as its predictions overlap it well, the cheapest ones."""

from __future__ import annotations

import torch
from torch import Tensor

from repq.train.assigner import Assignment, Objects, assignment_of, with_owner
from repq.train.boxes import EPS, AnchorGrid, pairwise_iou, points_inside

CENTRE_CELLS = 2.5  # a point this near to an object's centre, on each axis, is a candidate even outside of its box
IOU_WEIGHT = 3.0
OVERLAPS_COUNTED = 10
FAR = 1e5  # cost of a point that is not both inside the box and near its centre: taken only for want of others
NEVER = 1e9


@torch.no_grad()
def assign_simota(scores: Tensor, boxes: Tensor, objects: Objects, grid: AnchorGrid) -> Assignment:
    """Assign to each object its k cheapest points (Ge et al., YOLOX, 2107.08430, section 2.1, "SimOTA").

    The cost of a point for an object is ``BCE(score, class) - 3 log IoU``; k is the sum of the object's ten best IoUs,
    rounded down, at least one. A point that several objects take goes to the one for which it is cheapest. The target
    score is the IoU.

    Args:
        scores: (B, N, C) after the sigmoid.
        boxes: (B, N, 4) predicted, in pixels.
    """
    inside = points_inside(grid.points, objects.boxes)
    near = _near_centre(objects.boxes, grid)
    valid = objects.valid.unsqueeze(-1)
    allowed = (inside | near) & valid
    overlaps = pairwise_iou(objects.boxes, boxes) * allowed

    cost = _class_cost(scores, objects.classes) - IOU_WEIGHT * (overlaps + EPS).log()
    cost = cost + FAR * ~(inside & near) + NEVER * ~allowed
    most = min(OVERLAPS_COUNTED, overlaps.shape[-1])
    counts = overlaps.topk(most, dim=-1).values.sum(-1).long().clamp(min=1)
    cheapest = cost.topk(most, dim=-1, largest=False)
    taken = torch.arange(most, device=cost.device) < counts.unsqueeze(-1)
    wanted = torch.zeros_like(allowed).scatter_(-1, cheapest.indices, allowed.gather(-1, cheapest.indices) & taken)

    owner = cost.masked_fill_(~wanted, torch.inf).argmin(1).masked_fill_(~wanted.any(1), wanted.shape[1])
    return assignment_of(owner, with_owner(overlaps, owner), objects, scores.shape[-1])


def _near_centre(boxes: Tensor, grid: AnchorGrid) -> Tensor:
    centres = (boxes[..., :2] + boxes[..., 2:]).unsqueeze(-2) / 2
    return ((grid.points - centres).abs() < CENTRE_CELLS * grid.strides).all(-1)


def _class_cost(scores: Tensor, classes: Tensor) -> Tensor:
    """(B, M, N) binary cross entropy, summed over classes, of each point's scores with each object's class.

    All classes but the object's count as "no", so the sum over C is common to all objects and only the entry of the
    class itself differs: no tensor of B M N C numbers is needed.
    """
    scores = scores.clamp(EPS, 1 - 1e-7)
    no = -torch.log1p(-scores)
    difference = (-scores.log() - no).transpose(1, 2)
    own = difference.gather(1, classes.unsqueeze(-1).expand(-1, -1, scores.shape[1]))
    return no.sum(-1).unsqueeze(1) + own
