"""Names of tensors that survive another export, another batch size and Q/DQ insertion: joined through layer ids.

The exporter makes up the names of tensors (``add`` here is ``add_55`` there). An anchor says instead how a tensor is
computed from the layers: ``<LayerId>:out`` is what a layer writes; ``<LayerId>:Relu#1f2e…`` what a Relu makes of it,
with a hash of the whole expression down to the layers and inputs. Q, DQ and casts are no part of it, nor are shapes and
biases, which corrections change, so the float graph and the quantized one agree, and graphs of a fixed and of a dynamic
batch. A layer that is computed as
the sum of a coarse and a fine convolution writes three tensors of one anchor.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256

import onnx_graphsurgeon as gs
from onnx import ModelProto

from repq.graph.layer_join import layer_id, whole_layer
from repq.graph.surgeon import import_graph, is_constant

_SAME_VALUE = frozenset({"QuantizeLinear", "DequantizeLinear", "Cast", "Identity"})
_SHAPED = frozenset({"Concat", "Expand", "Reshape"})
"""Operators whose constants hold sizes, or stand beside the values (a dynamic batch computes both)."""


def anchors_of(graph: gs.Graph) -> dict[str, str]:
    """The anchor of every tensor that depends on the input; the nodes must be in topological order."""
    anchors = {tensor.name: f"{tensor.name}:in" for tensor in graph.inputs}
    for node in graph.nodes:
        read = [anchors[tensor.name] for tensor in node.inputs if tensor.name in anchors]
        if not read or node.op == "Shape":
            continue
        for number, output in enumerate(node.outputs):
            anchors[output.name] = _anchor(node, number, read)
    return anchors


def anchor_maxima(model: ModelProto, maxima: Mapping[str, float]) -> dict[str, float]:
    """Maxima by anchor instead of tensor name; of several tensors with one anchor the largest."""
    anchors = anchors_of(import_graph(model))
    found: dict[str, float] = {}
    for name, value in maxima.items():
        if name in anchors:
            found[anchors[name]] = max(value, found.get(anchors[name], value))
    return found


def _anchor(node: gs.Node, number: int, read: list[str]) -> str:
    if (layer := layer_id(node)) is not None:
        return f"{whole_layer(layer)}:out"
    if node.op in _SAME_VALUE or _sums_split_layer(node, read):
        return read[0]
    bias = f"{read[0].removesuffix(':out')}.bias"  # of a product
    values = [] if node.op in _SHAPED else [t for t in node.inputs if is_constant(t) and t.name != bias]
    constants = [tensor.values.tobytes() for tensor in values]
    attributes = sorted((key, str(value)) for key, value in node.attrs.items() if key != "allowzero")
    digest = sha256(repr((node.op, number, attributes, read, constants)).encode()).hexdigest()
    return f"{read[0].rpartition(':')[0]}:{node.op}#{digest[:12]}"


def _sums_split_layer(node: gs.Node, read: list[str]) -> bool:
    """Whether a node adds what the coarse and the fine convolution of one layer write."""
    if node.op != "Add" or len(read) != 2 or read[0] != read[1] or not read[0].endswith(":out"):
        return False
    return node.inputs[0] is not node.inputs[1]
