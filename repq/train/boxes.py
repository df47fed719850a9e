"""Anchor points and IoU: the geometry that assignment and losses share.

Boxes are ``(x1, y1, x2, y2)``. A *point* is the centre of a feature-map cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

EPS = 1e-9


@dataclass(frozen=True)
class AnchorGrid:
    """One point for every prediction, finest level first.

    Attributes:
        points: (N, 2) cell centres in pixels.
        strides: (N, 1) pixels per cell.
        counts: number of points of each level; sums to N.
    """

    points: Tensor
    strides: Tensor
    counts: tuple[int, ...]

    def boxes(self, cells: float) -> Tensor:
        """(N, 4) square boxes around the points, ``cells`` cells wide (the anchors of ATSS)."""
        half = self.strides * cells / 2
        return torch.cat((self.points - half, self.points + half), dim=-1)


def anchor_grid(sizes: Sequence[tuple[int, int]], strides: Sequence[int], device: torch.device) -> AnchorGrid:
    """Build the points of feature maps with the given (height, width) ``sizes``."""
    points, per_point = [], []
    for (height, width), stride in zip(sizes, strides, strict=True):
        y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) * stride
        x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) * stride
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        points.append(torch.stack((grid_x, grid_y), dim=-1).reshape(-1, 2))
        per_point.append(torch.full((height * width, 1), float(stride), device=device))
    return AnchorGrid(torch.cat(points), torch.cat(per_point), tuple(len(level) for level in points))


@lru_cache(maxsize=64)
def grid_of(size: tuple[int, int], strides: tuple[int, ...], device: torch.device) -> AnchorGrid:
    """The points of levels of these ``strides`` for network input of ``size`` (height, width)."""
    return anchor_grid([(size[0] // stride, size[1] // stride) for stride in strides], strides, device)


def distances_from_boxes(points: Tensor, boxes: Tensor) -> Tensor:
    """Left, top, right, bottom distances (…, 4) from points (…, 2) to the sides of boxes (…, 4)."""
    left_top, right_bottom = boxes.chunk(2, dim=-1)
    return torch.cat((points - left_top, right_bottom - points), dim=-1)


def pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU of every box of (…, M, 4) with every box of (…, N, 4): (…, M, N)."""
    x1, y1, x2, y2 = (side.unsqueeze(-1) for side in _coordinates(first))
    other_x1, other_y1, other_x2, other_y2 = (side.unsqueeze(-2) for side in _coordinates(second))
    width = (torch.minimum(x2, other_x2) - torch.maximum(x1, other_x1)).clamp_(min=0)
    height = (torch.minimum(y2, other_y2) - torch.maximum(y1, other_y1)).clamp_(min=0)
    overlap = width.mul_(height)
    union = _area(first).unsqueeze(-1) + _area(second).unsqueeze(-2) - overlap
    return overlap.div_(union.add_(EPS))


def points_inside(points: Tensor, boxes: Tensor) -> Tensor:
    """Whether each of (N, 2) points lies strictly inside each of (…, M, 4) boxes: bool (…, M, N)."""
    x, y = _coordinates(points)
    x1, y1, x2, y2 = (side.unsqueeze(-1) for side in _coordinates(boxes))
    inside = x > x1
    return inside.logical_and_(y > y1).logical_and_(x < x2).logical_and_(y < y2)


def _coordinates(values: Tensor) -> tuple[Tensor, ...]:
    """The columns of a last axis, each in one piece: pairs of boxes are many, and torch is slow over strided ones."""
    return values.movedim(-1, 0).contiguous().unbind(0)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)
