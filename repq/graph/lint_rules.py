"""The rules of ``repq.graph.linting``: each has an id, a severity, a source and a check.

Errors are what TensorRT refuses, whatever it would cost. Warnings and infos are graphs that build, but would be faster
or more exact with other scales or another placement, or that a runtime computes wrongly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_graphsurgeon as gs
from onnx import ModelProto, TensorProto

from repq.graph.activations import smooth_activation
from repq.graph.extra_kernels import ACTIVATIONS, ExtraKernel, extra_kernels, reads_of
from repq.graph.forms import Form, form_of
from repq.graph.fp16 import SMALLEST_FP16_SCALE
from repq.graph.grouping import joined_tensors
from repq.graph.integer_concat import restore_pairs, signed_concats
from repq.graph.integers import (
    WEIGHTED_OPS,
    activation_quantizers,
    arriving_parameters,
    has_int8_weight,
    has_unusable_scale,
    is_int8_layer,
    is_integer_operator,
    parameters_of,
    quantized_value,
    quantizers,
)
from repq.graph.layer_join import integer_layer, layer_id
from repq.graph.residuals import float_operands
from repq.graph.scale_merging import unequal_groups
from repq.graph.surgeon import array, element_type, import_graph, is_constant, producer, title
from repq.results import GraphFinding

Severity = Literal["error", "warning", "info"]

QUANTIZED_TYPES = "NVIDIA TensorRT Developer Guide, Working with Quantized Types"
PLACEMENT = f"{QUANTIZED_TYPES}, Q/DQ layer-placement recommendations"
FUSION = f"{QUANTIZED_TYPES}, Q/DQ fusion and propagation"
PARSER = "onnx-tensorrt operator support; tried with the TensorRT 11.4 parser"


@dataclass(frozen=True)
class Hit:
    """Where a rule fires (a layer, node or tensor), what is the matter, and what it costs."""

    where: str
    message: str
    extra_kernels: int = 0
    bytes_moved: int = 0


@dataclass(frozen=True)
class Scan:
    """A graph with what all rules look up: its tensors, the predicted extra kernels, and ``signed_concats``.

    Integers that meet in a Concat are shown to the rules as pairs in front of it.

    Attributes:
        runtime: whose rules count; empty: all of them.
        form: that the graph has; None: the one that all passes know.
    """

    graph: gs.Graph
    tensors: dict[str, gs.Tensor]
    kernels: tuple[ExtraKernel, ...]
    signed_concats: tuple[str, ...]
    runtime: str
    form: Form | None

    @classmethod
    def of(cls, model: ModelProto, runtime: str = "") -> Scan:
        graph = import_graph(model, shapes=True)
        concats = tuple(map(title, signed_concats(graph)))
        restore_pairs(graph)
        return cls(graph, graph.tensors(), extra_kernels(graph), concats, runtime, form_of(graph.properties))

    def traffic(self, kernel: ExtraKernel) -> int:
        """Bytes that an extra kernel reads and writes; a free axis counts as 1, and so does an unknown shape."""
        tensor = self.tensors[kernel.tensor]
        sizes = [size if isinstance(size, int) and size else 1 for size in tensor.shape or ()]
        floats = 2 if element_type(tensor) == TensorProto.FLOAT16 else 4
        per_value = 2 if kernel.kind == "requantize" else floats + 1
        return int(np.prod(sizes, dtype=np.int64)) * per_value if tensor.shape is not None else 0


@dataclass(frozen=True)
class Rule:
    """A rule: its id, severity, what it says, where that comes from, the check, and the runtime that it is about.

    ``runtime`` is empty for a rule that is about all.
    """

    id: str
    severity: Severity
    title: str
    source: str
    check: Callable[[Scan], Iterator[Hit]]
    runtime: str = "tensorrt"

    def findings(self, scan: Scan) -> Iterator[GraphFinding]:
        for hit in self.check(scan):
            yield GraphFinding(
                rule=self.id,
                severity=self.severity,
                where=hit.where,
                message=hit.message,
                source=self.source,
                extra_kernels=hit.extra_kernels,
                bytes_moved=hit.bytes_moved,
            )


def layer_name(node: gs.Node) -> str:
    """The ``LayerId`` of a layer, or the node's own name in a graph that repq did not write."""
    return integer_layer(node) or layer_id(node) or title(node)


def _has_fp16_scale(node: gs.Node) -> bool:
    return is_constant(node.inputs[1]) and element_type(node.inputs[1]) == TensorProto.FLOAT16


# What TensorRT refuses


def _zero_points(scan: Scan) -> Iterator[Hit]:
    for node in quantizers(scan.graph):
        zero_point = array(node, 2)
        points = np.zeros(0, np.int64) if zero_point is None else zero_point.astype(np.int64)
        if points.any():
            value = points[points != 0][0]
            yield Hit(
                title(node), f"zero point {value}: TensorRT is symmetric only; quantize again with --scheme symmetric"
            )


def _unsigned(scan: Scan) -> Iterator[Hit]:
    for node in quantizers(scan.graph):
        stored = [tensor for tensor in (*node.inputs[2:3], node.inputs[0]) if is_constant(tensor)]
        integers = next((kind for kind in map(element_type, stored) if kind != TensorProto.FLOAT), None)
        parameters = parameters_of(node)
        implicit = integers is None and parameters is not None and parameters.dtype == "uint8"
        if integers == TensorProto.UINT8 or (implicit and node.op == "QuantizeLinear"):
            yield Hit(title(node), "integers are UINT8: TensorRT takes INT8; quantize again with --scheme symmetric")


def _biases(scan: Scan) -> Iterator[Hit]:
    for node in quantizers(scan.graph):
        stored = node.inputs[0]
        if node.op == "DequantizeLinear" and is_constant(stored) and element_type(stored) == TensorProto.INT32:
            yield Hit(title(node), f"{stored.name} is dequantized from INT32: keep the bias in float")


def _per_channel_activations(scan: Scan) -> Iterator[Hit]:
    for node in activation_quantizers(scan.graph):
        scale = array(node, 1)
        if scale is not None and scale.size > 1:
            yield Hit(title(node), f"{scale.size} scales for one activation: use one scale per tensor")


def _computed_scales(scan: Scan) -> Iterator[Hit]:
    for node in quantizers(scan.graph):
        if not is_constant(node.inputs[1]):
            yield Hit(title(node), "its scale is computed at run time: scales must be constants")


def _unusable_scales(scan: Scan) -> Iterator[Hit]:
    for node in quantizers(scan.graph):
        if has_unusable_scale(node):
            yield Hit(title(node), "its scale is not a positive, finite number: quantize again")


def _integer_operators(scan: Scan) -> Iterator[Hit]:
    for node in scan.graph.nodes:
        if is_integer_operator(node):
            yield Hit(title(node), f"{node.op} is no operator that TensorRT knows: write Q/DQ instead")


def _old_opset(scan: Scan) -> Iterator[Hit]:
    version = scan.graph.opset
    if version < 19 and any(map(_has_fp16_scale, quantizers(scan.graph))):
        yield Hit("opset", f"opset {version} has no FP16 scales: export with opset 19 or newer")


# What could be faster or more exact


def _subnormal(scan: Scan) -> Iterator[Hit]:
    for node in quantizers(scan.graph):
        if _has_fp16_scale(node) and (least := float(node.inputs[1].values.min())) < SMALLEST_FP16_SCALE:
            yield Hit(title(node), f"FP16 scale {least:.3g} is below 2^-14 = 6.1e-05: raise it")


def _transposed(scan: Scan) -> Iterator[Hit]:
    for node in scan.graph.nodes:
        if node.op == "ConvTranspose" and has_int8_weight(node):
            scale = array(node.inputs[1].inputs[0], 1)
            if scale is not None and scale.size > 1:
                yield Hit(layer_name(node), f"{scale.size} weight scales: use one for the whole weight")


def _float_layers(scan: Scan) -> list[gs.Node]:
    return [node for node in scan.graph.nodes if node.op in WEIGHTED_OPS and not is_int8_layer(node)]


def _half_quantized(scan: Scan) -> Iterator[Hit]:
    for node in _float_layers(scan):
        name, source = layer_name(node), producer(node.inputs[0])
        own_pair = source is not None and source.op == "DequantizeLinear" and len(node.inputs[0].outputs) == 1
        if has_int8_weight(node):
            yield Hit(name, "its weight is quantized but its input is not (or with unequal scales): it runs in float")
        elif arriving_parameters(node.inputs[0]) is not None and own_pair:
            yield Hit(name, "its input is quantized for it alone but its weight is not: it runs in float")


def _split_activations(scan: Scan) -> Iterator[Hit]:
    for node in scan.graph.nodes:
        layer = producer(node.inputs[0]) if node.op == "QuantizeLinear" else None
        if layer is not None and layer.op in WEIGHTED_OPS:
            readers = [reader for use in node.outputs[0].outputs for reader in use.outputs[0].outputs]
            if any(reader.op in ACTIVATIONS for reader in readers):
                yield Hit(
                    layer_name(layer), "Q/DQ between the layer and its activation: quantize behind the activation"
                )


def _outputs(scan: Scan) -> Iterator[Hit]:
    for node in activation_quantizers(scan.graph):
        if node.op == "DequantizeLinear":
            readers = [reader for reader in reads_of(node.outputs[0], scan.graph) if reader is not None]
            if not any(reader.op in ("QuantizeLinear", "Add") or has_int8_weight(reader) for reader in readers):
                what = quantized_value(node.outputs[0]).name
                yield Hit(title(node), f"{what} is quantized but nothing reads integers")


def _unequal_scales(scan: Scan) -> Iterator[Hit]:
    sets = joined_tensors(scan.graph, residual_adds=False)
    for group in unequal_groups(scan.graph, residual_adds=False):
        found = sorted({p.scale for nodes in group.values() for n in nodes if (p := parameters_of(n))})
        root = sets.find(next(iter(group)))
        affected = [
            kernel
            for kernel in scan.kernels
            if kernel.cause == "unequal scales" and sets.find(quantized_value(scan.tensors[kernel.tensor]).name) == root
        ]
        scales = ", ".join(f"{scale:.4g}" for scale in found[:4])
        what = "readers of one tensor" if len(group) == 1 else f"{len(group)} tensors that one Concat or copy joins"
        yield Hit(
            next(iter(group)),
            f"{what} have scales {scales}: merge them (--merge-scales)",
            len(affected),
            sum(map(scan.traffic, affected)),
        )


def _float_residuals(scan: Scan) -> Iterator[Hit]:
    for tensor in float_operands(scan.graph):
        affected = [k for k in scan.kernels if k.tensor == tensor and k.cause == "float reader"]
        yield Hit(
            tensor,
            "a residual add reads it in float and its other input in INT8: quantize both (quantize_residuals)",
            len(affected),
            sum(map(scan.traffic, affected)),
        )


def _duplicates(scan: Scan) -> Iterator[Hit]:
    pairs = Counter(
        (node.inputs[0].name, parameters)
        for node in activation_quantizers(scan.graph)
        if node.op == "QuantizeLinear" and (parameters := parameters_of(node)) is not None
    )
    for (tensor, parameters), count in pairs.items():
        if count > 1:
            yield Hit(tensor, f"{count} equal Q on one tensor: keep one (propagate_qdq)")
        if arriving_parameters(scan.tensors[tensor]) == parameters:
            yield Hit(tensor, "quantized again with the same scale: drop the second pair (propagate_qdq)")


def _islands(scan: Scan) -> Iterator[Hit]:
    for node in _float_layers(scan):
        if _meets_int8(node, forward=False) and _meets_int8(node, forward=True):
            yield Hit(layer_name(node), "a float layer between INT8 layers: tensors change type on both sides")


def _meets_int8(start: gs.Node, *, forward: bool) -> bool:
    """Whether the next layer on some way from ``start`` runs in INT8."""
    seen: set[int] = set()
    wanted = list(start.outputs[0].outputs if forward else start.inputs[0].inputs)
    while wanted:
        node = wanted.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if node.op in WEIGHTED_OPS:
            if is_int8_layer(node):
                return True
        elif forward:
            wanted += [reader for tensor in node.outputs for reader in tensor.outputs]
        else:
            wanted += [source for tensor in node.inputs for source in tensor.inputs]
    return False


def _boundaries(scan: Scan) -> Iterator[Hit]:
    reasons = {
        "network input": "the network input arrives in float",
        "network output": "integers leave the network",
        "float reader": "another node reads it in float as well",
        "channel factors": "a depthwise layer reads it with a scale per channel",
        "float layer": "a layer that stays in float reads it as well",
        "float operator": "a float operator writes or reads it",
    }
    residuals = float_operands(scan.graph)
    for kernel in scan.kernels:
        if kernel.cause in reasons and kernel.tensor not in residuals:
            message = f"one kernel to {kernel.kind}: {reasons[kernel.cause]}"
            yield Hit(kernel.tensor, message, 1, scan.traffic(kernel))


def _smooth_activations(scan: Scan) -> Iterator[Hit]:
    for node in scan.graph.nodes:
        if is_int8_layer(node) and (smooth := smooth_activation(node)):
            yield Hit(
                layer_name(node),
                f"{smooth} behind it: ONNX Runtime computes that in float and the layer with it; ReLU in its place "
                "would be part of an INT8 kernel",
            )


def _signed_concats(scan: Scan) -> Iterator[Hit]:
    for name in scan.signed_concats:
        yield Hit(
            name,
            "OpenVINO 2026.4 sums wrongly where dequantized INT8 meets in a Concat: concatenate the integers "
            "(export without --merge-scales), or build with repq",
        )


def _other_forms(scan: Scan) -> Iterator[Hit]:
    if scan.form is not None and scan.runtime not in ("", scan.form.target):
        yield Hit("graph", f"it is written for {scan.form.name}: export it for {scan.runtime} (--for), or for nobody")


RULES: tuple[Rule, ...] = (
    Rule("other-form", "error", "A graph in the form of another runtime", "repq export", _other_forms, runtime=""),
    Rule("nonzero-zero-point", "error", "A zero point that is not 0", QUANTIZED_TYPES, _zero_points),
    Rule("unsigned-integers", "error", "UINT8 instead of INT8", QUANTIZED_TYPES, _unsigned),
    Rule("quantized-bias", "error", "A bias stored as INT32", PARSER, _biases),
    Rule(
        "per-channel-activation", "error", "Several scales for an activation", QUANTIZED_TYPES, _per_channel_activations
    ),
    Rule("computed-scale", "error", "A scale that is no constant", PARSER, _computed_scales),
    Rule(
        "unusable-scale",
        "error",
        "A scale that is no positive number",
        "ONNX, QuantizeLinear",
        _unusable_scales,
        runtime="",
    ),
    Rule("integer-operator", "error", "An integer operator in place of Q/DQ", PARSER, _integer_operators),
    Rule("fp16-opset", "error", "FP16 scales before opset 19", "ONNX, DequantizeLinear-19", _old_opset),
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
    Rule(
        "smooth-activation",
        "info",
        "A smooth activation behind an INT8 layer",
        "tried with ONNX Runtime 1.31",
        _smooth_activations,
        runtime="onnxruntime",
    ),
    Rule(
        "signed-concat",
        "info",
        "A Concat that OpenVINO computes wrongly",
        "tried with OpenVINO 2026.4",
        _signed_concats,
        runtime="openvino",
    ),
)
