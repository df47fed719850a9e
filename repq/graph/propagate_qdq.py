r"""Move activation Q/DQ pairs upward through operators that only pick or place values.

Before::

    a -> \
          Concat -> QuantizeLinear -> DequantizeLinear -> Conv
    b -> /

After::

    a -> QuantizeLinear -> DequantizeLinear -> \
                                                Concat -> Conv
    b -> QuantizeLinear -> DequantizeLinear -> /

The result is equal bit by bit: ``repq.graph.copying`` says why, and through which operators.
Runtimes then run these operators on INT8 values. A pair stays where it is if moving it would change what somebody else
reads: its tensor is a graph output, or a reader wants it in float or with another scale. Pairs with equal parameters on
one tensor become one.

Source: NVIDIA TensorRT Developer Guide, "Working with Quantized Types", on commuting layers.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnx import GraphProto, ModelProto, NodeProto, helper

from repq.graph.copying import copies_values, value_slots
from repq.graph.index import GraphIndex, remove_unused, replace, sort_nodes


@dataclass(frozen=True)
class Pair:
    """A QuantizeLinear and its only reader, a DequantizeLinear with equal parameters: scale, zero point, type."""

    quantize: NodeProto
    dequantize: NodeProto
    parameters: bytes

    @property
    def source(self) -> str:
        return self.quantize.input[0]

    @property
    def result(self) -> str:
        return self.dequantize.output[0]


def propagate_qdq(model: ModelProto) -> ModelProto:
    """Return a copy of ``model`` whose per-tensor activation Q/DQ pairs sit as far upward as equal results allow.

    A second run changes nothing. Pairs of weights are not touched.
    """
    result = ModelProto()
    result.CopyFrom(model)
    _merge_equal_pairs(result.graph)
    while _move_upward(result.graph):
        _merge_equal_pairs(result.graph)
    remove_unused(result.graph)
    sort_nodes(result.graph)
    return result


def activation_pairs(graph: GraphProto, index: GraphIndex) -> list[Pair]:
    """The Q/DQ pairs of computed tensors with one scale for the whole tensor, in graph order."""
    pairs = []
    for quantize in graph.node:
        if quantize.op_type != "QuantizeLinear" or quantize.input[0] in index.initializers:
            continue
        uses = index.uses_of(quantize.output[0])
        if len(uses) != 1 or uses[0].node.op_type != "DequantizeLinear" or quantize.output[0] in index.outputs:
            continue
        parameters = _parameters(index, quantize)
        if parameters is not None and parameters == _parameters(index, uses[0].node):
            pairs.append(Pair(quantize, uses[0].node, parameters))
    return pairs


def _parameters(index: GraphIndex, node: NodeProto) -> bytes | None:
    """Scale and zero point as bytes; None where they are implicit, computed or per channel."""
    arrays = [index.array(name) for name in node.input[1:3]]
    if len(arrays) != 2:
        return None
    parts = [f"{array.dtype}".encode() + array.tobytes() for array in arrays if array is not None and array.size == 1]
    return b"".join(parts) if len(parts) == 2 else None


def _merge_equal_pairs(graph: GraphProto) -> None:
    """Of equal pairs on one tensor keep the first, and drop a pair right behind its equal: ``f(f(x)) = f(x)``."""
    index = GraphIndex.of(graph)
    pairs = activation_pairs(graph, index)
    parameters_of = {pair.result: pair.parameters for pair in pairs}
    kept: dict[tuple[str, bytes], str] = {}
    for pair in pairs:
        if parameters_of.get(pair.source) == pair.parameters:
            substitute = pair.source
        else:
            substitute = kept.setdefault((pair.source, pair.parameters), pair.result)
        if substitute != pair.result and pair.result not in index.outputs:
            for use in index.uses_of(pair.result):
                use.node.input[use.slot] = substitute
    remove_unused(graph)


def _move_upward(graph: GraphProto) -> bool:
    """Move the pairs behind one operator to its inputs; False: no pair can move."""
    index = GraphIndex.of(graph)
    pairs = {pair.source: pair for pair in activation_pairs(graph, index)}
    for pair in pairs.values():
        mover = index.producers.get(pair.source)
        if mover is not None and copies_values(mover, index) and _all_read_through(mover, pair, pairs, index):
            _move_before(mover, pair, pairs, graph, index)
            return True
    return False


def _all_read_through(mover: NodeProto, pair: Pair, pairs: dict[str, Pair], index: GraphIndex) -> bool:
    """Whether everything that ``mover`` writes is read only through pairs equal to ``pair``, one for each output."""
    for output in mover.output:
        other = pairs.get(output)
        if other is None or other.parameters != pair.parameters or output in index.outputs:
            return False
        if len(index.uses_of(output)) != 1 or other.result in index.outputs:
            return False
    return True


def _move_before(mover: NodeProto, pair: Pair, pairs: dict[str, Pair], graph: GraphProto, index: GraphIndex) -> None:
    removed = []
    for output in mover.output:
        old = pairs[output]
        removed += [old.quantize.output[0], old.result]
        for use in index.uses_of(old.result):
            use.node.input[use.slot] = output
    parameters = pair.quantize.input[1:3]
    name = pair.result.removesuffix("_dequantized")
    for slot in value_slots(mover):
        stem = f"{name}.{slot}"
        graph.node.extend(
            [
                helper.make_node(
                    "QuantizeLinear",
                    [mover.input[slot], *parameters],
                    [f"{stem}_quantized"],
                    f"{stem}/QuantizeLinear",
                ),
                helper.make_node(
                    "DequantizeLinear",
                    [f"{stem}_quantized", *parameters],
                    [f"{stem}_dequantized"],
                    f"{stem}/DequantizeLinear",
                ),
            ]
        )
        mover.input[slot] = f"{stem}_dequantized"
    replace(graph.node, [node for node in graph.node if node.output[0] not in removed])
