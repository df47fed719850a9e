"""Lint rules for what TensorRT refuses: the graph does not parse or build, whatever it would cost."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import NodeProto, TensorProto

from repq.graph.index import GraphIndex
from repq.graph.int8_flow import parameters_of
from repq.graph.lint_scan import PARSER, QUANTIZED_TYPES, Hit, Rule, Scan, has_fp16_scale


def _name(node: NodeProto) -> str:
    return node.name or node.output[0]


def _zero_points(scan: Scan) -> Iterator[Hit]:
    for node in scan.quantizers():
        zero_point = scan.index.array(node.input[2]) if len(node.input) > 2 else None
        if zero_point is not None and np.any(zero_point.astype(np.int64)):
            value = int(zero_point.reshape(-1)[0])
            yield Hit(_name(node), f"zero point {value}: TensorRT is symmetric only; use ptq.scheme=symmetric")


def _unsigned(scan: Scan) -> Iterator[Hit]:
    for node in scan.quantizers():
        zero_point = scan.index.initializers.get(node.input[2]) if len(node.input) > 2 else None
        integers = scan.index.initializers.get(node.input[0])
        found = zero_point.data_type if zero_point is not None else integers.data_type if integers is not None else None
        parameters = parameters_of(node, scan.index)
        implicit = found is None and parameters is not None and parameters.dtype == "uint8"
        if found == TensorProto.UINT8 or (implicit and node.op_type == "QuantizeLinear"):
            yield Hit(_name(node), "integers are UINT8: TensorRT takes INT8; use ptq.scheme=symmetric")


def _biases(scan: Scan) -> Iterator[Hit]:
    for node in scan.quantizers():
        stored = scan.index.initializers.get(node.input[0])
        if node.op_type == "DequantizeLinear" and stored is not None and stored.data_type == TensorProto.INT32:
            yield Hit(_name(node), f"{node.input[0]} is dequantized from INT32: keep the bias in float")


def _per_channel_activations(scan: Scan) -> Iterator[Hit]:
    for node in scan.activation_quantizers():
        scale = scan.index.array(node.input[1])
        if scale is not None and scale.size > 1:
            yield Hit(_name(node), f"{scale.size} scales for one activation: use one scale per tensor")


def _computed_scales(scan: Scan) -> Iterator[Hit]:
    for node in scan.quantizers():
        if node.input[1] not in scan.index.initializers and not _is_constant(node.input[1], scan.index):
            yield Hit(_name(node), "its scale is computed at run time: scales must be constants")


def _is_constant(name: str, index: GraphIndex) -> bool:
    return name in index.producers and index.producers[name].op_type == "Constant"


def _integer_operators(scan: Scan) -> Iterator[Hit]:
    for node in scan.nodes:
        if node.op_type.startswith(("QLinear", "ConvInteger", "MatMulInteger", "DynamicQuantize")):
            yield Hit(_name(node), f"{node.op_type} is no operator that TensorRT knows: write Q/DQ instead")


def _old_opset(scan: Scan) -> Iterator[Hit]:
    version = next((entry.version for entry in scan.model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if version < 19 and any(has_fp16_scale(node, scan) for node in scan.quantizers()):
        yield Hit("opset", f"opset {version} has no FP16 scales: export with opset 19 or newer")


REFUSALS: tuple[Rule, ...] = (
    Rule("nonzero-zero-point", "error", "A zero point that is not 0", QUANTIZED_TYPES, _zero_points),
    Rule("unsigned-integers", "error", "UINT8 instead of INT8", QUANTIZED_TYPES, _unsigned),
    Rule("quantized-bias", "error", "A bias stored as INT32", PARSER, _biases),
    Rule(
        "per-channel-activation",
        "error",
        "Several scales for an activation",
        QUANTIZED_TYPES,
        _per_channel_activations,
    ),
    Rule("computed-scale", "error", "A scale that is no constant", PARSER, _computed_scales),
    Rule("integer-operator", "error", "An integer operator in place of Q/DQ", PARSER, _integer_operators),
    Rule("fp16-opset", "error", "FP16 scales before opset 19", "ONNX, DequantizeLinear-19", _old_opset),
)
