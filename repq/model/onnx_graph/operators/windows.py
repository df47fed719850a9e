"""Pooling, and the padding of sliding windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from repq.model.onnx_graph.operators.table import operator

_MAX: dict[int, Any] = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}


def window_pads(
    sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int],
    pads: Sequence[int], auto_pad: str, ceil_mode: int = 0,
) -> list[tuple[int, int]]:  # fmt: skip
    """What is added before and after each axis so that windows of stride 1, 2 … fit without remainder."""
    result = []
    for axis, size in enumerate(sizes):
        reach = (kernel[axis] - 1) * dilations[axis] + 1
        if auto_pad.startswith("SAME"):
            total = max(0, (-(-size // strides[axis]) - 1) * strides[axis] + reach - size)
            less = total // 2
            begin = total - less if auto_pad == "SAME_LOWER" else less
            result.append((begin, total - begin))
        elif auto_pad == "VALID" or not pads:
            result.append((0, 0))
        else:
            result.append((pads[axis], pads[axis + len(sizes)]))
        if ceil_mode:
            begin, end = result[-1]
            room = size + begin + end - reach
            steps = -(-room // strides[axis])
            if steps * strides[axis] >= size + begin:  # that window would start behind the image
                steps -= 1
            result[-1] = (begin, end + max(0, steps * strides[axis] - room))
    return result


def padded(x: Tensor, pads: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """Add rows before and after the last axes."""
    if not any(before or after for before, after in pads):
        return x
    return functional.pad(x, [n for pair in reversed(pads) for n in pair], value=value)


@operator("MaxPool")
def max_pool(
    x: Tensor, *, kernel_shape: Sequence[int], auto_pad: str = "NOTSET", ceil_mode: int = 0,
    dilations: Sequence[int] = (), pads: Sequence[int] = (), storage_order: int = 0, strides: Sequence[int] = (),
    outputs: int = 1,
) -> Any:  # fmt: skip
    space = len(kernel_shape)
    strides, dilations = strides or (1,) * space, dilations or (1,) * space
    edges = window_pads(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    pool = _MAX[space]
    if outputs == 1:
        sides = zip(edges, kernel_shape, strict=True)
        even = [before for (before, after), size in sides if before == after and 2 * before <= size]
        if len(even) == space and x.is_floating_point():
            return pool(x, kernel_shape, strides, even, dilations)
        least = -torch.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
        floats = x if x.is_floating_point() else x.float()
        return pool(padded(floats, edges, least), kernel_shape, strides, 0, dilations).to(x.dtype)
    wide = padded(x.double(), edges, -torch.inf)
    values, places = pool(wide, kernel_shape, strides, 0, dilations, return_indices=True)
    return values.to(x.dtype), _in_image(places, wide.shape[2:], x.shape, edges, storage_order)


def _in_image(
    places: Tensor, wide: Sequence[int], shape: Sequence[int], edges: Sequence[tuple[int, int]], storage_order: int
) -> Tensor:
    """Flat places in a padded image as flat places in the whole tensor."""
    coordinates, sizes = [], shape[2:]
    for size, (before, _) in zip(reversed(wide), reversed(edges), strict=True):
        coordinates.append(places % size - before)
        places = places // size
    coordinates.reverse()
    order = range(len(sizes)) if not storage_order else range(len(sizes) - 1, -1, -1)
    flat = torch.zeros_like(places)
    for axis in order:
        flat = flat * sizes[axis] + coordinates[axis]
    planes = torch.arange(shape[0] * shape[1], device=places.device).view(*shape[:2], *(1,) * len(sizes))
    return flat + planes * torch.tensor(sizes).prod()


@operator("AveragePool")
def average_pool(
    x: Tensor, *, kernel_shape: Sequence[int], auto_pad: str = "NOTSET", ceil_mode: int = 0,
    count_include_pad: int = 0, dilations: Sequence[int] = (), pads: Sequence[int] = (), strides: Sequence[int] = (),
) -> Tensor:  # fmt: skip
    space = len(kernel_shape)
    strides, dilations = strides or (1,) * space, dilations or (1,) * space
    edges = window_pads(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    stated = window_pads(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad)
    counted = torch.ones_like(x[:1, :1])
    counted = padded(counted, stated, 1.0) if count_include_pad else padded(counted, stated)
    counted = padded(counted, [(0, after - own) for (_, after), (_, own) in zip(edges, stated, strict=True)])
    sums, counts = padded(x, edges), counted
    for axis, (size, stride, dilation) in enumerate(zip(kernel_shape, strides, dilations, strict=True), 2):
        sums, counts = (_window_sums(t, axis, size, stride, dilation) for t in (sums, counts))
    return sums / counts


def _window_sums(x: Tensor, axis: int, size: int, stride: int, dilation: int) -> Tensor:
    """Sums along one axis over windows: a window of several axes is one after the other."""
    return x.unfold(axis, (size - 1) * dilation + 1, stride)[..., ::dilation].sum(-1)


@operator("GlobalAveragePool")
def global_average_pool(x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(x: Tensor) -> Tensor:
    return x.amax(tuple(range(2, x.ndim)), keepdim=True)
