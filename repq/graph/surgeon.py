"""ONNX models as onnx-graphsurgeon graphs: the one place that imports and exports, and what every pass needs beside.

onnx-graphsurgeon brings the look-ups (``tensor.inputs``, ``tensor.outputs``), the removal of dead nodes and the
topological sort. It drops what a ModelProto holds around its graph (metadata, opsets, versions); ``import_graph`` keeps
that in ``graph.head`` and the metadata in ``graph.properties``, and ``export_graph`` puts both back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_graphsurgeon.logger import G_LOGGER
from onnx_graphsurgeon.util.exception import OnnxGraphSurgeonException

from repq.errors import GraphError
from repq.onnx_file import metadata_of, with_shapes

Graph, Node, Tensor = gs.Graph, gs.Node, gs.Tensor

G_LOGGER.severity = G_LOGGER.CRITICAL
_DROPPED = {
    AttributeProto.TENSORS,
    AttributeProto.GRAPHS,
    AttributeProto.SPARSE_TENSOR,
    AttributeProto.SPARSE_TENSORS,
    AttributeProto.TYPE_PROTO,
    AttributeProto.TYPE_PROTOS,
}
"""Types of attributes that onnx-graphsurgeon cannot hold."""


def import_graph(model: ModelProto, *, shapes: bool = False) -> gs.Graph:
    """Import a model; it stays as it is. What Constant nodes and copies of constants give are constants, too.

    Args:
        model: any model whose weights are in the file.
        shapes: infer the shape and type of every tensor first.

    Raises:
        GraphError: a node has an attribute that onnx-graphsurgeon cannot hold, or one of no known type.
    """
    for node in model.graph.node:
        if lost := [attribute.name for attribute in node.attribute if attribute.type in _DROPPED]:
            raise GraphError(f"{node.op_type} {node.name} cannot be edited", found=f"attribute {lost[0]}")
    try:
        graph = gs.import_onnx(with_shapes(model) if shapes else model)
    except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, OnnxGraphSurgeonException) as error:
        raise GraphError(
            "the ONNX model cannot be imported", found=f"{type(error).__name__}: {error}", fix="export it again"
        ) from None
    graph.head = ModelProto()
    graph.head.CopyFrom(model)
    for field in ("graph", "metadata_props"):
        graph.head.ClearField(field)
    graph.properties = metadata_of(model)
    _store_constants(graph)
    return graph


def _store_constants(graph: gs.Graph) -> None:
    """Put constants in the place of Constant nodes and copies of them, in place; outputs and texts stay."""
    kept = []
    for node in graph.nodes:
        values = array(node, 0) if node.op == "Identity" else None
        values = _constant_of(node.attrs) if node.op == "Constant" else values
        if values is None or is_output(graph, node.outputs[0]):
            kept.append(node)
        else:
            redirect(node.outputs[0], gs.Constant(node.outputs[0].name, values))
    graph.nodes = kept


def _constant_of(attributes: Mapping[str, Any]) -> NDArray[Any] | None:
    """What a Constant node with these attributes gives; None: text, or no dense tensor."""
    if "value" in attributes:
        values = np.asarray(attributes["value"].values)
        return None if values.dtype.kind in "OSU" else values
    types = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    found = [np.array(value, types[kind]) for kind, value in attributes.items() if kind in types]
    return found[0] if found else None


def export_graph(graph: gs.Graph) -> ModelProto:
    """Export a graph without its dead nodes, in topological order.

    Raises:
        GraphError: the graph has a cycle.
    """
    _pack(tidy(graph))
    model: ModelProto = gs.export_onnx(graph)
    for field in ("opset_import", "functions", "metadata_props"):
        model.ClearField(field)
    model.MergeFrom(graph.head)
    helper.set_model_props(model, graph.properties)
    return model


def _pack(graph: gs.Graph) -> None:
    """Let onnx write the constants of types that numpy has not, in place: of 4 bits, two share a byte in a file."""
    for tensor in graph.tensors().values():
        if not is_constant(tensor) or isinstance(tensor.dtype, int):  # nobody has looked: written as it was read
            continue
        if np.dtype(tensor.dtype).isbuiltin == 2:
            tensor.values = LazyValues(numpy_helper.from_array(np.asarray(tensor.values), tensor.name))


def tidy(graph: gs.Graph) -> gs.Graph:
    """Remove dead nodes and sort the rest in topological order, in place.

    Raises:
        GraphError: the graph has a cycle.
    """
    try:
        return graph.cleanup(recurse_functions=False).toposort(recurse_functions=False)
    except OnnxGraphSurgeonException as error:
        raise GraphError("the graph has a cycle", found=str(error)) from None


def producer(tensor: gs.Tensor) -> gs.Node | None:
    """The node that computes a tensor; None for inputs and constants."""
    return tensor.inputs[0] if tensor.inputs else None


def uses(tensor: gs.Tensor) -> list[tuple[gs.Node, int]]:
    """The nodes that read a tensor, each with the input slot."""
    nodes = {id(node): node for node in tensor.outputs}
    return [(node, slot) for node in nodes.values() for slot, read in enumerate(node.inputs) if read is tensor]


def redirect(tensor: gs.Tensor, substitute: gs.Tensor) -> None:
    """Let all nodes that read ``tensor`` read ``substitute``."""
    for node, slot in uses(tensor):
        node.inputs[slot] = substitute


def is_output(graph: gs.Graph, tensor: gs.Tensor) -> bool:
    return any(output is tensor for output in graph.outputs)


def is_constant(tensor: gs.Tensor) -> bool:
    return isinstance(tensor, gs.Constant)


def array(node: gs.Node, slot: int) -> NDArray[Any] | None:
    """The value of a constant input; None for a computed or absent one."""
    found = node.inputs[slot] if len(node.inputs) > slot else None
    return np.asarray(found.values) if isinstance(found, gs.Constant) else None


def element_type(tensor: gs.Tensor) -> int:
    """The ONNX type of a tensor's elements; UNDEFINED where it is not known."""
    if tensor.dtype is None:
        return int(TensorProto.UNDEFINED)
    return (
        tensor.dtype if isinstance(tensor.dtype, int) else int(helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype)))
    )


def title(node: gs.Node) -> str:
    """The name of a node, or of its first output where it has none."""
    return str(node.name or node.outputs[0].name)


class Adder:
    """Appends nodes and constants whose names start with ``prefix``; ``export_graph`` sorts them in."""

    def __init__(self, graph: gs.Graph, prefix: str) -> None:
        self._graph = graph
        self._prefix = prefix
        self._count = 0

    @property
    def opset(self) -> int:
        return int(self._graph.opset)

    def node(
        self, kind: str, *inputs: gs.Tensor | None, output: gs.Tensor | None = None, **attributes: Any
    ) -> gs.Tensor:
        """Append a node with one output; an input of None is left out."""
        name = self._next(kind)
        result = gs.Variable(name) if output is None else output
        read = [gs.Variable.empty() if tensor is None else tensor for tensor in inputs]
        self._graph.nodes.append(gs.Node(kind, name, attributes, read, [result]))
        return result

    def constant(self, value: NDArray[Any] | np.generic) -> gs.Tensor:
        return gs.Constant(self._next("constant"), np.asarray(value))

    def ints(self, *values: int) -> gs.Tensor:
        """A vector of int64."""
        return self.constant(np.array(values, np.int64))

    def int(self, value: int) -> gs.Tensor:
        return self.constant(np.int64(value))

    def float(self, value: float) -> gs.Tensor:
        return self.constant(np.float32(value))

    def _next(self, what: str) -> str:
        self._count += 1
        return f"{self._prefix}/{what}_{self._count}"


def add_node(
    graph: gs.Graph, kind: str, name: str, inputs: list[gs.Tensor], output: str, **attributes: Any
) -> gs.Tensor:
    """Append a node of this name and return its one output."""
    result = gs.Variable(output)
    graph.nodes.append(gs.Node(kind, name, attributes, inputs, [result]))
    return result
