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

Pairs that meet in a Concat get one form, so that it stays one tensor of integers. INT8 with a zero point, of other
tools, is UINT8 with that zero point + 128. Two more of their forms are computed wrongly otherwise:

- OpenVINO drops Q/DQ of 16 bits, with their steps, and the limits of the range, which stand for the Relu that ONNX
  Runtime's quantizer leaves away: ``Q (UINT16, s, z)`` becomes ``Clip((0 - z) s, (65535 - z) s) -> Q (UINT16, s, z)``;
- it sums wrongly in ConvTranspose where weights are UINT8 or have zero points: they lose them if the differences fit
  INT8, and else are stored in float.

Pairs of either scheme stand behind a channel shuffle (`repq.graph.integer_concat.regroup`), and maps are taken apart
and laid flat as they lie in memory (`repq.graph.channels_last`).
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from repq.graph.channels_last import channels_last
from repq.graph.integer_concat import concatenate, regroup, restore_pairs, signed_concats
from repq.graph.integers import (
    Pair,
    activation_pairs,
    copies_values,
    dequantized_constant,
    parameters_of,
    quantizers,
    values_of,
    without_zero_point,
)
from repq.graph.surgeon import (
    add_node,
    array,
    export_graph,
    import_graph,
    is_constant,
    is_output,
    producer,
    redirect,
    title,
)
from repq.layers import PRODUCTS

_NEVER_NEGATIVE = frozenset({"Relu", "Sigmoid", "HardSigmoid", "Softmax", "Abs", "Exp", "Sqrt"})


def lower(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return ``model`` as OpenVINO runs it right and fast, equal in every value (see above).

    A float graph comes back unchanged.
    """
    graph = import_graph(model)
    changed = any([_share_dequantizers(graph), restore_pairs(graph)])
    pairs = {pair.result.name: pair for pair in activation_pairs(graph) if _is_signed(pair)}
    constants: dict[str, gs.Constant] = {}
    # Operators are asked before anything changes: a clip in front of one pair must not hide what stands before another.
    groups = [
        (group, all(pair.parameters.zero_point == 0 and _never_negative(pair.source, pairs) for pair in group))
        for group in _groups(graph, pairs)
        if not _signed_readers(group)
    ]
    for group, never_negative in groups:
        for pair in group:
            if never_negative:
                _clip_above(graph, pair, constants)
            _retype(pair, 0 if never_negative else pair.parameters.zero_point + 128, constants)
    rewritten = bool(groups) or (changed and not signed_concats(graph))
    if not rewritten:
        graph = import_graph(model)  # without the restored pairs
    # Concatenated is what stays signed, such as pairs with FP16 scales.
    moved = [concatenate(graph), regroup(graph), _keep_wide_ranges(graph), _without_zero_points(graph)]
    lowered = export_graph(graph) if rewritten or any(moved) else model
    return channels_last(lowered) if quantizers(graph) else lowered


def _is_signed(pair: Pair) -> bool:
    return pair.parameters.dtype == "int8" and pair.quantize.inputs[1].dtype == np.float32


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


def _share_dequantizers(graph: gs.Graph) -> bool:
    """Of equal DQ of one tensor of integers keep the first, in place; return whether there are any."""
    kept: dict[tuple[object, ...], gs.Tensor] = {}
    changed = False
    for node in quantizers(graph):
        known, result = parameters_of(node), node.outputs[0]
        if node.op == "DequantizeLinear" and known is not None and not is_output(graph, result):
            key = (node.inputs[0].name, known, node.inputs[1].dtype)
            if (shared := kept.setdefault(key, result)) is not result and not is_constant(node.inputs[0]):
                redirect(result, shared)
                changed = True
    graph.cleanup(recurse_functions=False)
    return changed


def _keep_wide_ranges(graph: gs.Graph) -> bool:
    """Put Clip to the range before every Q of 16 bits with one scale, in place; return whether there is one."""
    found = [node for node in graph.nodes if node.op == "QuantizeLinear" and not is_constant(node.inputs[0])]
    wide = [(node, known) for node in found if (known := parameters_of(node)) and known.dtype in ("int16", "uint16")]
    changed = False
    for node, known in wide:
        limits = [np.array(limit, node.inputs[1].dtype) for limit in known.range]
        before = producer(node.inputs[0])
        if before is None or before.op != "Clip" or [array(before, 1), array(before, 2)] != limits:
            name = f"{node.outputs[0].name}_range"
            ends = [gs.Constant(f"{name}_{side}", limit) for side, limit in zip(("low", "high"), limits, strict=True)]
            node.inputs[0] = add_node(graph, "Clip", name, [node.inputs[0], *ends], f"{name}_clipped")
            changed = True
    return changed


def _without_zero_points(graph: gs.Graph) -> bool:
    """Take UINT8 and zero points out of weights of ConvTranspose, in place; return whether there are any."""
    changed = False
    for node in graph.nodes:
        source = producer(node.inputs[1]) if node.op == "ConvTranspose" else None
        if source is None or source.op != "DequantizeLinear" or not all(map(is_constant, source.inputs)):
            continue
        weight, scale, zero_point = (array(source, slot) for slot in range(3))
        assert weight is not None and scale is not None, "all inputs are constants"
        if scale.ndim > 1 or (weight.dtype != np.uint8 and (zero_point is None or not zero_point.any())):
            continue
        differences, name = without_zero_point(source), f"{node.inputs[1].name}_{title(node)}"
        if differences.min() < -128 or differences.max() > 127:
            node.inputs[1] = gs.Constant(name, dequantized_constant(source))
        else:
            integers = gs.Constant(f"{source.inputs[0].name}_{title(node)}", differences.astype(np.int8))
            inputs = [integers, source.inputs[1], gs.Constant(f"{name}_zero_point", np.zeros(scale.shape, np.int8))]
            node.inputs[1] = add_node(graph, "DequantizeLinear", name, inputs, name, **source.attrs)
        changed = True
    return changed


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
