"""What of a graph is constant, what hangs on its inputs, and who reads what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from repq.model.onnx_graph.operators import OPERATORS
from repq.model.onnx_graph.program import bound, opset_of


class Constants:
    """Values that hang on constants alone, computed when they are asked for."""

    def __init__(self, model: ModelProto) -> None:
        self._stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self._makers = {name: node for node in model.graph.node for name in node.output}
        self._opset = opset_of(model)
        self._given = {value.name for value in model.graph.input} - self._stored.keys()

    def value(self, name: str, depth: int = 50) -> NDArray[np.float32] | None:
        """The value of a tensor; None: it is no constant."""
        if name in self._stored:
            return numpy_helper.to_array(self._stored[name])
        node = self._makers.get(name)
        if node is None or name in self._given or depth == 0:
            return None
        inputs = [self.value(entry, depth - 1) if entry else None for entry in node.input]
        if any(value is None and entry for value, entry in zip(inputs, node.input, strict=True)):
            return None
        entry = OPERATORS[node.op_type]
        tensors = [None if value is None else torch.from_numpy(np.array(value)) for value in inputs]
        arguments = [t.tolist() if slot in entry.host and t is not None else t for slot, t in enumerate(tensors)]
        result = bound(node, self._opset)(*arguments)
        found = result if isinstance(result, torch.Tensor) else result[list(node.output).index(name)]
        return np.asarray(found.numpy())


def wiring(model: ModelProto) -> tuple[Counter[str], dict[str, NodeProto]]:
    """How many times each value is read, also as an output, and the node that makes it."""
    readers = Counter(name for node in model.graph.node for name in node.input)
    readers.update(output.name for output in model.graph.output)
    return readers, {name: node for node in model.graph.node for name in node.output}


def reached(model: ModelProto, past: Collection[str] = ()) -> set[str]:
    """The values that hang on the inputs; what the operators ``past`` give does not count."""
    found = {value.name for value in model.graph.input} - {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in past and not found.isdisjoint(node.input):
            found.update(filter(None, node.output))
    return found
