"""What TensorRT will make of a graph, said without a GPU: which layers run INT8, what it refuses, what costs extra.

| severity | meaning |
|---|---|
| error | the parser or builder refuses the graph (``repq.graph.lint_refusals``) |
| warning | the graph builds, but other scales or another placement would be faster or more exact |
| info | a cost that follows from the plan or from the network itself |

Every rule has an id and a source in ``RULES``. Costs are the estimate of ``repq.graph.extra_kernels``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from onnx import ModelProto, NodeProto, TensorProto

from repq.graph.extra_kernels import QdqCounts, count_qdq
from repq.graph.index import GraphIndex
from repq.graph.int8_flow import WEIGHTED_OPS, arriving_parameters, has_int8_weight, is_int8_layer
from repq.graph.lint_costs import COSTS
from repq.graph.lint_refusals import REFUSALS
from repq.graph.lint_scan import Finding, Scan, Severity, layer_name

Precision = Literal["int8", "float16", "float32"]

RULES = REFUSALS + COSTS

_RANK: dict[Severity, int] = {"info": 0, "warning": 1, "error": 2}


@dataclass(frozen=True)
class LintedLayer:
    """How a layer will run, and why."""

    layer: str
    precision: Precision
    reason: str


@dataclass(frozen=True)
class LintReport:
    """Everything that ``lint`` says about a graph: layers in graph order, findings with the gravest first."""

    layers: tuple[LintedLayer, ...]
    findings: tuple[Finding, ...]
    counts: QdqCounts

    def at_least(self, severity: Severity) -> tuple[Finding, ...]:
        """The findings of this severity or a graver one."""
        return tuple(finding for finding in self.findings if _RANK[finding.severity] >= _RANK[severity])

    def exit_code(self, severity: Severity = "warning") -> int:
        """1 if there are findings of ``severity`` or graver, else 0."""
        return int(bool(self.at_least(severity)))


def lint(model: ModelProto) -> LintReport:
    """Look at a float, FP16 or Q/DQ graph of any origin through TensorRT's eyes. Nothing is run or changed."""
    scan = Scan.of(model)
    findings = tuple(finding for rule in RULES for finding in rule.findings(scan))
    rows = tuple(_row(node, scan.index) for node in model.graph.node if node.op_type in WEIGHTED_OPS)
    return LintReport(rows, findings, count_qdq(model))


def _row(node: NodeProto, index: GraphIndex) -> LintedLayer:
    name = layer_name(node, index)
    if is_int8_layer(node, index):
        return LintedLayer(name, "int8", "input and weight are quantized")
    if has_int8_weight(node, index):
        reason = "its weight is quantized, its input is not, or its parts have unequal scales"
    elif arriving_parameters(node.input[0], index) is not None:
        reason = "its input is quantized, its weight is not"
    else:
        reason = "neither its input nor its weight is quantized"
    return LintedLayer(name, _float_type(node, index), reason)


def _float_type(node: NodeProto, index: GraphIndex) -> Precision:
    """The type of the layer's weight, or of the scale that dequantizes it."""
    name = node.input[1]
    producer = index.producers.get(name)
    if producer is not None and producer.op_type == "DequantizeLinear":
        name = producer.input[1]
    tensor = index.initializers.get(name)
    return "float16" if tensor is not None and tensor.data_type == TensorProto.FLOAT16 else "float32"
