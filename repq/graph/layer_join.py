"""The join of layer ids and ONNX nodes, through the name of the weight initializer.

``images, <LayerId>.weight, bias -> Conv -> y`` in a float graph, and after quantization
``<LayerId>.weight (INT8) -> DequantizeLinear -> Conv`` or ``<LayerId>.weight -> Quantize -> Dequantize -> Conv``.
A Gemm or MatMul is a layer where it alone reads such an initializer as its second input; all others are operators.
Node names and metadata are copies of the id; this join never reads them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

import onnx_graphsurgeon as gs
from onnx import ModelProto, NodeProto

from repq.errors import GraphError
from repq.graph.surgeon import import_graph, is_constant, producer, title
from repq.layers import CONVOLUTIONS, PRODUCTS, LayerId
from repq.printable import first_names

INTEGER_OPS = {"QLinearConv": 3, "ConvInteger": 1, "MatMulIntegerToFloat": 1}
"""The integer operators that ``lowering_onnxruntime`` writes for layers, with the slot of the weight."""

_SUFFIX = ".weight"
_INTEGER_WEIGHT = re.compile(r"(?P<layer>.+?)(?:/\d+)?\.weight_integers")
_WEIGHT_STEPS = frozenset({"QuantizeLinear", "DequantizeLinear", "Cast"})
_FINE = ".fine"
_LISTED = 20  # layers that an error names


def fine_part(layer: LayerId) -> LayerId:
    """The id of the second convolution of a layer whose weight is split."""
    return LayerId(layer + _FINE)


def whole_layer(layer: LayerId) -> LayerId:
    """The layer that a convolution belongs to: the two convolutions of a split layer are one."""
    return LayerId(layer.removesuffix(_FINE))


def layer_nodes(model: ModelProto, layers: Iterable[LayerId] | None = None) -> dict[LayerId, NodeProto]:
    """``layers_of`` a model. The nodes belong to ``model``: what changes them changes the model."""
    nodes = {node.output[0]: node for node in model.graph.node}
    return {layer: nodes[node.outputs[0].name] for layer, node in layers_of(import_graph(model), layers).items()}


def layers_of(graph: gs.Graph, layers: Iterable[LayerId] | None = None) -> dict[LayerId, gs.Node]:
    """Return the node of every layer, in graph order.

    Args:
        graph: a float or Q/DQ graph.
        layers: the ids that the graph must hold, neither more nor fewer; products of other ids are operators. None
            accepts any.

    Raises:
        GraphError: the weight of a convolution of two dimensions is no initializer named ``<LayerId>.weight``, two
            layers share one weight, or the graph's ids differ from ``layers`` (both differences are named).
    """
    wanted = None if layers is None else set(layers)
    found: dict[LayerId, list[gs.Node]] = defaultdict(list)
    nameless: list[str] = []
    for node in graph.nodes:
        layer = layer_id(node)
        if layer is not None:
            if node.op in CONVOLUTIONS or wanted is None or layer in wanted:
                found[layer].append(node)
        elif node.op in CONVOLUTIONS:
            weight = stored_weight(node)
            if weight is None or len(weight.shape) == 4:  # those of one and three dimensions are operators
                nameless.append(f"{title(node)} ({weight.name if weight is not None else 'computed weight'})")
    if nameless:
        raise GraphError(
            "some convolutions cannot be joined to a layer",
            found=first_names(nameless, _LISTED),
            fix="their weights must be initializers named <LayerId>.weight: export with `repq export`",
        )
    several = {layer: nodes for layer, nodes in found.items() if len(nodes) > 1}
    shared = [f"{layer} ({len(n)} nodes)" for layer, n in several.items() if any(node.op in CONVOLUTIONS for node in n)]
    if shared:
        raise GraphError(
            "several layers share one weight initializer, so they cannot be told apart",
            found=first_names(shared, _LISTED),
            fix="give each its own copy named <LayerId>.weight: `repq export` does",
        )
    joined = {layer: nodes[0] for layer, nodes in found.items() if layer not in several}
    if wanted is not None:
        _assert_same(wanted, set(joined))
    return joined


def layer_id(node: gs.Node) -> LayerId | None:
    """The layer that a node computes; None: it is no convolution or product, or its weight has no name of that form."""
    weight = stored_weight(node) if node.op in CONVOLUTIONS | PRODUCTS else None
    if weight is None or not weight.name.endswith(_SUFFIX):
        return None
    return LayerId(weight.name.removesuffix(_SUFFIX))


def integer_layer(node: gs.Node) -> LayerId | None:
    """The layer of an operator that ``lowering_onnxruntime`` wrote, once or several times; None for other nodes."""
    slot = INTEGER_OPS.get(node.op)
    found = None if slot is None else _INTEGER_WEIGHT.fullmatch(node.inputs[slot].name)
    return LayerId(found["layer"]) if found else None


def stored_weight(node: gs.Node) -> gs.Constant | None:
    """The initializer that a layer's weight comes from, through Quantize and Dequantize; None: there is none."""
    tensor = node.inputs[1] if len(node.inputs) > 1 else None
    while tensor is not None and (source := producer(tensor)) is not None:
        if source.op not in _WEIGHT_STEPS:
            return None
        tensor = source.inputs[0]
    return tensor if tensor is not None and is_constant(tensor) else None


def _assert_same(expected: set[LayerId], found: set[LayerId]) -> None:
    if expected != found:
        raise GraphError(
            "the layers of the model and those of the graph differ",
            found=f"only in the model: {first_names(sorted(expected - found), _LISTED)}; "
            f"only in the graph: {first_names(sorted(found - expected), _LISTED)}",
            fix="export the graph from this very model",
        )
