"""Adding nodes to a graph: each gets a name under one prefix, constants become initializers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper


class Adder:
    """Appends nodes and constants to ``model``; what it returns are names of tensors."""

    def __init__(self, model: ModelProto, prefix: str) -> None:
        self._graph = model.graph
        self._prefix = prefix
        self._count = 0

    def node(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Append a node with one output."""
        name = self._next(kind)
        result = output or name
        self._graph.node.append(helper.make_node(kind, list(inputs), [result], name, **attributes))
        return result

    def constant(self, value: NDArray[Any] | np.generic) -> str:
        """Append an initializer."""
        name = self._next("constant")
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def ints(self, *values: int) -> str:
        """Append a vector of int64."""
        return self.constant(np.array(values, np.int64))

    def int(self, value: int) -> str:
        """Append one int64."""
        return self.constant(np.int64(value))

    def float(self, value: float) -> str:
        """Append one float32."""
        return self.constant(np.float32(value))

    def _next(self, what: str) -> str:
        self._count += 1
        return f"{self._prefix}/{what}_{self._count}"
