"""An estimate, without a GPU, of the kernels that a Q/DQ graph costs TensorRT beside its layers.

A Q is free where TensorRT can put it into the kernel that computes its tensor, a DQ where the kernel that reads it
takes integers. What remains is a kernel of its own, which reads a whole tensor and writes it again:

- *quantize*: a Q behind something that writes float: the network input, a float layer, a reduction, or a tensor that
  somebody else reads in float as well, be it only to multiply its channels by the factors of a scale per channel;
- *requantize*: integers of one scale wanted with another: a second Q on one tensor, or unequal sides of a Concat;
- *dequantize*: integers that a float operator other than an element-wise one reads, or that leave the network.

Rules: a convolution with INT8 input and weight writes integers, together with the activation behind it; element-wise
operators take and write integers; operators that copy values (``repq.graph.integers``) pass Q and DQ through. Layout
changes inside one precision are not counted: they depend on the tactics that the builder times.

Source: NVIDIA TensorRT Developer Guide, "Working with Quantized Types": "Q/DQ fusion", "Q/DQ layer-placement
recommendations".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import onnx_graphsurgeon as gs
from onnx import ModelProto

from repq.graph.integer_concat import restore_pairs
from repq.graph.integers import (
    WEIGHTED_OPS,
    Parameters,
    activation_quantizers,
    copies_values,
    has_int8_weight,
    is_int8_layer,
    parameters_of,
    quantized_value,
    value_slots,
)
from repq.graph.surgeon import import_graph, is_constant, is_output, producer, uses
from repq.results import QdqCount

Kind = Literal["quantize", "requantize", "dequantize"]
Cause = Literal[
    "network input",
    "network output",
    "float reader",
    "channel factors",
    "float layer",
    "float operator",
    "unequal scales",
]

ACTIVATIONS = frozenset(
    {
        "Clip",
        "Elu",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Mish",
        "PRelu",
        "Relu",
        "Sigmoid",
        "Swish",
        "Tanh",
    }
)
ELEMENTWISE = ACTIVATIONS | {"Abs", "Add", "Cast", "Div", "Exp", "Max", "Min", "Mul", "Neg", "Pow", "Sqrt", "Sub"}


@dataclass(frozen=True)
class ExtraKernel:
    """One predicted kernel that does no work of the network: what it does, on which tensor, and why."""

    kind: Kind
    tensor: str
    cause: Cause

    @property
    def avoidable(self) -> bool:
        """Whether other scales or another placement would save it.

        The edges of what is planned in INT8 cannot be saved, nor a second reader of what has a scale per channel.
        """
        return self.cause in ("unequal scales", "float reader")


def count_qdq(model: ModelProto) -> QdqCount:
    """Count the Q and DQ of activations (not of weights) and the predicted extra kernels."""
    graph = import_graph(model)
    restore_pairs(graph)
    return counts_of(graph)


def counts_of(graph: gs.Graph) -> QdqCount:
    """``count_qdq`` of an imported graph."""
    kinds = [node.op for node in activation_quantizers(graph)]
    extra = extra_kernels(graph)
    return QdqCount(
        quantize=kinds.count("QuantizeLinear"),
        dequantize=kinds.count("DequantizeLinear"),
        extra_kernels=len(extra),
        avoidable=sum(kernel.avoidable for kernel in extra),
    )


def extra_kernels(graph: gs.Graph) -> tuple[ExtraKernel, ...]:
    """The extra kernels that TensorRT is expected to run for a graph without joined integers, in graph order."""
    found: list[ExtraKernel] = []
    for tensor in graph.inputs:
        found += _behind_float(tensor, None, graph)
    for node in graph.nodes:
        if node.op == "DequantizeLinear":
            if not is_constant(quantized_value(node.inputs[0])):
                found += _behind_dequantize(node, graph)
        elif node.op != "QuantizeLinear" and not copies_values(node):
            for tensor in node.outputs:
                found += _behind_float(tensor, node, graph)
    return tuple(found)


def _behind_float(tensor: gs.Tensor, node: gs.Node | None, graph: gs.Graph) -> list[ExtraKernel]:
    wanted, floats = _demands(tensor, graph)
    if not wanted:
        return []
    others = [ExtraKernel("requantize", tensor.name, "unequal scales")] * (len(wanted) - 1)
    if node is None:
        cause: Cause = "network input"
    elif not writes_integers(node):
        cause = "float operator"
    elif any(reader is not None and reader.op in WEIGHTED_OPS for reader in floats):
        cause = "float layer"
    elif floats and all(_scales_channels(reader, graph) for reader in floats):
        cause = "channel factors"
    elif floats:
        cause = "float reader"
    else:
        return others
    return [ExtraKernel("quantize", tensor.name, cause), *others]


def _behind_dequantize(node: gs.Node, graph: gs.Graph) -> list[ExtraKernel]:
    tensor, present = node.outputs[0], parameters_of(node)
    wanted, floats = _demands(tensor, graph)
    found = [ExtraKernel("requantize", tensor.name, "unequal scales") for other in wanted if other != present]
    blocking = [reader for reader in floats if reader is None or not _takes_integers(reader)]
    if any(reader is not None and has_int8_weight(reader) for reader in blocking):
        found.append(ExtraKernel("dequantize", tensor.name, "unequal scales"))
    elif blocking:
        leaves = any(reader is None for reader in blocking)
        found.append(ExtraKernel("dequantize", tensor.name, "network output" if leaves else "float operator"))
    return found


def _demands(tensor: gs.Tensor, graph: gs.Graph) -> tuple[set[Parameters | None], list[gs.Node | None]]:
    """How ``tensor`` is read through copying operators: the parameters of its Qs, and its float readers.

    None among the parameters stands for those that are per channel, None among the readers for a graph output.
    """
    wanted: set[Parameters | None] = set()
    floats: list[gs.Node | None] = []
    for reader, slot in _readers(tensor, graph):
        if reader is not None and reader.op == "QuantizeLinear" and slot == 0:
            wanted.add(parameters_of(reader))
        else:
            floats.append(reader)
    return wanted, floats


def reads_of(tensor: gs.Tensor, graph: gs.Graph) -> list[gs.Node | None]:
    """All nodes that read ``tensor``, directly or through operators that copy values; None: it is a graph output."""
    return [reader for reader, _ in _readers(tensor, graph)]


def _readers(tensor: gs.Tensor, graph: gs.Graph) -> Iterator[tuple[gs.Node | None, int]]:
    if is_output(graph, tensor):
        yield None, 0
    for node, slot in uses(tensor):
        if copies_values(node) and slot in value_slots(node):
            for output in node.outputs:
                yield from _readers(output, graph)
        else:
            yield node, slot


def writes_integers(node: gs.Node) -> bool:
    """Whether the kernel that computes the output of ``node`` can quantize it on the way out."""
    if node.op in WEIGHTED_OPS:
        return is_int8_layer(node)
    if node.op not in ELEMENTWISE:
        return False
    root = _activated_layer(node)
    return root is None or is_int8_layer(root)


def _activated_layer(node: gs.Node) -> gs.Node | None:
    """The layer whose activation ``node`` is, alone or as ``x * sigmoid(x)``; None: it is no activation."""
    inputs = [tensor for tensor in node.inputs if not tensor.is_empty() and not is_constant(tensor)]
    if node.op == "Mul" and len(inputs) == 2:
        for x, gate in (inputs, inputs[::-1]):
            source = producer(gate)
            if source is not None and source.op in ACTIVATIONS and source.inputs[0] is x:
                inputs = [x]
                break
    elif node.op not in ACTIVATIONS:
        return None
    layer = producer(inputs[0]) if len(inputs) == 1 else None
    return layer if layer is not None and layer.op in WEIGHTED_OPS else None


def _scales_channels(reader: gs.Node | None, graph: gs.Graph) -> bool:
    """Whether a node multiplies by constants before a Q: a scale per channel for what the Q leads to."""
    if reader is None or reader.op != "Mul" or not any(map(is_constant, reader.inputs)):
        return False
    return all(use is not None and use.op == "QuantizeLinear" for use in reads_of(reader.outputs[0], graph))


def _takes_integers(reader: gs.Node) -> bool:
    return reader.op in ELEMENTWISE or is_int8_layer(reader)
