"""Assignment around the centres of objects: SimOTA, and the simpler ones that it grew out of.

Source: Ge et al., YOLOX, 2107.08430, section 2.1 ("Anchor-free", "Multi positives", "SimOTA"). The target score is
the IoU of the predicted box throughout.
"""

from __future__ import annotations

import torch
from torch import Tensor

from repq.train.assigner import Assignment, Objects, assignment_of, with_owner
from repq.train.boxes import AnchorGrid, pairwise_iou

CENTRE_CELLS = 1.5  # a point this near to an object's centre, on each axis, lies in its area
IOU_WEIGHT = 3.0
EPS = 1e-8
OVERLAPS_COUNTED = 10
OUTSIDE = 1e6  # cost of a point outside of the object's area: taken only for want of others
FIRST_RANGE = 8.0  # strides: the largest side of an object that a level takes


@torch.no_grad()
def assign_simota(scores: Tensor, boxes: Tensor, objects: Objects, grid: AnchorGrid) -> Assignment:
    """Assign to each object its k cheapest points among those that lie in the area of any object of the image.

    The cost of a point for an object is ``BCE(score, class) - 3 log IoU``; k is the sum of the object's ten best IoUs,
    rounded down, at least one. A point that several objects take goes to the one of all for which it is cheapest.

    Args:
        scores: (B, N, C) in 0..1, as they are compared with the class.
        boxes: (B, N, 4) predicted, in pixels.
    """
    near = near_centre(objects, grid, CENTRE_CELLS)
    candidates = near.any(1, keepdim=True)
    valid = objects.valid.unsqueeze(-1)
    overlaps = pairwise_iou(objects.boxes, boxes) * (candidates & valid)

    cost = _class_cost(scores, objects.classes) - IOU_WEIGHT * (overlaps + EPS).log()
    cost = (cost + OUTSIDE * ~near).masked_fill_(~(candidates & valid), torch.inf)
    most = min(OVERLAPS_COUNTED, overlaps.shape[-1])
    counts = overlaps.topk(most, dim=-1).values.sum(-1).long().clamp(min=1)
    cheapest = cost.topk(most, dim=-1, largest=False)
    taken = (torch.arange(most, device=cost.device) < counts.unsqueeze(-1)) & cheapest.values.isfinite()
    wanted = torch.zeros_like(near).scatter_(-1, cheapest.indices, taken)
    return _with_best_owner(wanted, -cost, overlaps, objects, scores.shape[-1])


@torch.no_grad()
def assign_centre(scores: Tensor, boxes: Tensor, objects: Objects, grid: AnchorGrid) -> Assignment:
    """Assign to each object the one point nearest to its centre, on the level of its size."""
    return _assign_by_centre(scores, boxes, objects, grid, 0.5)


@torch.no_grad()
def assign_centre_area(scores: Tensor, boxes: Tensor, objects: Objects, grid: AnchorGrid) -> Assignment:
    """Assign to each object the nine points around its centre, on the level of its size ("multi positives")."""
    return _assign_by_centre(scores, boxes, objects, grid, CENTRE_CELLS)


def _assign_by_centre(scores: Tensor, boxes: Tensor, objects: Objects, grid: AnchorGrid, cells: float) -> Assignment:
    """The level takes objects whose longer side is in its range, as in FCOS (1904.01355, section 3.2)."""
    side = (objects.boxes[..., 2:] - objects.boxes[..., :2]).amax(-1, keepdim=True)
    strides = grid.strides.squeeze(-1)
    high = torch.where(strides == strides.max(), torch.inf, FIRST_RANGE * strides)
    low = torch.where(strides == strides.min(), 0.0, FIRST_RANGE * strides / 2)
    wanted = near_centre(objects, grid, cells) & (side >= low) & (side < high)
    area = (objects.boxes[..., 2:] - objects.boxes[..., :2]).prod(-1, keepdim=True)
    overlaps = pairwise_iou(objects.boxes, boxes)
    return _with_best_owner(wanted, -area.expand_as(overlaps), overlaps, objects, scores.shape[-1])


def _with_best_owner(wanted: Tensor, worth: Tensor, overlaps: Tensor, objects: Objects, num_classes: int) -> Assignment:
    """The assignment of points that objects want, (B, M, N); one that several want goes to its best."""
    several = wanted.sum(1) > 1
    best = worth.masked_fill(~objects.valid.unsqueeze(-1), -torch.inf).argmax(1)
    owner = torch.where(several, best, wanted.float().argmax(1)).masked_fill_(~wanted.any(1), wanted.shape[1])
    return assignment_of(owner, with_owner(overlaps, owner), objects, num_classes)


def near_centre(objects: Objects, grid: AnchorGrid, cells: float) -> Tensor:
    """Whether each of the N points is nearer than ``cells`` cells to each object's centre, on each axis: (B, M, N)."""
    centres = (objects.boxes[..., :2] + objects.boxes[..., 2:]).unsqueeze(-2) / 2
    return ((grid.points - centres).abs() < cells * grid.strides).all(-1) & objects.valid.unsqueeze(-1)


def _class_cost(scores: Tensor, classes: Tensor) -> Tensor:
    """(B, M, N) binary cross entropy, summed over classes, of each point's scores with each object's class.

    All classes but the object's count as "no", so the sum over C is common to all objects and only the entry of the
    class itself differs: no tensor of B M N C numbers is needed.
    """
    no = -torch.log1p(-scores).clamp(min=-100)
    difference = (-scores.log().clamp(min=-100) - no).transpose(1, 2)
    own = difference.gather(1, classes.unsqueeze(-1).expand(-1, -1, scores.shape[1]))
    return no.sum(-1).unsqueeze(1) + own
