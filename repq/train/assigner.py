"""Which predictions learn from which object: task-aligned assignment, and ATSS for the first epochs.

Both work on many images at once; objects are padded to the largest count among them. The largest tensors are
(B, M, N) or (B, M, N, 2) for B images, M objects and N points, a few at a time; `assign_in_slices` bounds B M N.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repq.machine.torch_device import on_device
from repq.train.boxes import EPS, AnchorGrid, pairwise_iou, points_inside

ATSS_ANCHOR_CELLS = 5.0
ATSS_POINTS_PER_LEVEL = 9
# Pairs of object and point at a time. On CUDA memory is the bound (64 MiB for each float tensor over them), on CPUs the
# cache is, and that the allocator gives small tensors without new pages.
MOST_PAIRS = {"cuda": 1 << 24, "cpu": 1 << 18}


@dataclass(frozen=True)
class Objects:
    """The labelled objects of a batch, padded to M of them, M at least one.

    Attributes:
        boxes: (B, M, 4) x1 y1 x2 y2 in pixels; zeros where padded.
        classes: (B, M) int64; 0 where padded.
        valid: (B, M) bool.
    """

    boxes: Tensor
    classes: Tensor
    valid: Tensor

    def __len__(self) -> int:
        return len(self.boxes)

    def images(self, part: slice) -> Objects:
        """Those of some images of the batch."""
        return Objects(self.boxes[part], self.classes[part], self.valid[part])

    def to(self, device: torch.device) -> Objects:
        return Objects(*(on_device(part, device) for part in (self.boxes, self.classes, self.valid)))


def pad_objects(labels: Sequence[NDArray[np.float32]]) -> Objects:
    """Pad the labels of each image, rows of class, x1, y1, x2, y2 in pixels, to one tensor."""
    most = max([1, *(len(rows) for rows in labels)])
    padded = np.zeros((len(labels), most, 5), np.float32)
    valid = np.zeros((len(labels), most), np.bool_)
    for image, rows in enumerate(labels):
        padded[image, : len(rows)] = rows
        valid[image, : len(rows)] = True
    classes = torch.from_numpy(padded[..., 0].astype(np.int64))
    return Objects(torch.from_numpy(padded[..., 1:]), classes, torch.from_numpy(valid))


@dataclass(frozen=True)
class Assignment:
    """What each of the N points of each image should predict.

    Attributes:
        positive: (B, N) bool.
        boxes: (B, N, 4) the object's box in pixels; meaningless where not positive.
        labels: (B, N, C) one-hot float; zeros where not positive.
        scores: (B, N, C) the labels times the quality that the score should express, 0..1.
    """

    positive: Tensor
    boxes: Tensor
    labels: Tensor
    scores: Tensor


def assign_in_slices(
    assign: Callable[[Tensor, Tensor, Objects, AnchorGrid], Assignment],
    scores: Tensor,
    boxes: Tensor,
    objects: Objects,
    grid: AnchorGrid,
    most_pairs: int | None = None,
) -> Assignment:
    """Assign as many images at a time as keep the pairs of object and point at ``most_pairs``, and one at least.

    Images do not influence each other, so the result does not depend on the slices. By default ``most_pairs`` is what
    suits the device.
    """
    most_pairs = most_pairs or MOST_PAIRS[scores.device.type]
    pairs_per_image = objects.boxes.shape[1] * len(grid.points)
    step = max(1, most_pairs // pairs_per_image)
    slices = [slice(start, start + step) for start in range(0, len(objects), step)]
    parts = [assign(scores[part], boxes[part], objects.images(part), grid) for part in slices]
    if len(parts) == 1:
        return parts[0]
    return Assignment(
        torch.cat([part.positive for part in parts]),
        torch.cat([part.boxes for part in parts]),
        torch.cat([part.labels for part in parts]),
        torch.cat([part.scores for part in parts]),
    )


@torch.no_grad()
def assign_task_aligned(
    scores: Tensor,
    boxes: Tensor,
    objects: Objects,
    grid: AnchorGrid,
    *,
    top: int = 13,
    alpha: float = 1.0,
    beta: float = 6.0,
) -> Assignment:
    """Assign to each object the ``top`` points inside it that score and locate it best.

    The alignment of a point with an object is ``t = s^alpha * IoU^beta``, s being the score of the object's class. A
    point that several objects claim goes to the object of the image that it overlaps most, as `owners` says. The target
    score is t, scaled so that the best point of an object gets that object's best IoU (Feng et al., TOOD, 2108.07755,
    sections 3.2 and 3.3).

    Args:
        scores: (B, N, C) after the sigmoid.
        boxes: (B, N, 4) predicted, in pixels.
    """
    overlaps = pairwise_iou(objects.boxes, boxes)
    class_index = objects.classes.unsqueeze(-1).expand(-1, -1, scores.shape[1])
    class_scores = scores.transpose(1, 2).gather(1, class_index)
    allowed = points_inside(grid.points, objects.boxes).logical_and_(objects.valid.unsqueeze(-1))
    alignment = _power(overlaps, beta).mul_(_power(class_scores, alpha)).mul_(allowed)
    best = _top_indices(alignment, top)

    owner = owners(best, allowed.gather(-1, best), overlaps)
    overlap = with_owner(overlaps, owner)
    aligned = _power(overlap, beta) * _power(with_owner(class_scores, owner), alpha)
    best_overlap, best_aligned = (best_of_owner(values, owner, len(objects.boxes[0])) for values in (overlap, aligned))
    quality = aligned * best_overlap / (best_aligned + EPS)
    return assignment_of(owner, quality, objects, scores.shape[-1])


@torch.no_grad()
def assign_atss(scores: Tensor, boxes: Tensor, objects: Objects, grid: AnchorGrid) -> Assignment:
    """Assign by geometry alone, for the epochs in which predictions mean nothing yet.

    Candidates of an object are the 9 points nearest to its centre on each level. Of these, a point inside the object
    is positive if its anchor's IoU is above the candidates' mean plus standard deviation (Zhang et al., ATSS,
    1912.02424, algorithm 1). The target score is the IoU of the predicted box.

    Args:
        scores: (B, N, C); only its shape matters.
        boxes: (B, N, 4) predicted, in pixels.
    """
    candidates = _nearest_points(objects.boxes, grid)
    anchor_overlaps = pairwise_iou(objects.boxes, grid.boxes(ATSS_ANCHOR_CELLS))
    of_candidates = anchor_overlaps.gather(-1, candidates)
    threshold = of_candidates.mean(-1, keepdim=True) + of_candidates.std(-1, keepdim=True)
    inside = points_inside(grid.points, objects.boxes).logical_and_(objects.valid.unsqueeze(-1))
    wanted = inside.gather(-1, candidates) & (of_candidates > threshold)

    owner = owners(candidates, wanted, anchor_overlaps)
    quality = with_owner(pairwise_iou(objects.boxes, boxes), owner)
    return assignment_of(owner, quality, objects, scores.shape[-1])


def _top_indices(values: Tensor, count: int) -> Tensor:
    return values.topk(min(count, values.shape[-1]), dim=-1).indices


def _nearest_points(boxes: Tensor, grid: AnchorGrid) -> Tensor:
    """(B, M, K) indices of the points nearest to each box centre, the same number from every level."""
    centres = (boxes[..., :2] + boxes[..., 2:]) / 2
    distances = (centres.unsqueeze(-2) - grid.points).square().sum(-1)
    first = 0
    indices = []
    for level in distances.split(grid.counts, dim=-1):
        indices.append(_top_indices(-level, ATSS_POINTS_PER_LEVEL) + first)
        first += level.shape[-1]
    return torch.cat(indices, dim=-1)


def _power(values: Tensor, exponent: float) -> Tensor:
    """A new tensor; the sixth power, the usual beta, as products: on CPUs many times faster than ``pow``."""
    if exponent == 6:
        square = values.square()
        return square.square().mul_(square)
    return values.pow(exponent)


def owners(points: Tensor, wanted: Tensor, worth: Tensor) -> Tensor:
    """The object that gets each point, as (B, N) indices; M where no object wants it.

    A point that several objects want goes to the object of its image to which it is worth most, whether or not that
    one is among them; to the first if several are equal.

    Args:
        points: (B, M, K) indices that each object names, different ones along K.
        wanted: (B, M, K) bool, which of them count.
        worth: (B, M, N); if something is not a number, it is the most, so that losses show it.
    """
    images, most, num_points = worth.shape
    where = points.flatten(1)
    ranks = torch.arange(most, device=points.device).view(1, most, 1)
    bids = torch.where(wanted, ranks, most).flatten(1)
    owner = bids.new_full((images, num_points), most).scatter_reduce_(1, where, bids, "amin")
    last = bids.new_full((images, num_points), -1).scatter_reduce_(1, where, bids.where(bids < most, -1), "amax")
    image, point = (last > owner).nonzero(as_tuple=True)  # few: the whole of `worth` is not looked at
    owner[image, point] = worth[image, :, point].argmax(-1)
    return owner


def with_owner(values: Tensor, owner: Tensor) -> Tensor:
    """(B, N) the values (B, M, N) of each point and its owner; 0 where it has none."""
    most = values.shape[1]
    return values.gather(1, owner.clamp(max=most - 1).unsqueeze(1)).squeeze(1) * (owner < most)


def best_of_owner(values: Tensor, owner: Tensor, most: int) -> Tensor:
    """(B, N) the largest of the values (B, N), 0 or more, among the points that have the same owner."""
    return values.new_zeros(len(values), most + 1).scatter_reduce_(1, owner, values, "amax").gather(1, owner)


def assignment_of(owner: Tensor, quality: Tensor, objects: Objects, num_classes: int) -> Assignment:
    """The object of each point as what the point should predict. ``quality`` is (B, N), 0 where there is no owner."""
    positive = owner < objects.boxes.shape[1]
    owner = owner * positive
    boxes = objects.boxes.gather(1, owner.unsqueeze(-1).expand(-1, -1, 4))
    labels = torch.nn.functional.one_hot(objects.classes.gather(1, owner), num_classes) * positive.unsqueeze(-1)
    return Assignment(positive, boxes, labels.to(quality.dtype), labels * quality.unsqueeze(-1))
