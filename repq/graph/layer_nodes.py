"""The join of layer ids and ONNX nodes, through the name of the weight initializer.

``images, <LayerId>.weight, bias -> Conv -> y`` in a float graph, and after quantization
``<LayerId>.weight (INT8) -> DequantizeLinear -> Conv`` or ``<LayerId>.weight -> Quantize -> Dequantize -> Conv``.
Node names and metadata are copies of the id; this join never reads them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from onnx import ModelProto, NodeProto

from repq.errors import GraphError
from repq.graph.index import GraphIndex
from repq.layers import LayerId

LAYER_OPS = frozenset({"Conv", "ConvTranspose"})
_SUFFIX = ".weight"
_WEIGHT_STEPS = frozenset({"QuantizeLinear", "DequantizeLinear", "Cast"})


def layer_nodes(model: ModelProto, layers: Iterable[LayerId] | None = None) -> dict[LayerId, NodeProto]:
    """Return the Conv or ConvTranspose node of every layer, in graph order.

    The nodes belong to ``model``: what changes them changes the model.

    Args:
        model: a float or Q/DQ graph.
        layers: the ids that the graph must hold, neither more nor fewer; None accepts any.

    Raises:
        GraphError: a convolution's weight is no initializer named ``<LayerId>.weight``, two convolutions share one
            weight, or the graph's ids differ from ``layers`` (both differences are named).
    """
    index = GraphIndex.of(model.graph)
    found: dict[LayerId, list[NodeProto]] = defaultdict(list)
    nameless: list[str] = []
    for node in model.graph.node:
        if node.op_type in LAYER_OPS:
            weight = weight_initializer(index, node)
            if weight is None or not weight.endswith(_SUFFIX):
                nameless.append(f"{node.name or node.output[0]} ({weight or 'computed weight'})")
            else:
                found[LayerId(weight.removesuffix(_SUFFIX))].append(node)
    if nameless:
        raise GraphError(
            "some convolutions cannot be joined to a layer",
            found=_listed(nameless),
            fix="their weights must be initializers named <LayerId>.weight: export with `repq export`",
        )
    shared = [f"{layer} ({len(nodes)} nodes)" for layer, nodes in found.items() if len(nodes) > 1]
    if shared:
        raise GraphError(
            "several convolutions share one weight initializer, so they cannot be told apart",
            found=_listed(shared),
            fix="give each its own copy named <LayerId>.weight: `repq export` does",
        )
    joined = {layer: nodes[0] for layer, nodes in found.items()}
    if layers is not None:
        _assert_same(set(layers), set(joined))
    return joined


def weight_initializer(index: GraphIndex, node: NodeProto) -> str | None:
    """The initializer that a convolution's weight comes from, through Quantize and Dequantize; None: there is none."""
    name = node.input[1] if len(node.input) > 1 else ""
    while name in index.producers and index.producers[name].op_type in _WEIGHT_STEPS:
        name = index.producers[name].input[0]
    return name if name in index.initializers else None


def _assert_same(expected: set[LayerId], found: set[LayerId]) -> None:
    if expected != found:
        raise GraphError(
            "the layers of the model and the convolutions of the graph differ",
            found=f"only in the model: {_listed(sorted(expected - found))}; "
            f"only in the graph: {_listed(sorted(found - expected))}",
            fix="export the graph from this very model",
        )


def _listed(names: list[str] | list[LayerId], limit: int = 20) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "none") + rest
