"""An estimate, without a GPU, of the kernels that a Q/DQ graph costs TensorRT beside its layers.

A Q is free where TensorRT can put it into the kernel that computes its tensor, a DQ where the kernel that reads it
takes integers. What remains is a kernel of its own, which reads a whole tensor and writes it again:

- *quantize*: a Q behind something that writes float: the network input, a float layer, a reduction, or a tensor that
  somebody else reads in float as well, be it only to multiply its channels by the factors of a scale per channel;
- *requantize*: integers of one scale wanted with another: a second Q on one tensor, or unequal sides of a Concat;
- *dequantize*: integers that a float operator other than an element-wise one reads, or that leave the network.

Rules: a convolution with INT8 input and weight writes integers, together with the activation behind it; element-wise
operators take and write integers; operators that copy values (``repq.graph.copying``) pass Q and DQ through. Layout
changes inside one precision are not counted: they depend on the tactics that the builder times.

Source: NVIDIA TensorRT Developer Guide, "Working with Quantized Types": "Q/DQ fusion", "Q/DQ layer-placement
recommendations".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from onnx import ModelProto, NodeProto

from repq.graph.copying import copies_values, value_slots
from repq.graph.index import GraphIndex
from repq.graph.int8_flow import WEIGHTED_OPS, Parameters, has_int8_weight, is_int8_layer, parameters_of

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


@dataclass(frozen=True)
class QdqCounts:
    """Activation Q and DQ nodes of a graph and the extra kernels that they are predicted to cost.

    ``avoidable`` are those that better scales or placement would save.
    """

    quantize: int
    dequantize: int
    extra_kernels: int
    avoidable: int


def count_qdq(model: ModelProto) -> QdqCounts:
    """Count the Q and DQ of activations (not of weights) and the predicted extra kernels."""
    index = GraphIndex.of(model.graph)
    computed = [node for node in model.graph.node if node.input and node.input[0] not in index.initializers]
    kinds = [node.op_type for node in computed]
    extra = predict_extra_kernels(model)
    return QdqCounts(
        quantize=kinds.count("QuantizeLinear"),
        dequantize=sum(node.op_type == "DequantizeLinear" and not _of_weight(node, index) for node in computed),
        extra_kernels=len(extra),
        avoidable=sum(kernel.avoidable for kernel in extra),
    )


def predict_extra_kernels(model: ModelProto) -> tuple[ExtraKernel, ...]:
    """The extra kernels that TensorRT is expected to run for ``model``, in graph order."""
    index = GraphIndex.of(model.graph)
    found: list[ExtraKernel] = []
    for entry in model.graph.input:
        if entry.name not in index.initializers:
            found += _behind_float(entry.name, None, index)
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear":
            if not _of_weight(node, index):
                found += _behind_dequantize(node, index)
        elif node.op_type != "QuantizeLinear" and not copies_values(node, index):
            for name in node.output:
                found += _behind_float(name, node, index)
    return tuple(found)


def _behind_float(tensor: str, producer: NodeProto | None, index: GraphIndex) -> list[ExtraKernel]:
    wanted, floats = _demands(tensor, index)
    if not wanted:
        return []
    others = [ExtraKernel("requantize", tensor, "unequal scales")] * (len(wanted) - 1)
    if producer is None:
        cause: Cause = "network input"
    elif not writes_integers(producer, index):
        cause = "float operator"
    elif any(reader is not None and reader.op_type in WEIGHTED_OPS for reader in floats):
        cause = "float layer"
    elif floats and all(_scales_channels(reader, index) for reader in floats):
        cause = "channel factors"
    elif floats:
        cause = "float reader"
    else:
        return others
    return [ExtraKernel("quantize", tensor, cause), *others]


def _behind_dequantize(node: NodeProto, index: GraphIndex) -> list[ExtraKernel]:
    tensor, present = node.output[0], parameters_of(node, index)
    wanted, floats = _demands(tensor, index)
    found = [ExtraKernel("requantize", tensor, "unequal scales") for other in wanted if other != present]
    blocking = [reader for reader in floats if reader is None or not _takes_integers(reader, index)]
    if any(reader is not None and has_int8_weight(reader, index) for reader in blocking):
        found.append(ExtraKernel("dequantize", tensor, "unequal scales"))
    elif blocking:
        found.append(ExtraKernel("dequantize", tensor, "network output" if None in blocking else "float operator"))
    return found


def _demands(tensor: str, index: GraphIndex) -> tuple[set[Parameters | None], list[NodeProto | None]]:
    """How ``tensor`` is read through copying operators: the parameters of its Qs, and its float readers.

    None among the parameters stands for those that are per channel, None among the readers for a graph output.
    """
    wanted: set[Parameters | None] = set()
    floats: list[NodeProto | None] = []
    for reader, name in _readers(tensor, index):
        if reader is not None and reader.op_type == "QuantizeLinear" and name == reader.input[0]:
            wanted.add(parameters_of(reader, index))
        else:
            floats.append(reader)
    return wanted, floats


def reads_of(tensor: str, index: GraphIndex) -> list[NodeProto | None]:
    """All nodes that read ``tensor``, directly or through operators that copy values; None: it is a graph output."""
    return [reader for reader, _ in _readers(tensor, index)]


def _readers(tensor: str, index: GraphIndex) -> Iterator[tuple[NodeProto | None, str]]:
    if tensor in index.outputs:
        yield None, tensor
    for use in index.uses_of(tensor):
        if copies_values(use.node, index) and use.slot in value_slots(use.node):
            for output in use.node.output:
                yield from _readers(output, index)
        else:
            yield use.node, tensor


def writes_integers(producer: NodeProto, index: GraphIndex) -> bool:
    """Whether the kernel that computes the output of ``producer`` can quantize it on the way out."""
    if producer.op_type in WEIGHTED_OPS:
        return is_int8_layer(producer, index)
    if producer.op_type not in ELEMENTWISE:
        return False
    root = _activated_layer(producer, index)
    return root is None or is_int8_layer(root, index)


def _activated_layer(producer: NodeProto, index: GraphIndex) -> NodeProto | None:
    """The layer whose activation ``producer`` is, alone or as ``x * sigmoid(x)``; None: it is no activation."""
    inputs = [name for name in producer.input if name and name not in index.initializers]
    if producer.op_type == "Mul" and len(inputs) == 2:
        for x, gate in (inputs, inputs[::-1]):
            source = index.producers.get(gate)
            if source is not None and source.op_type in ACTIVATIONS and source.input[0] == x:
                inputs = [x]
                break
    elif producer.op_type not in ACTIVATIONS:
        return None
    node = index.producers.get(inputs[0]) if len(inputs) == 1 else None
    return node if node is not None and node.op_type in WEIGHTED_OPS else None


def _scales_channels(reader: NodeProto | None, index: GraphIndex) -> bool:
    """Whether a node multiplies by constants before a Q: a scale per channel for what the Q leads to."""
    if reader is None or reader.op_type != "Mul" or not any(name in index.initializers for name in reader.input):
        return False
    return all(use is not None and use.op_type == "QuantizeLinear" for use in reads_of(reader.output[0], index))


def _takes_integers(reader: NodeProto, index: GraphIndex) -> bool:
    return reader.op_type in ELEMENTWISE or is_int8_layer(reader, index)


def _of_weight(node: NodeProto, index: GraphIndex) -> bool:
    tensor = node.input[0]
    producer = index.producers.get(tensor)
    if producer is not None and producer.op_type == "QuantizeLinear":
        tensor = producer.input[0]
    return tensor in index.initializers
