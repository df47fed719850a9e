"""Element by element: arithmetic, comparisons, logic, types."""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
from torch import Tensor

from repq.model.onnx_graph.operators.table import TORCH_TYPES, add, operator

_PLAIN: dict[str, Any] = {
    "Abs": torch.abs, "Acos": torch.acos, "Acosh": torch.acosh, "Add": torch.add, "And": torch.logical_and,
    "Asin": torch.asin, "Asinh": torch.asinh, "Atan": torch.atan, "Atanh": torch.atanh, "Ceil": torch.ceil,
    "Cos": torch.cos, "Cosh": torch.cosh, "Equal": torch.eq, "Erf": torch.erf, "Exp": torch.exp,
    "Floor": torch.floor, "Greater": torch.gt, "GreaterOrEqual": torch.ge, "IsNaN": torch.isnan, "Less": torch.lt,
    "LessOrEqual": torch.le, "Log": torch.log, "Mul": torch.mul, "Neg": torch.neg, "Not": torch.logical_not,
    "Or": torch.logical_or, "Reciprocal": torch.reciprocal, "Round": torch.round, "Sign": torch.sign,
    "Sin": torch.sin, "Sinh": torch.sinh, "Sqrt": torch.sqrt, "Sub": torch.sub, "Tan": torch.tan,
    "Tanh": torch.tanh, "Where": torch.where, "Xor": torch.logical_xor,
}  # fmt: skip
for _name, _function in _PLAIN.items():
    add(_function, _name)


@operator("Div")
def div(a: Tensor, b: Tensor) -> Tensor:
    return torch.div(a, b, rounding_mode=None if a.is_floating_point() else "trunc")


@operator("Mod")
def mod(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


@operator("Pow")
def power(a: Tensor, b: Tensor) -> Tensor:
    return torch.pow(a, b).to(a.dtype)


@operator("Sum")
def total(*tensors: Tensor) -> Tensor:
    return reduce(torch.add, tensors)


@operator("Mean")
def mean(*tensors: Tensor) -> Tensor:
    return reduce(torch.add, tensors) / len(tensors)


@operator("Max")
def largest(*tensors: Tensor) -> Tensor:
    return reduce(torch.maximum, tensors)


@operator("Min")
def smallest(*tensors: Tensor) -> Tensor:
    return reduce(torch.minimum, tensors)


@operator("Clip", host=(1, 2))
def clip(x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    return x if low is None and high is None else torch.clamp(x, low, high)


@operator("IsInf")
def is_inf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    found = torch.zeros_like(x, dtype=torch.bool)
    found = found | torch.isposinf(x) if detect_positive else found
    return found | torch.isneginf(x) if detect_negative else found


@operator("Cast")
def cast(x: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:
    return x.to(TORCH_TYPES[to])


@operator("CastLike")
def cast_like(x: Tensor, like: Tensor, *, saturate: int = 1, round_mode: str = "up") -> Tensor:
    return x.to(like.dtype)


@operator("Identity", "Dropout", host=(1, 2))
def identity(x: Tensor, *_: Any, seed: int | None = None, outputs: int = 1) -> Any:
    return x if outputs == 1 else (x, torch.ones_like(x, dtype=torch.bool))


@operator("CumSum", host=(1,))
def cumulated(x: Tensor, axis: Any, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    axis = axis if isinstance(axis, int) else axis[0]
    x = x.flip(axis) if reverse else x
    summed = x.cumsum(axis, dtype=x.dtype)
    summed = summed - x if exclusive else summed
    return summed.flip(axis) if reverse else summed
