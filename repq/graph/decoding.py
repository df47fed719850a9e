"""A graph beside a detector that makes detections of its outputs, for programs that know nothing of layouts."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from onnx import GraphProto, ModelProto, helper

from repq.errors import GraphError
from repq.graph.arrays import decoded_outputs
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
    given, add = list(graph.outputs), Adder(graph, "decode")
    rows = decoded_outputs(graph, add, layout)
    if rows is None:
        shapes = ", ".join(f"{tensor.name} {tuple(tensor.shape or ())}" for tensor in given)
        raise GraphError("the lengths of the outputs are not known", found=shapes, fix="export it for one image size")
    for tensor in given:
        tensor.inputs.clear()
    found = gs.Variable(DECODED, np.dtype(np.float32), rows.shape)
    add.node("Identity", rows.tensor, output=found)
    graph.inputs, graph.outputs, graph.properties = given, [found], {}
    graph.head = helper.make_model(GraphProto(), opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=9)
    graph.head.ClearField("graph")
    return export_graph(graph)
