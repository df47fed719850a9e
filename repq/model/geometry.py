"""Points of feature maps, and boxes as distances from them: the geometry of anchor-free heads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def anchor_points(
    features: Sequence[Tensor], strides: Sequence[int], dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Cell centres of all levels, row by row, finest level first.

    Args:
        dtype: of what is returned; None: that of the maps.

    Returns:
        (N, 2) x and y in cells of their level (0.5, 1.5, …), and (N, 1) the level's stride in pixels.
    """
    points, sizes = [], []
    for feature, stride in zip(features, strides, strict=True):
        height, width = feature.shape[-2:]
        rows = torch.arange(height, dtype=dtype or feature.dtype, device=feature.device)
        columns = torch.arange(width, dtype=dtype or feature.dtype, device=feature.device)
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        centres = torch.stack((x, y), dim=-1).reshape(-1, 2) + 0.5
        points.append(centres)
        sizes.append(torch.full_like(centres[:, :1], stride))
    return torch.cat(points), torch.cat(sizes)


def expected_distances(raw: Tensor, projection: Tensor) -> Tensor:
    """Mean of each side's distribution, ``sum_i softmax(raw)_i projection_i`` (Generalized Focal Loss, equation 6).

    Args:
        raw: (B, N, 4 bins).
        projection: (bins,) the value of each bin.

    Returns:
        (B, N, 4) distances in strides.
    """
    return (raw.unflatten(-1, (4, -1)).softmax(dim=-1) * projection).sum(dim=-1)


def boxes_from_distances(points: Tensor, distances: Tensor) -> Tensor:
    """Corners (x1, y1, x2, y2) from points (N, 2) and left, top, right, bottom distances (…, N, 4), in one unit."""
    left_top, right_bottom = distances.chunk(2, dim=-1)
    return torch.cat((points - left_top, points + right_bottom), dim=-1)


def centre_form(corners: Tensor) -> Tensor:
    """(x1, y1, x2, y2) to (centre x, centre y, width, height)."""
    low, high = corners.chunk(2, dim=-1)
    return torch.cat(((low + high) / 2, high - low), dim=-1)
