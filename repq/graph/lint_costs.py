"""Lint rules for graphs that build, but would be faster or more exact with other scales or another placement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from onnx import NodeProto

from repq.graph.extra_kernels import ACTIVATIONS, reads_of
from repq.graph.fp16 import SMALLEST_FP16_SCALE
from repq.graph.index import GraphIndex
from repq.graph.int8_flow import WEIGHTED_OPS, arriving_parameters, has_int8_weight, is_int8_layer, parameters_of
from repq.graph.lint_scan import FUSION, PLACEMENT, Hit, Rule, Scan, has_fp16_scale, layer_name
from repq.graph.merge_scales import unequal_groups
from repq.graph.quantize_residuals import float_operands
from repq.graph.scale_groups import joined_tensors, quantized_value


def _subnormal(scan: Scan) -> Iterator[Hit]:
    for node in scan.quantizers():
        scale = scan.index.array(node.input[1])
        if scale is not None and has_fp16_scale(node, scan) and float(scale.min()) < SMALLEST_FP16_SCALE:
            yield Hit(
                node.name or node.output[0], f"FP16 scale {float(scale.min()):.3g} is below 2^-14 = 6.1e-05: raise it"
            )


def _transposed(scan: Scan) -> Iterator[Hit]:
    for node in scan.nodes:
        if node.op_type == "ConvTranspose" and has_int8_weight(node, scan.index):
            scale = scan.index.array(scan.index.producers[node.input[1]].input[1])
            if scale is not None and scale.size > 1:
                yield Hit(layer_name(node, scan.index), f"{scale.size} weight scales: use one for the whole weight")


def _half_quantized(scan: Scan) -> Iterator[Hit]:
    for node in scan.nodes:
        if node.op_type not in WEIGHTED_OPS or is_int8_layer(node, scan.index):
            continue
        name = layer_name(node, scan.index)
        if has_int8_weight(node, scan.index):
            yield Hit(name, "its weight is quantized but its input is not (or with unequal scales): it runs in float")
        elif arriving_parameters(node.input[0], scan.index) is not None and _own_pair(node, scan):
            yield Hit(name, "its input is quantized for it alone but its weight is not: it runs in float")


def _own_pair(node: NodeProto, scan: Scan) -> bool:
    producer = scan.index.producers.get(node.input[0])
    single = len(scan.index.uses_of(node.input[0])) == 1
    return producer is not None and producer.op_type == "DequantizeLinear" and single


def _split_activations(scan: Scan) -> Iterator[Hit]:
    for node in scan.nodes:
        if node.op_type == "QuantizeLinear":
            producer = scan.index.producers.get(node.input[0])
            if producer is None or producer.op_type not in WEIGHTED_OPS:
                continue
            readers = [
                u.node for use in scan.index.uses_of(node.output[0]) for u in scan.index.uses_of(use.node.output[0])
            ]
            if any(reader.op_type in ACTIVATIONS for reader in readers):
                name = layer_name(producer, scan.index)
                yield Hit(name, "Q/DQ between the layer and its activation: quantize behind the activation")


def _outputs(scan: Scan) -> Iterator[Hit]:
    for node in scan.activation_quantizers():
        if node.op_type == "DequantizeLinear":
            readers = reads_of(node.output[0], scan.index)
            wanting = [
                r
                for r in readers
                if r is not None and (r.op_type in ("QuantizeLinear", "Add") or has_int8_weight(r, scan.index))
            ]
            if not wanting:
                yield Hit(
                    node.name or node.output[0],
                    f"{quantized_value(node.output[0], scan.index)} is quantized but nothing reads integers",
                )


def _unequal_scales(scan: Scan) -> Iterator[Hit]:
    sets = joined_tensors(scan.model, scan.index, residual_adds=False)
    for group in unequal_groups(scan.model, residual_adds=False):
        found = sorted({p.scale for nodes in group.values() for n in nodes if (p := parameters_of(n, scan.index))})
        root = sets.find(next(iter(group)))
        affected = [
            kernel
            for kernel in scan.kernels
            if kernel.cause == "unequal scales" and sets.find(quantized_value(kernel.tensor, scan.index)) == root
        ]
        scales = ", ".join(f"{scale:.4g}" for scale in found[:4])
        what = "readers of one tensor" if len(group) == 1 else f"{len(group)} tensors that one Concat or copy joins"
        yield Hit(
            next(iter(group)),
            f"{what} have scales {scales}: merge them (merge_scales)",
            len(affected),
            sum(map(scan.traffic, affected)),
        )


def _float_residuals(scan: Scan) -> Iterator[Hit]:
    for tensor in float_operands(scan.model):
        affected = [k for k in scan.kernels if k.tensor == tensor and k.cause == "float reader"]
        yield Hit(
            tensor,
            "a residual add reads it in float and its other input in INT8: quantize both (quantize_residuals)",
            len(affected),
            sum(map(scan.traffic, affected)),
        )


def _duplicates(scan: Scan) -> Iterator[Hit]:
    pairs = Counter(
        (node.input[0], parameters)
        for node in scan.activation_quantizers()
        if node.op_type == "QuantizeLinear" and (parameters := parameters_of(node, scan.index)) is not None
    )
    for (tensor, parameters), count in pairs.items():
        if count > 1:
            yield Hit(tensor, f"{count} equal Q on one tensor: keep one (propagate_qdq)")
        if arriving_parameters(tensor, scan.index) == parameters:
            yield Hit(tensor, "quantized again with the same scale: drop the second pair (propagate_qdq)")


def _islands(scan: Scan) -> Iterator[Hit]:
    for node in scan.nodes:
        if node.op_type not in WEIGHTED_OPS or is_int8_layer(node, scan.index):
            continue
        if _from_int8(node, scan.index) and _to_int8(node.output[0], scan.index):
            name = layer_name(node, scan.index)
            yield Hit(name, "a float layer between INT8 layers: tensors change type on both sides")


def _from_int8(node: NodeProto, index: GraphIndex) -> bool:
    seen, wanted = set(), [node.input[0]]
    while wanted:
        producer = index.producers.get(wanted.pop())
        if producer is None or id(producer) in seen:
            continue
        seen.add(id(producer))
        if producer.op_type in WEIGHTED_OPS:
            if is_int8_layer(producer, index):
                return True
        else:
            wanted.extend(producer.input)
    return False


def _to_int8(tensor: str, index: GraphIndex) -> bool:
    seen, wanted = set(), [tensor]
    while wanted:
        for use in index.uses_of(wanted.pop()):
            if use.node.op_type in WEIGHTED_OPS:
                if is_int8_layer(use.node, index):
                    return True
            elif use.node.output[0] not in seen:
                seen.add(use.node.output[0])
                wanted.extend(use.node.output)
    return False


def _boundaries(scan: Scan) -> Iterator[Hit]:
    residuals = float_operands(scan.model)
    for kernel in scan.kernels:
        if kernel.cause != "unequal scales" and kernel.tensor not in residuals:
            reason = {
                "network input": "the network input arrives in float",
                "network output": "integers leave the network",
                "float reader": "somebody reads it in float as well",
                "channel factors": "a depthwise layer reads it with a scale per channel",
                "float layer": "a layer that stays in float reads it as well",
                "float operator": "a float operator writes or reads it",
            }[kernel.cause]
            yield Hit(kernel.tensor, f"one kernel to {kernel.kind}: {reason}", 1, scan.traffic(kernel))


COSTS: tuple[Rule, ...] = (
    Rule("subnormal-scale", "warning", "An FP16 scale that loses digits", "IEEE 754, binary16", _subnormal),
    Rule("transposed-per-channel", "warning", "Per-channel INT8 weights of ConvTranspose", PLACEMENT, _transposed),
    Rule("half-quantized", "warning", "A layer with one INT8 side", PLACEMENT, _half_quantized),
    Rule("split-activation", "warning", "Q/DQ between a layer and its activation", PLACEMENT, _split_activations),
    Rule("quantized-output", "warning", "Integers that nobody reads", PLACEMENT, _outputs),
    Rule("unequal-scales", "warning", "Scales that differ and should not", FUSION, _unequal_scales),
    Rule("float-residual", "warning", "A residual add with one float input", PLACEMENT, _float_residuals),
    Rule("duplicate-qdq", "warning", "Equal Q/DQ on one tensor", FUSION, _duplicates),
    Rule("float-island", "info", "A float layer between INT8 layers", PLACEMENT, _islands),
    Rule("extra-kernel", "info", "A kernel at the edge of the INT8 part", FUSION, _boundaries),
)
