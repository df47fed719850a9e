"""Equal Q/DQ graphs that OpenVINO runs right and without zero points.

OpenVINO (seen with 2026.4) computes wrong sums where a Concat of signed INT8 activations feeds a convolution. The same
numbers as UINT8 come out right. So, with ``q(x) = clip(round(x / s), -128, 127)``, the symmetric pair becomes

- for values that are never negative (everything after Relu), before::

      Conv -> Relu -> Q (INT8, s, 0) -> DQ

  after::

      Conv -> Clip(0, 127 s) -> Q (UINT8, s, 0) -> DQ

  since ``q(x) = round(min(x, 127 s) / s)`` for x >= 0. No zero point is left to correct for, and Clip fuses into Conv.
- for others, Q/DQ with UINT8 and zero point 128, since ``q(x) + 128 = clip(round(x / s) + 128, 0, 255)``;
- unless only ConvTranspose reads it, directly: its kernel takes INT8, and no zero point;
- or only products do: their sums of INT8 are right, and OpenVINO cannot compile one of UINT8 with a zero point behind a
  multiplication by a constant per row, such as the mask of RT-DETR's tokens.

Pairs that meet in a Concat get one form, so that it stays one tensor of integers.

Pairs of either scheme stand behind a channel shuffle (`repq.graph.integer_concat.regroup`), and maps are taken apart
and laid flat as they lie in memory (`repq.graph.channels_last`).
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from repq.graph.channels_last import channels_last
from repq.graph.integer_concat import concatenate, regroup, restore_pairs, signed_concats
from repq.graph.integers import Pair, activation_pairs, copies_values, quantizers, values_of
from repq.graph.surgeon import add_node, export_graph, import_graph, is_output, producer, title
from repq.layers import PRODUCTS

_NEVER_NEGATIVE = frozenset({"Relu", "Sigmoid", "HardSigmoid", "Softmax", "Abs", "Exp", "Sqrt"})


def lower(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return ``model`` as OpenVINO runs it right and fast, equal in every value (see above).

    A float graph comes back unchanged.
    """
    graph = import_graph(model)
    changed = restore_pairs(graph)
    pairs = {pair.result.name: pair for pair in activation_pairs(graph) if _is_symmetric(pair)}
    constants: dict[str, gs.Constant] = {}
    # Operators are asked before anything changes: a clip in front of one pair must not hide what stands before another.
    groups = [
        (group, all(_never_negative(pair.source, pairs) for pair in group))
        for group in _groups(graph, pairs)
        if not _signed_readers(group)
    ]
    for group, never_negative in groups:
        for pair in group:
            if never_negative:
                _clip_above(graph, pair, constants)
            _retype(pair, 0 if never_negative else 128, constants)
    rewritten = bool(groups) or (changed and not signed_concats(graph))
    if not rewritten:
        graph = import_graph(model)  # without the restored pairs
    # Concatenated is what stays signed, such as pairs with FP16 scales.
    moved = [concatenate(graph), regroup(graph)]
    lowered = export_graph(graph) if rewritten or any(moved) else model
    return channels_last(lowered) if quantizers(graph) else lowered


def _is_symmetric(pair: Pair) -> bool:
    found = pair.parameters
    return found.dtype == "int8" and found.zero_point == 0 and pair.quantize.inputs[1].dtype == np.float32


def _groups(graph: gs.Graph, pairs: dict[str, Pair]) -> list[list[Pair]]:
    """Pairs that meet in a Concat, directly or through operators that copy values; most are alone."""
    group_of = {result: {result} for result in pairs}
    for node in graph.nodes:
        if node.op == "Concat":
            met = [origin for tensor in node.inputs for origin in _origins(tensor, pairs)]
            merged = {result for origin in met for result in group_of[origin]}
            group_of.update(dict.fromkeys(merged, merged))
    unique = {id(group): group for group in group_of.values()}
    return [[pairs[result] for result in pairs if result in group] for group in unique.values()]


def _origins(tensor: gs.Tensor, pairs: dict[str, Pair]) -> list[str]:
    """The pairs whose results a tensor holds."""
    if tensor.name in pairs:
        return [tensor.name]
    node = producer(tensor)
    if node is None or not copies_values(node):
        return []
    return [origin for source in values_of(node) for origin in _origins(source, pairs)]


def _signed_readers(group: list[Pair]) -> bool:
    """Whether the group is one pair that ConvTranspose or products alone read and that does not come from a Concat."""
    if len(group) > 1:
        return False
    source = producer(group[0].source)
    readers = {reader.op for reader in group[0].result.outputs}
    return (readers == {"ConvTranspose"} or readers <= PRODUCTS) and (source is None or source.op != "Concat")


def _never_negative(tensor: gs.Tensor, pairs: dict[str, Pair]) -> bool:
    """Whether the operators before a tensor rule out negative values."""
    node = producer(tensor)
    if node is None:
        return False
    if tensor.name in pairs:
        return _never_negative(pairs[tensor.name].source, pairs)
    if node.op in _NEVER_NEGATIVE:
        return True
    return copies_values(node) and all(_never_negative(source, pairs) for source in values_of(node))


def _retype(pair: Pair, zero_point: int, constants: dict[str, gs.Constant]) -> None:
    """Make a pair UINT8 with this zero point."""
    constant = _constant(f"uint8_zero_point_{zero_point}", np.array(zero_point, np.uint8), constants)
    for node in (pair.quantize, pair.dequantize):
        node.inputs[2] = constant
    pair.quantize.outputs[0].dtype = np.uint8


def _clip_above(graph: gs.Graph, pair: Pair, constants: dict[str, gs.Constant]) -> None:
    """Put Clip(0, 127 scale) before a pair, in place of the Relu there if no other node reads that."""
    scale, source, before = np.float32(pair.parameters.scale), pair.source, producer(pair.source)
    if before is not None and before.op == "Relu" and len(source.outputs) == 1 and not is_output(graph, source):
        source = before.inputs[0]
    limits = [
        _constant("clip_zero", np.zeros((), np.float32), constants),
        _constant(f"clip_{scale.view(np.uint32):08x}", np.asarray(scale * np.float32(127)), constants),
    ]
    name = f"{title(pair.quantize)}_clip"
    pair.quantize.inputs[0] = add_node(graph, "Clip", name, [source, *limits], name)


def _constant(name: str, values: np.ndarray, constants: dict[str, gs.Constant]) -> gs.Constant:
    return constants.setdefault(name, gs.Constant(name, values))
