"""What TensorRT will make of a graph, said without a GPU: which layers run INT8, what it refuses, what costs extra.

| severity | meaning |
|---|---|
| error | the parser or builder refuses the graph |
| warning | the graph builds, but other scales or another placement would be faster or more exact |
| info | a cost that follows from the plan or from the network itself, or a fault of another runtime |

Every rule has an id and a source in ``repq.graph.lint_rules``. Costs are the estimate of ``repq.graph.extra_kernels``.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs
from onnx import ModelProto, TensorProto

from repq.graph.extra_kernels import counts_of
from repq.graph.integers import WEIGHTED_OPS, arriving_parameters, has_int8_weight, is_int8_layer, weight_type
from repq.graph.layer_join import INTEGER_OPS
from repq.graph.lint_rules import RULES, Scan, layer_name
from repq.graph.metadata import read_metadata
from repq.graph.surgeon import element_type, producer, title
from repq.results import LintedLayer, LintReport


def lint(model: ModelProto, target: str | None = None) -> LintReport:
    """Look at a float, FP16 or Q/DQ graph of any origin. Nothing is run or changed.

    Args:
        target: the runtime whose rules count. Default: what the graph says that it is for; all of them if it does not.
    """
    metadata = read_metadata(model)
    chosen = target or (metadata.target if metadata is not None else "")
    scan = Scan.of(model, chosen)
    rules = [rule for rule in RULES if "" in (chosen, rule.runtime) or rule.runtime == chosen]
    findings = tuple(finding for rule in rules for finding in rule.findings(scan))
    rows = {title(node): _row(node) for node in scan.graph.nodes if node.op in {*WEIGHTED_OPS, *INTEGER_OPS}}
    layers = tuple({row.layer: row for row in rows.values()}.values())
    return LintReport(layers=layers, findings=findings, counts=counts_of(scan.graph))


def _row(node: gs.Node) -> LintedLayer:
    if node.op in INTEGER_OPS:
        return LintedLayer(layer=layer_name(node), precision="int8", reason="it is an integer operator")
    if is_int8_layer(node):
        return LintedLayer(layer=layer_name(node), precision="int8", reason="input and weight are quantized")
    if has_int8_weight(node):
        reason = "its weight is quantized, its input is not, or its parts have unequal scales"
    elif (kind := weight_type(node)) is not None:
        reason = f"its weight is quantized to {TensorProto.DataType.Name(kind)}, not to 8-bit integers"
    elif arriving_parameters(node.inputs[0]) is not None:
        reason = "its input is quantized, its weight is not"
    else:
        reason = "neither its input nor its weight is quantized"
    source = producer(node.inputs[1])
    typed = source.inputs[1] if source is not None and source.op == "DequantizeLinear" else node.inputs[1]
    half = isinstance(typed, gs.Constant) and element_type(typed) == TensorProto.FLOAT16
    return LintedLayer(layer=layer_name(node), precision="float16" if half else "float32", reason=reason)
