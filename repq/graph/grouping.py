r"""Which tensors of a graph must share one scale, found on the graph by union-find.

TensorRT runs these operators on integers only if one scale holds on all their sides; otherwise every side that differs
costs a kernel that reads the tensor, rescales it and writes it again::

    Concat                      a --\                  group {a, b, c}
                                     Concat -> c
                                b --/
    MaxPool, nearest Resize,    a -> Split -> b, c     group {a, b, c}
    Reshape, Split, Slice ...
    residual Add                a ------------\        group {a, b}
                                     Add -> c
                                b -> Mul(alpha) /

A tensor is one element however many layers read it, so all its readers share a scale by themselves; QuantizeLinear and
DequantizeLinear do not make a new element. Operators that nothing reads in INT8 (the decoding of the boxes, the input
of a float layer) join nothing.

TensorRT's element-wise kernels read each input with a scale of its own, so residual adds can be left out with
``residual_adds=False``; with it, a branch that was never observed takes the scale of its sum (``quantize_residuals``).

Source: NVIDIA TensorRT Developer Guide, "Working with Quantized Types" (Q/DQ propagation, layer-placement
recommendations).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import onnx_graphsurgeon as gs
from onnx import ModelProto

from repq.graph.integers import copies_values, has_int8_weight, quantized_value, values_of
from repq.graph.layer_join import layer_id, layers_of
from repq.graph.surgeon import import_graph, is_constant, producer
from repq.layers import CONVOLUTIONS, LayerId


class UnionFind:
    """Disjoint sets of names; every name is at first a set of its own."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def find(self, name: str) -> str:
        """The representative of the set of ``name``."""
        root = name
        while (parent := self._parent.get(root, root)) != root:
            root = parent
        while name != root:
            self._parent[name], name = root, self._parent.get(name, name)
        return root

    def join(self, names: Iterable[str]) -> None:
        """Make one set of the sets of ``names``."""
        first, *others = names
        for other in others:
            self._parent[self.find(other)] = self.find(first)


@dataclass(frozen=True, eq=False)
class ResidualAdd:
    """``Add`` of two computed tensors: each operand, and the node and slot that read it (through a scalar ``Mul``)."""

    node: gs.Node
    operands: tuple[gs.Tensor, gs.Tensor]
    readers: tuple[tuple[gs.Node, int], tuple[gs.Node, int]]


def layer_groups(model: ModelProto, int8_layers: Collection[LayerId] | None = None) -> tuple[tuple[LayerId, ...], ...]:
    """The groups of two or more layers whose input scales must be equal, for calibration on one joint histogram.

    Args:
        model: a float graph or a Q/DQ graph.
        int8_layers: the layers whose inputs are (to be) quantized; None: all of a float graph. What a Q/DQ graph
            quantizes already counts as well. Others are left out.

    Raises:
        GraphError: ``int8_layers`` is given and a layer's weight is no initializer ``<LayerId>.weight``.
    """
    graph = import_graph(model)
    sets = joined_tensors(graph, int8_layers)
    members: dict[str, list[LayerId]] = defaultdict(list)
    for layer, node in layers_of(graph).items():
        if int8_layers is None or layer in int8_layers:
            members[sets.find(quantized_value(node.inputs[0]).name)].append(layer)
    return tuple(tuple(group) for group in members.values() if len(group) > 1)


def residual_sums(graph: gs.Graph) -> list[ResidualAdd]:
    """Every Add of two computed tensors, in graph order; operands are looked up through Q/DQ and a scalar factor."""
    found = []
    for node in graph.nodes:
        if node.op == "Add":
            (a, reader_a), (b, reader_b) = (_operand(node, slot) for slot in (0, 1))
            if not is_constant(a) and not is_constant(b) and a is not b:
                found.append(ResidualAdd(node, (a, b), (reader_a, reader_b)))
    return found


def joined_tensors(
    graph: gs.Graph, int8_layers: Collection[LayerId] | None = None, *, residual_adds: bool = True
) -> UnionFind:
    """Tensors that must share a scale, as disjoint sets of names; for arguments and errors see ``layer_groups``.

    Args:
        residual_adds: whether the two inputs of a residual add belong to one set.
    """
    sets = UnionFind()
    wanted = _read_as_int8(graph, int8_layers)
    movers = [node for node in reversed(graph.nodes) if copies_values(node)]
    adds = residual_sums(graph) if residual_adds else []
    known = 0
    while len(wanted) > known:
        known = len(wanted)
        for node in movers:
            outputs = [tensor.name for tensor in node.outputs]
            if wanted.intersection(outputs):
                inputs = [quantized_value(tensor).name for tensor in values_of(node)]
                wanted.update(inputs)
                sets.join([*inputs, *outputs])
        for add in adds:
            operands = [tensor.name for tensor in add.operands]
            if wanted.intersection(operands):
                wanted.update(operands)
                sets.join(operands)
    return sets


def _read_as_int8(graph: gs.Graph, int8_layers: Collection[LayerId] | None) -> set[str]:
    """What a QuantizeLinear or an INT8 layer reads; in a float graph the layers to be quantized are ``int8_layers``."""
    readers = [node for node in graph.nodes if node.op == "QuantizeLinear" or has_int8_weight(node)]
    if int8_layers is not None:
        readers += [node for layer, node in layers_of(graph).items() if layer in int8_layers]
    elif not readers:
        readers = [node for node in graph.nodes if node.op in CONVOLUTIONS or layer_id(node) is not None]
    return {quantized_value(node.inputs[0]).name for node in readers}


def _operand(node: gs.Node, slot: int) -> tuple[gs.Tensor, tuple[gs.Node, int]]:
    scaling = producer(node.inputs[slot])
    if scaling is not None and scaling.op == "Mul":
        for other, tensor in enumerate(scaling.inputs):
            if is_constant(tensor) and tensor.values.size == 1:
                return quantized_value(scaling.inputs[1 - other]), (scaling, 1 - other)
    return quantized_value(node.inputs[slot]), (node, slot)
