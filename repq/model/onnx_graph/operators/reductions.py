"""Reductions over axes, and the places of the largest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from repq.model.onnx_graph.operators.table import add, operator


def _reduction(function: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> Callable[..., Tensor]:
    """Axes are an attribute or, since opset 13 or 18, an input; none: all of them."""

    def run(
        x: Tensor, given: Sequence[int] | None = None, *, axes: Sequence[int] = (), keepdims: int = 1,
        noop_with_empty_axes: int = 0,
    ) -> Tensor:  # fmt: skip
        chosen = tuple(given if given is not None else axes)
        if not chosen:
            if noop_with_empty_axes:
                return x
            chosen = tuple(range(x.ndim))
        return function(x, chosen, bool(keepdims)) if x.ndim else function(x[None], (0,), False)

    return run


def _product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep, dtype=x.dtype)
    return x


def _extreme(function: Callable[..., Tensor], empty: float) -> Callable[[Tensor, tuple[int, ...], bool], Tensor]:
    def run(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
        if not x.numel():
            shape = [1 if axis in {a % x.ndim for a in axes} else size for axis, size in enumerate(x.shape)]
            return torch.full(shape, empty, dtype=x.dtype) if keep else torch.full(shape, empty).squeeze(axes)
        return function(x, axes, keep)

    return run


for _name, _function in {
    "ReduceMax": _extreme(torch.amax, -torch.inf),
    "ReduceMin": _extreme(torch.amin, torch.inf),
    "ReduceMean": lambda x, axes, keep: torch.mean(x, axes, keep),
    "ReduceSum": lambda x, axes, keep: torch.sum(x, axes, keep, dtype=x.dtype),
    "ReduceProd": _product,
    "ReduceL1": lambda x, axes, keep: torch.sum(x.abs(), axes, keep, dtype=x.dtype),
    "ReduceL2": lambda x, axes, keep: torch.sum(x.square(), axes, keep).sqrt(),
    "ReduceSumSquare": lambda x, axes, keep: torch.sum(x.square(), axes, keep, dtype=x.dtype),
    "ReduceLogSum": lambda x, axes, keep: torch.sum(x, axes, keep).log(),
    "ReduceLogSumExp": torch.logsumexp,
}.items():
    add(_reduction(_function), _name, host=(1,))


def _place(x: Tensor, axis: int, keepdims: int, last: int, largest: bool) -> Tensor:
    x = x.flip(axis) if last else x
    found = x.argmax(axis, bool(keepdims)) if largest else x.argmin(axis, bool(keepdims))
    return x.shape[axis] - 1 - found if last else found


@operator("ArgMax")
def arg_max(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    return _place(x, axis, keepdims, select_last_index, largest=True)


@operator("ArgMin")
def arg_min(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    return _place(x, axis, keepdims, select_last_index, largest=False)


@operator("TopK", host=(1,))
def top_k(x: Tensor, k: Any, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Tensor, Tensor]:
    """Of equal values the one of the lower index comes first."""
    order = torch.sort(x, dim=axis, descending=bool(largest), stable=True)
    count = k if isinstance(k, int) else k[0]
    return order.values.narrow(axis, 0, count), order.indices.narrow(axis, 0, count)
