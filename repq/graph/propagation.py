r"""Move activation Q/DQ pairs upward through operators that only pick or place values.

Before::

    a -> \
          Concat -> QuantizeLinear -> DequantizeLinear -> Conv
    b -> /

After::

    a -> QuantizeLinear -> DequantizeLinear -> \
                                                Concat -> Conv
    b -> QuantizeLinear -> DequantizeLinear -> /

The result is equal bit by bit: ``repq.graph.integers`` says why, and through which operators.
Runtimes then run these operators on INT8 values. A pair stays where it is if moving it would change what somebody else
reads: its tensor is a graph output, or a reader wants it in float or with another scale. Pairs with equal parameters on
one tensor become one.

Source: NVIDIA TensorRT Developer Guide, "Working with Quantized Types", on commuting layers.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs
from onnx import ModelProto

from repq.graph.integers import Pair, activation_pairs, copies_values, value_slots
from repq.graph.surgeon import add_node, export_graph, import_graph, is_output, producer, redirect


def propagate_qdq(model: ModelProto) -> ModelProto:
    """Return ``model`` with its per-tensor activation Q/DQ pairs as far upward as equal results allow.

    A second run changes nothing. Pairs of weights are not touched.
    """
    graph = import_graph(model)
    return export_graph(graph) if propagate(graph) else model


def propagate(graph: gs.Graph) -> bool:
    """``propagate_qdq`` in place; return whether it changed anything."""
    changed = _merge_equal_pairs(graph)
    graph.cleanup(recurse_functions=False)
    while _move_upward(graph):
        changed = True
        if _merge_equal_pairs(graph):
            graph.cleanup(recurse_functions=False)
    return changed


def _merge_equal_pairs(graph: gs.Graph) -> bool:
    """Of equal pairs on one tensor keep the first, and drop a pair right behind its equal: ``f(f(x)) = f(x)``."""
    pairs = activation_pairs(graph)
    key_of = {pair.result.name: pair.key for pair in pairs}
    kept: dict[tuple[object, ...], gs.Tensor] = {}
    changed = False
    for pair in pairs:
        if key_of.get(pair.source.name) == pair.key:
            substitute = pair.source
        else:
            substitute = kept.setdefault((pair.source.name, *pair.key), pair.result)
        if substitute is not pair.result and not is_output(graph, pair.result):
            redirect(pair.result, substitute)
            changed = True
    return changed


def _move_upward(graph: gs.Graph) -> bool:
    """Move the pairs behind one operator to its inputs; False: no pair can move."""
    pairs = {pair.source.name: pair for pair in activation_pairs(graph)}
    for pair in pairs.values():
        mover = producer(pair.source)
        if mover is not None and copies_values(mover) and _all_read_through(mover, pair, pairs, graph):
            _move_before(mover, pair, pairs, graph)
            return True
    return False


def _all_read_through(mover: gs.Node, pair: Pair, pairs: dict[str, Pair], graph: gs.Graph) -> bool:
    """Whether everything that ``mover`` writes is read only through pairs equal to ``pair``, one for each output."""
    for output in mover.outputs:
        other = pairs.get(output.name)
        if other is None or other.key != pair.key or len(output.outputs) != 1:
            return False
        if is_output(graph, output) or is_output(graph, other.result):
            return False
    return True


def _move_before(mover: gs.Node, pair: Pair, pairs: dict[str, Pair], graph: gs.Graph) -> None:
    name, parameters = pair.result.name.removesuffix("_dequantized"), list(pair.quantize.inputs[1:3])
    for output in mover.outputs:
        old = pairs[output.name]
        redirect(old.result, output)
        old.quantize.inputs.clear()
    for slot in value_slots(mover):
        mover.inputs[slot] = add_pair(graph, mover.inputs[slot], f"{name}.{slot}", parameters)
    graph.cleanup(recurse_functions=False)


def add_pair(graph: gs.Graph, tensor: gs.Tensor, name: str, parameters: list[gs.Tensor]) -> gs.Tensor:
    """Add Quantize and Dequantize of ``tensor`` with this scale and zero point; return the dequantized tensor."""
    for kind, output in (("Quantize", f"{name}_quantized"), ("Dequantize", f"{name}_dequantized")):
        tensor = add_node(graph, f"{kind}Linear", f"{name}/{kind}Linear", [tensor, *parameters], output)
    return tensor
