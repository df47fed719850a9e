"""Look-ups over an ONNX graph, and the edits that every pass needs."""

from __future__ import annotations

import heapq
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, numpy_helper

from repq.errors import GraphError


@dataclass(frozen=True)
class Use:
    """One input slot that reads a tensor: ``node.input[slot]``."""

    node: NodeProto
    slot: int


@dataclass(frozen=True)
class GraphIndex:
    """Who makes and who reads each tensor of a graph, as it was at the time of ``of``."""

    initializers: dict[str, TensorProto]
    producers: dict[str, NodeProto]
    uses: dict[str, list[Use]]
    outputs: frozenset[str]

    @classmethod
    def of(cls, graph: GraphProto) -> GraphIndex:
        uses: dict[str, list[Use]] = defaultdict(list)
        for node in graph.node:
            for slot, name in enumerate(node.input):
                if name:
                    uses[name].append(Use(node, slot))
        return cls(
            initializers={tensor.name: tensor for tensor in graph.initializer},
            producers={name: node for node in graph.node for name in node.output if name},
            uses=dict(uses),
            outputs=frozenset(output.name for output in graph.output),
        )

    def uses_of(self, tensor: str) -> list[Use]:
        return self.uses.get(tensor, [])

    def array(self, tensor: str) -> NDArray[Any] | None:
        """The value of an initializer, or None for any other tensor."""
        found = self.initializers.get(tensor)
        return None if found is None else np.asarray(numpy_helper.to_array(found))


def sort_nodes(graph: GraphProto) -> None:
    """Put the nodes in topological order, in place; nodes keep their order where it is free.

    Raises:
        GraphError: the graph has a cycle.
    """
    nodes = list(graph.node)
    producer_of = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    needs = [{producer_of[name] for name in node.input if name in producer_of} for node in nodes]
    readers: dict[int, list[int]] = defaultdict(list)
    for index, needed in enumerate(needs):
        for producer in needed:
            readers[producer].append(index)
    missing = [len(needed) for needed in needs]
    ready = [index for index, count in enumerate(missing) if count == 0]
    order: list[int] = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for reader in readers[index]:
            missing[reader] -= 1
            if missing[reader] == 0:
                heapq.heappush(ready, reader)
    if len(order) != len(nodes):
        stuck = [node.name for index, node in enumerate(nodes) if missing[index]]
        raise GraphError("the graph has a cycle", found=f"among the nodes {', '.join(stuck[:5])}")
    replace(graph.node, [nodes[index] for index in order])


def remove_unused(graph: GraphProto) -> None:
    """Delete, in place, the nodes, initializers and value infos that no graph output depends on."""
    producers = {name: node for node in graph.node for name in node.output if name}
    wanted = [output.name for output in graph.output]
    reached: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name not in reached:
            reached.add(name)
            if name in producers:
                wanted.extend(producers[name].input)
    replace(graph.node, [node for node in graph.node if reached.intersection(node.output)])
    replace(graph.initializer, [tensor for tensor in graph.initializer if tensor.name in reached])
    known = {name for node in graph.node for name in node.output}
    replace(graph.value_info, [info for info in graph.value_info if info.name in known])


def replace(field: Any, items: list[Any]) -> None:
    """Set a repeated protobuf field to ``items`` (copies: references to the old elements go stale)."""
    del field[:]
    field.extend(items)
