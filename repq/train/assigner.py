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
        return Objects(self.boxes.to(device), self.classes.to(device), self.valid.to(device))


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
    point that several objects claim goes to the one of them that it overlaps most. The target score is t, scaled so
    that the best point of an object gets that object's best IoU (Feng et al., TOOD, 2108.07755, sections 3.2 and 3.3).

    Args:
        scores: (B, N, C) after the sigmoid.
        boxes: (B, N, 4) predicted, in pixels.
    """
    overlaps = pairwise_iou(objects.boxes, boxes)
    class_index = objects.classes.unsqueeze(-1).expand(-1, -1, scores.shape[1])
    class_scores = scores.transpose(1, 2).gather(1, class_index)
    allowed = points_inside(grid.points, objects.boxes).logical_and_(objects.valid.unsqueeze(-1))
    alignment = overlaps.pow(beta).mul_(class_scores.pow(alpha)).masked_fill_(~allowed, 0)
    chosen = _mask_of(_top_indices(alignment, top), alignment).logical_and_(allowed)
    chosen = _one_object_per_point(chosen, overlaps)

    alignment.masked_fill_(~chosen, 0)
    best_overlap = overlaps.masked_fill(~chosen, 0).amax(-1, keepdim=True)
    quality = alignment * best_overlap / (alignment.amax(-1, keepdim=True) + EPS)
    return assignment_of(chosen, quality, objects, scores.shape[-1])


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
    anchor_overlaps = pairwise_iou(objects.boxes, grid.boxes(ATSS_ANCHOR_CELLS))
    candidates = _nearest_points(objects.boxes, grid)
    candidate_overlaps = anchor_overlaps.gather(-1, candidates)
    threshold = candidate_overlaps.mean(-1, keepdim=True) + candidate_overlaps.std(-1, keepdim=True)

    chosen = _mask_of(candidates, anchor_overlaps) & (anchor_overlaps > threshold)
    chosen &= points_inside(grid.points, objects.boxes) & objects.valid.unsqueeze(-1)
    chosen = _one_object_per_point(chosen, anchor_overlaps)
    return assignment_of(chosen, pairwise_iou(objects.boxes, boxes) * chosen, objects, scores.shape[-1])


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


def _mask_of(indices: Tensor, like: Tensor) -> Tensor:
    return torch.zeros_like(like, dtype=torch.bool).scatter_(-1, indices, True)


def _one_object_per_point(chosen: Tensor, overlaps: Tensor) -> Tensor:
    """Leave a point that several objects chose to the one of them that it overlaps most."""
    owner = overlaps.where(chosen, -1).argmax(1, keepdim=True)
    return torch.zeros_like(chosen).scatter_(1, owner, True) & chosen


def assignment_of(chosen: Tensor, quality: Tensor, objects: Objects, num_classes: int) -> Assignment:
    """Gather the chosen object of each point. ``chosen`` and ``quality`` are (B, M, N)."""
    positive = chosen.any(1)
    owner = chosen.to(torch.uint8).argmax(1)
    boxes = objects.boxes.gather(1, owner.unsqueeze(-1).expand(-1, -1, 4))
    classes = objects.classes.gather(1, owner)
    labels = torch.nn.functional.one_hot(classes, num_classes) * positive.unsqueeze(-1)
    scores = labels * quality.amax(1).unsqueeze(-1)
    return Assignment(positive, boxes, labels.to(scores.dtype), scores)
