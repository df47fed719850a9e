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

from onnx import ModelProto, NodeProto

from repq.graph.copying import copies_values, value_slots
from repq.graph.index import GraphIndex
from repq.graph.int8_flow import has_int8_weight
from repq.graph.layer_nodes import LAYER_OPS, layer_nodes
from repq.layers import LayerId

ScaleGroup = tuple[str, ...]
"""Tensors that must share a scale, in graph order."""


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


@dataclass(frozen=True)
class ResidualAdd:
    """``Add`` of two computed tensors: each operand, and the node and slot that read it (through a scalar ``Mul``)."""

    node: NodeProto
    operands: tuple[str, str]
    readers: tuple[tuple[NodeProto, int], tuple[NodeProto, int]]


def scale_groups(
    model: ModelProto, int8_layers: Collection[LayerId] | None = None, *, residual_adds: bool = True
) -> tuple[ScaleGroup, ...]:
    """The groups of two or more tensors that must share a scale, in graph order.

    The outputs of Q and DQ are not listed: they are the tensor that was quantized.

    Args:
        model: a float graph or a Q/DQ graph.
        int8_layers: the layers whose inputs are (to be) quantized; None: all of a float graph. What a Q/DQ graph
            quantizes already counts as well.
        residual_adds: whether the two inputs of a residual add belong to one group.

    Raises:
        GraphError: ``int8_layers`` is given and a layer's weight is no initializer ``<LayerId>.weight``.
    """
    index = GraphIndex.of(model.graph)
    sets = joined_tensors(model, index, int8_layers, residual_adds=residual_adds)
    members: dict[str, list[str]] = defaultdict(list)
    for tensor in _values(model, index):
        members[sets.find(tensor)].append(tensor)
    return tuple(tuple(group) for group in members.values() if len(group) > 1)


def layer_groups(
    model: ModelProto, int8_layers: Collection[LayerId] | None = None, *, residual_adds: bool = True
) -> tuple[tuple[LayerId, ...], ...]:
    """The groups of two or more layers whose input scales must be equal, for calibration on one joint histogram.

    Arguments and errors are those of ``scale_groups``. Layers that are not in ``int8_layers`` are left out.
    """
    index = GraphIndex.of(model.graph)
    sets = joined_tensors(model, index, int8_layers, residual_adds=residual_adds)
    members: dict[str, list[LayerId]] = defaultdict(list)
    for layer, node in layer_nodes(model).items():
        if int8_layers is None or layer in int8_layers:
            members[sets.find(quantized_value(node.input[0], index))].append(layer)
    return tuple(tuple(group) for group in members.values() if len(group) > 1)


def residual_sums(model: ModelProto, index: GraphIndex) -> list[ResidualAdd]:
    """Every Add of two computed tensors, in graph order; operands are looked up through Q/DQ and a scalar factor."""
    found = []
    for node in model.graph.node:
        if node.op_type == "Add":
            (a, reader_a), (b, reader_b) = (_operand(node, slot, index) for slot in (0, 1))
            if a not in index.initializers and b not in index.initializers and a != b:
                found.append(ResidualAdd(node, (a, b), (reader_a, reader_b)))
    return found


def quantized_value(tensor: str, index: GraphIndex) -> str:
    """The tensor that ``tensor`` is a quantized or dequantized form of; ``tensor`` itself if it is neither."""
    while tensor in index.producers and index.producers[tensor].op_type in ("QuantizeLinear", "DequantizeLinear"):
        tensor = index.producers[tensor].input[0]
    return tensor


def joined_tensors(
    model: ModelProto,
    index: GraphIndex,
    int8_layers: Collection[LayerId] | None = None,
    *,
    residual_adds: bool = True,
) -> UnionFind:
    """The groups of ``scale_groups`` as disjoint sets of tensor names."""
    sets = UnionFind()
    wanted = _read_as_int8(model, index, int8_layers)
    movers = [node for node in reversed(model.graph.node) if copies_values(node, index)]
    adds = residual_sums(model, index) if residual_adds else []
    known = 0
    while len(wanted) > known:
        known = len(wanted)
        for node in movers:
            if wanted.intersection(node.output):
                inputs = [quantized_value(node.input[slot], index) for slot in value_slots(node)]
                wanted.update(inputs)
                sets.join([*inputs, *node.output])
        for add in adds:
            if wanted.intersection(add.operands):
                wanted.update(add.operands)
                sets.join(add.operands)
    return sets


def _read_as_int8(model: ModelProto, index: GraphIndex, int8_layers: Collection[LayerId] | None) -> set[str]:
    """What a QuantizeLinear or an INT8 layer reads; in a float graph the layers to be quantized are ``int8_layers``."""
    readers = [node for node in model.graph.node if node.op_type == "QuantizeLinear" or has_int8_weight(node, index)]
    if int8_layers is not None:
        readers += [node for layer, node in layer_nodes(model).items() if layer in int8_layers]
    elif not readers:
        readers = [node for node in model.graph.node if node.op_type in LAYER_OPS]
    return {quantized_value(node.input[0], index) for node in readers}


def _values(model: ModelProto, index: GraphIndex) -> list[str]:
    inputs = [entry.name for entry in model.graph.input if entry.name not in index.initializers]
    outputs = [name for node in model.graph.node for name in node.output if quantized_value(name, index) == name]
    return [*inputs, *outputs]


def _operand(node: NodeProto, slot: int, index: GraphIndex) -> tuple[str, tuple[NodeProto, int]]:
    producer = index.producers.get(node.input[slot])
    if producer is not None and producer.op_type == "Mul":
        arrays = [index.array(name) for name in producer.input]
        for other, array in enumerate(arrays):
            if array is not None and array.size == 1:
                return quantized_value(producer.input[1 - other], index), (producer, 1 - other)
    return quantized_value(node.input[slot], index), (node, slot)
