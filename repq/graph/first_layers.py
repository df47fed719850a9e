"""The convolutions that read the network's input, and how its values get to them."""

from __future__ import annotations

from dataclasses import dataclass

from onnx import ModelProto, NodeProto, ValueInfoProto

from repq.errors import GraphError
from repq.graph.index import GraphIndex
from repq.graph.layer_nodes import weight_initializer

_ON_THE_WAY = frozenset({"Cast", "QuantizeLinear", "DequantizeLinear"})


@dataclass(frozen=True)
class FirstLayer:
    """A convolution on the input.

    Attributes:
        node: the Conv.
        path: the Cast, Quantize and Dequantize nodes between the input and it, in order.
        weight: its weight's initializer, as floats or integers.
    """

    node: NodeProto
    path: tuple[NodeProto, ...]
    weight: str


def image_input(model: ModelProto) -> ValueInfoProto:
    """The one input that is no initializer.

    Raises:
        GraphError: there is none, or several.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [entry for entry in model.graph.input if entry.name not in constants]
    if len(inputs) != 1:
        found = ", ".join(entry.name for entry in inputs) or "none"
        raise GraphError("the graph needs exactly one input", found=found, fix="export the model with `repq export`")
    return inputs[0]


def first_layers(model: ModelProto) -> list[FirstLayer]:
    """Every convolution that reads the input. The nodes belong to ``model``.

    Raises:
        GraphError: something else reads it too, or a convolution's weight is computed or shared, so that nothing can be
            folded into the weights.
    """
    index = GraphIndex.of(model.graph)
    name = image_input(model).name
    layers = list(_behind(name, (), index))
    others = [node.op_type for _, node, weight in layers if weight is None]
    if others or not layers:
        raise GraphError(
            f"nothing can be folded into the layers that read {name!r}",
            found=f"it is read by {', '.join(others)}" if others else "nothing reads it",
            fix="fold only into a graph whose input convolutions with weights of their own read; is it folded already?",
        )
    return [FirstLayer(node, path, weight) for path, node, weight in layers if weight is not None]


def _behind(
    tensor: str, path: tuple[NodeProto, ...], index: GraphIndex
) -> list[tuple[tuple[NodeProto, ...], NodeProto, str | None]]:
    found: list[tuple[tuple[NodeProto, ...], NodeProto, str | None]] = []
    for use in index.uses_of(tensor):
        if use.node.op_type in _ON_THE_WAY and use.slot == 0:
            found += _behind(use.node.output[0], (*path, use.node), index)
        else:
            found.append((path, use.node, _own_weight(use.node, use.slot, index)))
    return found


def _own_weight(node: NodeProto, slot: int, index: GraphIndex) -> str | None:
    """The weight's initializer, if ``node`` is a convolution and its only reader."""
    if node.op_type != "Conv" or slot != 0:
        return None
    name = weight_initializer(index, node)
    return name if name is not None and len(index.uses_of(name)) == 1 else None
