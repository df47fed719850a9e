"""A graph beside a detector that makes detections of its outputs, for programs that know nothing of layouts."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from onnx import GraphProto, ModelProto, TensorProto, helper

from repq.errors import GraphError
from repq.graph.arrays import GraphArray, shapes_are_known
from repq.graph.surgeon import Adder, export_graph, import_graph
from repq.layout import OutputLayout

DECODED = "decoded"
_OPSET = 17


def decoder(model: ModelProto, layout: OutputLayout) -> ModelProto:
    """A graph whose inputs are all outputs of ``model``, in their order, and whose output ``layout.decoded`` describes.

    Raises:
        GraphError: an output has a length but that of its first axis that is not known.
    """
    graph = import_graph(model)
    if not shapes_are_known(graph):
        shapes = ", ".join(f"{tensor.name} {tuple(tensor.shape or ())}" for tensor in graph.outputs)
        raise GraphError("the lengths of the outputs are not known", found=shapes, fix="export it for one image size")
    height, width = graph.inputs[0].shape[2:]
    given, add = list(graph.outputs), Adder(graph, "decode")
    for tensor in given:
        tensor.inputs.clear()
    rows = layout.decode([GraphArray(add, _in_float(add, tensor), tensor.shape) for tensor in given], (height, width))
    found = gs.Variable(DECODED, np.dtype(np.float32), rows.shape)
    add.node("Identity", rows.tensor, output=found)
    graph.inputs, graph.outputs, graph.properties = given, [found], {}
    graph.head = helper.make_model(GraphProto(), opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=9)
    graph.head.ClearField("graph")
    return export_graph(graph)


def _in_float(add: Adder, tensor: gs.Tensor) -> gs.Tensor:
    return tensor if tensor.dtype == np.float32 else add.node("Cast", tensor, to=TensorProto.FLOAT)
