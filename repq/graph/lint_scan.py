"""What all lint rules share: findings, rules, and one look at the graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto

from repq.graph.extra_kernels import ExtraKernel, predict_extra_kernels
from repq.graph.index import GraphIndex
from repq.graph.layer_nodes import weight_initializer
from repq.graph.scale_groups import quantized_value

Severity = Literal["error", "warning", "info"]

QUANTIZED_TYPES = "NVIDIA TensorRT Developer Guide, Working with Quantized Types"
PLACEMENT = f"{QUANTIZED_TYPES}, Q/DQ layer-placement recommendations"
FUSION = f"{QUANTIZED_TYPES}, Q/DQ fusion and propagation"
PARSER = "onnx-tensorrt operator support; tried with the TensorRT 11.4 parser"


@dataclass(frozen=True)
class Finding:
    """One thing that ``lint`` found.

    Attributes:
        rule: id of the rule, such as ``unequal-scales``.
        severity: error, warning or info.
        where: a layer, node or tensor of the graph.
        message: what is the matter and what to do.
        source: where the rule comes from.
        extra_kernels: estimated kernels that this costs per run.
        bytes_moved: estimated memory traffic of those kernels, reading and writing, in bytes per run.
    """

    rule: str
    severity: Severity
    where: str
    message: str
    source: str
    extra_kernels: int = 0
    bytes_moved: int = 0


@dataclass(frozen=True)
class Hit:
    """Where a rule fires, and what it costs."""

    where: str
    message: str
    extra_kernels: int = 0
    bytes_moved: int = 0


@dataclass(frozen=True)
class Scan:
    """A graph with what all rules look up: the index, tensor sizes and the predicted extra kernels."""

    model: ModelProto
    index: GraphIndex
    elements: dict[str, int]
    float_bytes: dict[str, int]
    kernels: tuple[ExtraKernel, ...]

    @classmethod
    def of(cls, model: ModelProto) -> Scan:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        elements, float_bytes = {}, {}
        for entry in (*inferred.input, *inferred.value_info, *inferred.output):
            kind = entry.type.tensor_type
            dimensions = [dimension.dim_value or 1 for dimension in kind.shape.dim]  # a free axis counts as 1
            elements[entry.name] = int(np.prod(dimensions, dtype=np.int64))
            float_bytes[entry.name] = 2 if kind.elem_type == TensorProto.FLOAT16 else 4
        return cls(model, GraphIndex.of(model.graph), elements, float_bytes, predict_extra_kernels(model))

    @property
    def nodes(self) -> list[NodeProto]:
        return list(self.model.graph.node)

    def quantizers(self) -> list[NodeProto]:
        return [node for node in self.nodes if node.op_type in ("QuantizeLinear", "DequantizeLinear")]

    def activation_quantizers(self) -> list[NodeProto]:
        constants = self.index.initializers
        return [node for node in self.quantizers() if quantized_value(node.input[0], self.index) not in constants]

    def traffic(self, kernel: ExtraKernel) -> int:
        """Bytes that an extra kernel reads and writes."""
        floats = self.float_bytes.get(kernel.tensor, 4)
        sizes = {"quantize": floats + 1, "dequantize": floats + 1, "requantize": 2}
        return self.elements.get(kernel.tensor, 0) * sizes[kernel.kind]


@dataclass(frozen=True)
class Rule:
    """A rule: its id, severity, what it says, where that comes from, and the check."""

    id: str
    severity: Severity
    title: str
    source: str
    check: Callable[[Scan], Iterator[Hit]]

    def findings(self, scan: Scan) -> Iterator[Finding]:
        for hit in self.check(scan):
            yield Finding(
                self.id, self.severity, hit.where, hit.message, self.source, hit.extra_kernels, hit.bytes_moved
            )


def layer_name(node: NodeProto, index: GraphIndex) -> str:
    """The ``LayerId`` of a convolution, or the node's own name in a graph that repq did not write."""
    weight = weight_initializer(index, node) or ""
    return weight.removesuffix(".weight") if weight.endswith(".weight") else node.name or node.output[0]


def has_fp16_scale(node: NodeProto, scan: Scan) -> bool:
    """Whether a Q or DQ has an FP16 constant for its scale."""
    scale = scan.index.initializers.get(node.input[1])
    return scale is not None and scale.data_type == TensorProto.FLOAT16
