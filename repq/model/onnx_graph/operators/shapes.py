"""Shapes, and moving values about without changing them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from repq.model.onnx_graph.operators.table import TORCH_TYPES, operator


@operator("Shape")
def shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(x.shape[start:end], dtype=torch.int64)


@operator("Size")
def size(x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), dtype=torch.int64)


@operator("Reshape", host=(1,))
def reshape(x: Tensor, wanted: Sequence[int], *, allowzero: int = 0) -> Tensor:
    if not allowzero:
        wanted = [x.shape[axis] if length == 0 else length for axis, length in enumerate(wanted)]
    return x.reshape(tuple(wanted))


@operator("Flatten")
def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    before = x.shape[: axis % x.ndim if axis != x.ndim else x.ndim]
    return x.reshape(int(np.prod(before, dtype=np.int64)), -1)


@operator("Squeeze", host=(1,))
def squeeze(x: Tensor, given: Sequence[int] | None = None, *, axes: Sequence[int] | None = None) -> Tensor:
    chosen = given if given is not None else axes
    return x.squeeze() if chosen is None else x.squeeze(tuple(chosen))


@operator("Unsqueeze", host=(1,))
def unsqueeze(x: Tensor, given: Sequence[int] | None = None, *, axes: Sequence[int] = ()) -> Tensor:
    chosen = axes if given is None else [given] if isinstance(given, int) else given
    for axis in sorted(axis % (x.ndim + len(chosen)) for axis in chosen):
        x = x.unsqueeze(axis)
    return x


@operator("Transpose")
def transpose(x: Tensor, *, perm: Sequence[int] | None = None) -> Tensor:
    return x.permute(*reversed(range(x.ndim)) if perm is None else perm)


@operator("Concat")
def concat(*tensors: Tensor, axis: int) -> Tensor:
    return torch.cat(tensors, axis)


@operator("Split", host=(1,))
def split(
    x: Tensor, given: Sequence[int] | None = None, *, axis: int = 0, split: Sequence[int] | None = None,
    num_outputs: int | None = None, outputs: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    sizes = given if given is not None else split
    return torch.split(x, -(-x.shape[axis] // outputs) if sizes is None else list(sizes), axis)


@operator("Slice", host=(1, 2, 3, 4))
def slice_(
    x: Tensor, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int] | None = None,
    steps: Sequence[int] | None = None,
) -> Tensor:  # fmt: skip
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = number if axes is None else axes[number]
        step = 1 if steps is None else steps[number]
        length = x.shape[axis]
        if step > 0:
            begin, stop, _ = slice(start, end, step).indices(length)
            x = x[(slice(None),) * (axis % x.ndim) + (slice(begin, stop, step),)]
        else:
            begin = min(max(start + length if start < 0 else start, 0), length - 1)
            stop = min(max(end + length if end < 0 else end, -1), length - 1)
            x = x.index_select(axis, torch.tensor(range(begin, stop, step), dtype=torch.int64, device=x.device))
    return x


@operator("Expand", host=(1,))
def expand(x: Tensor, wanted: Sequence[int]) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, tuple(wanted)))


@operator("Tile", host=(1,))
def tile(x: Tensor, repeats: Sequence[int]) -> Tensor:
    return x.repeat(*repeats)


@operator("Pad", host=(1, 2, 3))
def pad(
    x: Tensor, pads: Sequence[int], value: Any = None, axes: Sequence[int] | None = None, *, mode: str = "constant"
) -> Tensor:
    axes = range(x.ndim) if axes is None else [axis % x.ndim for axis in axes]
    edges = [(0, 0)] * x.ndim
    for number, axis in enumerate(axes):
        edges[axis] = (pads[number], pads[number + len(axes)])
    if mode == "constant":
        value = value[0] if isinstance(value, list) else value
        return functional.pad(x, [n for pair in reversed(edges) for n in pair], value=value or 0)
    for axis, (before, after) in enumerate(edges):
        if before or after:
            x = x.index_select(axis, _mirrored(x.shape[axis], before, after, mode).to(x.device))
    return x


def _mirrored(length: int, before: int, after: int, mode: str) -> Tensor:
    """Which index stands at each place of a padded axis."""
    places = torch.arange(-before, length + after)
    if mode == "edge":
        return places.clamp(0, length - 1)
    if mode == "wrap":
        return places % length
    period = max(1, 2 * (length - 1))
    folded = places % period
    return torch.where(folded < length, folded, period - folded)


@operator("DepthToSpace")
def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    if mode == "CRD":
        return functional.pixel_shuffle(x, blocksize)
    batch, channels, height, width = x.shape
    parts = x.view(batch, blocksize, blocksize, channels // blocksize**2, height, width)
    return parts.permute(0, 3, 4, 1, 5, 2).reshape(batch, -1, height * blocksize, width * blocksize)


@operator("SpaceToDepth")
def space_to_depth(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    batch, channels, height, width = x.shape
    parts = x.view(batch, channels, height // blocksize, blocksize, width // blocksize, blocksize)
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    return parts.permute(order).reshape(batch, -1, height // blocksize, width // blocksize)


@operator("Constant")
def constant(
    *, value: Any = None, value_float: float | None = None, value_floats: Sequence[float] | None = None,
    value_int: int | None = None, value_ints: Sequence[int] | None = None,
) -> Tensor:  # fmt: skip
    if value is not None:
        return torch.from_numpy(np.array(value))
    if value_float is not None or value_floats is not None:
        return torch.tensor(value_float if value_floats is None else value_floats, dtype=torch.float32)
    return torch.tensor(value_int if value_ints is None else value_ints, dtype=torch.int64)


@operator("ConstantOfShape", host=(0,))
def constant_of_shape(wanted: Sequence[int], *, value: Any = None) -> Tensor:
    filling = torch.zeros(1) if value is None else torch.from_numpy(np.array(value))
    return filling.reshape(()).repeat(*wanted) if len(wanted) else filling.reshape(())


@operator("Range")
def range_(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


@operator("EyeLike")
def eye_like(x: Tensor, *, dtype: int | None = None, k: int = 0) -> Tensor:
    ones = torch.ones(x.shape, dtype=x.dtype if dtype is None else TORCH_TYPES[dtype], device=x.device)
    return ones.triu(k).tril(k)


@operator("Trilu", host=(1,))
def triangle(x: Tensor, k: Any = 0, *, upper: int = 1) -> Tensor:
    k = k[0] if isinstance(k, list) else k or 0
    return x.triu(k) if upper else x.tril(k)
