"""Picking values by indices, and suppression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from repq.model.onnx_graph.operators.table import operator, same_device

_REDUCE = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _from_start(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    """Indices along an axis of ``x``, on its device; negative ones count from the end."""
    indices = same_device(x, indices)
    return torch.where(indices < 0, indices + x.shape[axis], indices)


@operator("Gather")
def gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    axis = axis % x.ndim
    indices = _from_start(x, indices, axis)
    picked = x.index_select(axis, indices.reshape(-1))
    return picked.reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


@operator("GatherElements")
def gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    return x.gather(axis, _from_start(x, indices, axis).long())


@operator("GatherND")
def gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    indices = same_device(x, indices)
    depth, batch = indices.shape[-1], x.shape[:batch_dims]
    places: list[Tensor] = []
    for axis, length in enumerate(batch):
        view = [1] * (indices.ndim - 1)
        view[axis] = length
        places.append(torch.arange(length, device=x.device).view(view))
    places += [indices[..., column] for column in range(depth)]
    return x[tuple(places)]


@operator("ScatterElements", "Scatter")
def scatter_elements(x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none") -> Tensor:
    indices = _from_start(x, indices, axis).long()
    if reduction == "none":
        return x.scatter(axis, indices, updates)
    return x.scatter_reduce(axis, indices, updates, _REDUCE[reduction])


@operator("ScatterND")
def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    indices = same_device(x, indices)
    depth = indices.shape[-1]
    flat_index = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=x.device)
    for axis in range(depth):
        place = indices[..., axis]
        flat_index = flat_index * x.shape[axis] + torch.where(place < 0, place + x.shape[axis], place)
    rows = x.reshape(-1, *x.shape[depth:])
    flat, values = flat_index.reshape(-1), updates.reshape(-1, *x.shape[depth:])
    if reduction == "none":
        return rows.index_copy(0, flat, values).view_as(x)
    if reduction == "add":
        return rows.index_add(0, flat, values).view_as(x)
    return rows.index_reduce(0, flat, values, _REDUCE[reduction]).view_as(x)


@operator("NonZero")
def non_zero(x: Tensor) -> Tensor:
    return x.reshape(x.shape or (1,)).nonzero().T


@operator("OneHot", host=(1,))
def one_hot(indices: Tensor, depth: Any, values: Tensor, *, axis: int = -1) -> Tensor:
    depth = int(depth[0] if isinstance(depth, list) else depth)
    wanted = indices.long() % depth
    inside = (indices >= -depth) & (indices < depth)
    axis = axis % (indices.ndim + 1)
    view = [1] * (indices.ndim + 1)
    view[axis] = depth
    hits = torch.arange(depth, device=indices.device).view(view) == wanted.unsqueeze(axis)
    return torch.where(hits & inside.unsqueeze(axis), values[1], values[0])


@operator("NonMaxSuppression", host=(2, 3, 4))
def non_max_suppression(
    boxes: Tensor, scores: Tensor, most: Any = 0, iou: Any = 0.0, least: Any = None, *, center_point_box: int = 0
) -> Tensor:
    """Rows of image, class, box: per class the best first, none that overlaps a better one by more than ``iou``."""
    most, iou, least = (value[0] if isinstance(value, list) else value for value in (most, iou, least))
    found: list[Sequence[int]] = []
    corners = _corners(boxes.double(), center_point_box)
    for image in range(scores.shape[0]):
        for label in range(scores.shape[1]):
            of_class = scores[image, label]
            order = torch.sort(of_class, descending=True, stable=True).indices
            if least is not None:
                order = order[of_class[order] > least]
            found += [(image, label, box) for box in _survivors(corners[image], order, iou or 0.0, most or 0)]
    return torch.tensor(found, dtype=torch.int64, device=boxes.device).view(-1, 3)


def _corners(boxes: Tensor, centred: int) -> Tensor:
    first, second = boxes[..., :2], boxes[..., 2:]
    if centred:
        return torch.cat((first - second / 2, first + second / 2), -1)
    return torch.cat((torch.minimum(first, second), torch.maximum(first, second)), -1)


def _survivors(corners: Tensor, order: Tensor, iou: float, most: int) -> list[int]:
    kept: list[int] = []
    area = (corners[:, 2:] - corners[:, :2]).prod(-1)
    while len(order) and len(kept) < most:
        best, order = int(order[0]), order[1:]
        kept.append(best)
        low = torch.maximum(corners[order, :2], corners[best, :2])
        high = torch.minimum(corners[order, 2:], corners[best, 2:])
        common = (high - low).clamp(min=0).prod(-1)
        order = order[common <= iou * (area[order] + area[best] - common)]
    return kept
