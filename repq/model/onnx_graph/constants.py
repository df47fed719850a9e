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
from repq.onnx_file import given_inputs


class Constants:
    """Values that hang on constants alone, computed when they are asked for, once each.

    The nodes of the graph stand behind what they read.
    """

    def __init__(self, model: ModelProto) -> None:
        self._stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self._makers = {name: node for node in model.graph.node for name in node.output}
        self._opset = opset_of(model)
        self._variable = reached(model)
        self._computed: dict[str, NDArray[np.float32]] = {}

    def value(self, name: str) -> NDArray[np.float32] | None:
        """The value of a tensor; None: it is no constant."""
        waiting = [] if name in self._variable else [name]
        while waiting:
            last = waiting[-1]
            read = () if self._is_known(last) else self._makers[last].input
            if missing := [entry for entry in read if entry and not self._is_known(entry)]:
                waiting += missing
            elif not self._is_known(waiting.pop()):
                self._compute(self._makers[last])
        return self._known(name)

    def _is_known(self, name: str) -> bool:
        return name in self._stored or name in self._computed

    def _known(self, name: str) -> NDArray[np.float32] | None:
        return numpy_helper.to_array(self._stored[name]) if name in self._stored else self._computed.get(name)

    def _compute(self, node: NodeProto) -> None:
        entry = OPERATORS[node.op_type]
        tensors = [torch.from_numpy(np.array(self._known(read))) if read else None for read in node.input]
        arguments = [t.tolist() if slot in entry.host and t is not None else t for slot, t in enumerate(tensors)]
        result = bound(node, self._opset)(*arguments)
        found = (result,) if isinstance(result, torch.Tensor) else result
        self._computed.update((given, part.numpy()) for given, part in zip(node.output, found, strict=False))


def wiring(model: ModelProto) -> tuple[Counter[str], dict[str, NodeProto]]:
    """How many times each value is read, also as an output, and the node that makes it."""
    readers = Counter(name for node in model.graph.node for name in node.input)
    readers.update(output.name for output in model.graph.output)
    return readers, {name: node for node in model.graph.node for name in node.output}


def reached(model: ModelProto, past: Collection[str] = ()) -> set[str]:
    """The values that hang on the inputs; what the operators ``past`` give does not count."""
    found = {value.name for value in given_inputs(model)}
    for node in model.graph.node:
        if node.op_type not in past and not found.isdisjoint(node.input):
            found.update(filter(None, node.output))
    return found
