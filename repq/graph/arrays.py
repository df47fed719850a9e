"""Tensors of a graph that calculate like arrays: what is written once for numpy and torch makes nodes as well."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import EllipsisType
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from repq.graph.metadata import network_size
from repq.graph.surgeon import Adder
from repq.layout import OutputLayout

Size = int | str
"""Length of an axis, or its name where it is free."""


def decoded_outputs(graph: gs.Graph, add: Adder, layout: OutputLayout) -> GraphArray | None:
    """The outputs of a graph as `OutputLayout.decode` makes one array of them, in float32.

    None: a length is not known, but for those of first axes, of images.
    """
    imgsz = network_size(graph)
    if imgsz is None or not all(_is_known(tensor) for tensor in graph.outputs):
        return None
    floats = [in_float(add, tensor) for tensor in graph.outputs]
    given = [GraphArray(add, tensor, output.shape) for tensor, output in zip(floats, graph.outputs, strict=True)]
    found: GraphArray = layout.decode(given, imgsz)
    return found


def _is_known(tensor: gs.Tensor) -> bool:
    return bool(tensor.shape) and all(isinstance(size, int) for size in tensor.shape[1:])


def in_float(add: Adder, tensor: gs.Tensor) -> gs.Tensor:
    """The values of a tensor as float32."""
    return tensor if tensor.dtype == np.float32 else add.node("Cast", tensor, to=TensorProto.FLOAT)


class GraphArray:
    """A tensor of known shape; only its first axis, that of images, may be free.

    Attributes:
        tensor: of the graph.
        shape: length of each axis.
        library: the functions that numpy and torch have outside of their arrays.
    """

    def __init__(self, add: Adder, tensor: gs.Tensor, shape: Sequence[Size | None]) -> None:
        self.add, self.tensor = add, tensor
        self.shape: list[Any] = [size or "batch" if axis == 0 else size for axis, size in enumerate(shape)]

    @property
    def library(self) -> GraphArray:
        return self

    def _next(self, kind: str, *others: gs.Tensor, shape: Sequence[Any] | None = None, **attributes: Any) -> GraphArray:
        tensor = self.add.node(kind, self.tensor, *others, **attributes)
        return GraphArray(self.add, tensor, self.shape if shape is None else shape)

    def new_tensor(self, values: Any) -> GraphArray:
        constant = self.add.constant(np.asarray(values, np.float32))
        return GraphArray(self.add, constant, np.shape(values))

    def _with(self, kind: str, other: GraphArray | float) -> GraphArray:
        value = other if isinstance(other, GraphArray) else self.new_tensor(other)
        rank = max(len(self.shape), len(value.shape))
        own, others = ([1] * (rank - len(shape)) + shape for shape in (self.shape, value.shape))
        shape = [other if size == 1 else size for size, other in zip(own, others, strict=True)]
        return self._next(kind, value.tensor, shape=shape)

    def __add__(self, other: GraphArray | float) -> GraphArray:
        return self._with("Add", other)

    def __sub__(self, other: GraphArray | float) -> GraphArray:
        return self._with("Sub", other)

    def __mul__(self, other: GraphArray | float) -> GraphArray:
        return self._with("Mul", other)

    def __eq__(self, other: object) -> GraphArray:  # type: ignore[override]
        """1 where both are equal, else 0."""
        return self._compared("Equal", other)

    __hash__ = None  # type: ignore[assignment]

    def __lt__(self, other: GraphArray | float) -> GraphArray:
        """1 where it is less, else 0."""
        return self._compared("Less", other)

    def _compared(self, kind: str, other: Any) -> GraphArray:
        return self._with(kind, other)._next("Cast", to=TensorProto.FLOAT)

    def __getitem__(self, key: tuple[EllipsisType, slice | None]) -> GraphArray:
        """Columns, the last axis alone; ``[..., None]``: an axis of length 1 behind the last one."""
        if key[1] is None:
            return self._next("Unsqueeze", self.add.ints(len(self.shape)), shape=[*self.shape, 1])
        start, end, _ = key[1].indices(self.shape[-1])
        bounds = (self.add.ints(number) for number in (start, end, len(self.shape) - 1))
        return self._next("Slice", *bounds, shape=[*self.shape[:-1], end - start])

    def exp(self, array: GraphArray) -> GraphArray:
        return array._next("Exp")

    def tanh(self, array: GraphArray) -> GraphArray:
        return array._next("Tanh")

    def sigmoid(self, array: GraphArray) -> GraphArray:
        return array._next("Sigmoid")

    def softmax(self, array: GraphArray, axis: int) -> GraphArray:
        return array._next("Softmax", axis=len(array.shape) + axis)

    def sum(self, axis: int) -> GraphArray:
        of = len(self.shape) + axis
        shape = [size for place, size in enumerate(self.shape) if place != of]
        return self._next("ReduceSum", self.add.ints(of), shape=shape, keepdims=0)

    def concatenate(self, arrays: Sequence[GraphArray], axis: int) -> GraphArray:
        parts = [array for array in arrays if math.prod(array.shape[1:])]
        of, shape = len(parts[0].shape) + axis, list(parts[0].shape)
        shape[of] = sum(part.shape[of] for part in parts)
        return parts[0]._next("Concat", *(part.tensor for part in parts[1:]), shape=shape, axis=of)

    def swapaxes(self, one: int, other: int) -> GraphArray:
        order = list(range(len(self.shape)))
        order[one], order[other] = order[other], order[one]
        return self._next("Transpose", shape=[self.shape[place] for place in order], perm=order)

    def reshape(self, *shape: Any) -> GraphArray:
        """The first axis stays where it is free."""
        wanted = [0 if size == self.shape[0] and place == 0 else size for place, size in enumerate(shape)]
        if shape[0] == -1:
            length = math.prod(self.shape) // math.prod(shape[1:])
            return self._next("Reshape", self.add.ints(*shape), shape=[length, *shape[1:]])
        return self._next("Reshape", self.add.ints(*wanted), shape=shape)
