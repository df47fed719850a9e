"""Activation functions and softmax."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from repq.model.onnx_graph.operators.table import add, operator

for _name, _function in {
    "HardSwish": functional.hardswish, "Mish": functional.mish, "Relu": torch.relu, "Sigmoid": torch.sigmoid,
    "Softplus": functional.softplus, "Softsign": functional.softsign,
}.items():  # fmt: skip
    add(lambda x, _function=_function: _function(x), _name)


@operator("LeakyRelu")
def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    return functional.leaky_relu(x, alpha)


@operator("PRelu")
def prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


@operator("Elu")
def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return functional.elu(x, alpha)


@operator("Celu")
def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return functional.celu(x, alpha)


@operator("Selu")
def selu(x: Tensor, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875) -> Tensor:
    return torch.where(x > 0, x, alpha * torch.expm1(x)) * gamma


@operator("ThresholdedRelu")
def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return torch.where(x > alpha, x, 0)


@operator("HardSigmoid")
def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    return torch.clamp(x * alpha + beta, 0, 1)


@operator("Gelu")
def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return functional.gelu(x, approximate=approximate)


@operator("Swish")
def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return x * torch.sigmoid(x * alpha)


def _over(function: object, x: Tensor, axis: int | None, opset: int) -> Tensor:
    """Before opset 13 everything from ``axis`` on counts as one axis, the first by default."""
    if opset >= 13:
        return function(x, -1 if axis is None else axis)  # type: ignore[operator]
    flat = x.flatten(1 if axis is None else axis) if x.ndim > 1 else x
    return function(flat, -1).view_as(x)  # type: ignore[operator]


@operator("Softmax")
def softmax(x: Tensor, *, axis: int | None = None, opset: int) -> Tensor:
    return _over(torch.softmax, x, axis, opset)


@operator("LogSoftmax")
def log_softmax(x: Tensor, *, axis: int | None = None, opset: int) -> Tensor:
    return _over(torch.log_softmax, x, axis, opset)


@operator("Hardmax")
def hardmax(x: Tensor, *, axis: int | None = None, opset: int) -> Tensor:
    return _over(_one_at_largest, x, axis, opset)


def _one_at_largest(x: Tensor, axis: int) -> Tensor:
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1)
