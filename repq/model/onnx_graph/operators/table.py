"""The table of operators: one small function each, from tensors and attributes to tensors.

A function gets the inputs of a node in their order (None for one that is left out) and its attributes by ONNX's own
names. Inputs that say where or how much, not what (shapes, axes, pads), come as Python numbers and lists: ``host``
lists their slots. A function with a parameter ``opset`` gets the version of the operator set, one with
``outputs`` the number of outputs that the node has.

Source: the ONNX operator specifications, opsets 11 to 24; ``onnx.backend.test`` checks every function.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from onnx import TensorProto
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])

TORCH_TYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.INT8: torch.int8,
    TensorProto.UINT8: torch.uint8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.BOOL: torch.bool,
}


@dataclass(frozen=True)
class Operator:
    """One operator.

    Attributes:
        run: inputs and attributes to one tensor, or a tuple of them.
        host: slots of inputs that are read as Python numbers and lists.
        attributes: the names that it takes.
    """

    run: Callable[..., Any]
    host: tuple[int, ...]
    attributes: frozenset[str]


OPERATORS: dict[str, Operator] = {}


def operator(*names: str, host: tuple[int, ...] = ()) -> Callable[[F], F]:
    """Enter a function into the table."""

    def enter(function: F) -> F:
        add(function, *names, host=host)
        return function

    return enter


def add(function: Callable[..., Any], *names: str, host: tuple[int, ...] = ()) -> None:
    """Enter a function into the table, under each of the names."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # a function of torch's own
        parameters = ()  # type: ignore[assignment]
    taken = frozenset(entry.name for entry in parameters if entry.kind is inspect.Parameter.KEYWORD_ONLY)
    for name in names:
        OPERATORS[name] = Operator(function, host, taken)


def host_value(tensor: Tensor) -> Any:
    """A tensor as a Python number or list."""
    return tensor.tolist()


def same_device(x: Tensor, other: Tensor) -> Tensor:
    """``other`` where ``x`` is: indices are computed on the CPU, what they pick from may be elsewhere."""
    return other if other.device == x.device else other.to(x.device)
