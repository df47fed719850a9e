"""ONNX files and engines as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from repq.report.text.tables import table_text
from repq.results import EngineDescription, ExportReport


def export_text(report: ExportReport) -> str:
    """What was written, what it costs in TensorRT, and what lint would say."""
    before, after = report.qdq_before_merging, report.qdq
    lines = [f"{report.out}: {report.layers_int8} layers INT8, {report.layers_float} float, {report.precision}"]
    if report.layers_int8:
        lines.append(
            f"Q {before.quantize} -> {after.quantize}, DQ {before.dequantize} -> {after.dequantize}, predicted extra "
            f"kernels in TensorRT {before.extra_kernels} -> {after.extra_kernels}, avoidable {before.avoidable} -> "
            f"{after.avoidable}; {report.merged_groups} groups of tensors got one scale"
        )
    if report.fp32_nodes:
        lines.append(f"FP32, since FP16 overflows there: {', '.join(report.fp32_nodes)}")
    counts = Counter(finding.severity for finding in report.findings)
    lines.append(f"lint: {', '.join(f'{counts[name]} {name}' for name in ('error', 'warning', 'info'))}")
    return "\n".join(lines)


def engine_table(description: EngineDescription) -> str:
    """The precision that each layer really runs in."""
    rows = [(layer.layer, layer.precision, layer.kernel) for layer in description.layers]
    counts = ", ".join(f"{count} {precision}" for precision, count in description.precision_counts().items())
    extra = ", ".join(f"{count} {kind}" for kind, count in description.extra_nodes.items()) or "none"
    title = f"{description.engine} {description.version} on {description.device}"
    lines = [
        table_text(title, ("layer", "precision", "kernel"), rows, left=3),
        f"layers: {counts}; nodes beside them: {extra}; {description.size_bytes / 2**20:.1f} MiB",
    ]
    if description.note:
        lines.append(description.note)
    return "\n".join([*lines, *_against_lint(description)])


def _against_lint(description: EngineDescription) -> list[str]:
    """What lint expected, and where the engine runs otherwise."""
    expected = description.expected
    if expected is None:
        return []
    counts = ", ".join(f"{count} {precision}" for precision, count in sorted(Counter(expected.layers.values()).items()))
    lines = [f"expected of the graph: {counts}; {expected.extra_kernels} kernels that only convert scales"]
    if {layer.precision for layer in description.layers} != {"unknown"}:
        surprises = description.surprises()
        lines += [f"  {layer}: expected {wanted}, runs {found}" for layer, wanted, found in surprises]
        kernels = sum(description.extra_nodes.get(kind, 0) for kind in ("quantize", "dequantize", "requantize"))
        agree = "as expected" if not surprises else f"{len(surprises)} layers otherwise than expected"
        lines.append(f"it runs {agree}, with {kernels} such kernels")
    return lines


def lint_table(report: Mapping[str, Any]) -> str:
    """What a graph costs in TensorRT, the gravest findings first; ``report`` is a lint report as plain values."""
    rows = [[finding[key] for key in ("severity", "rule", "where", "message")] for finding in report["findings"]]
    int8 = sum(layer["precision"] == "int8" for layer in report["layers"])
    counts = report["counts"]
    verdict = (
        f"{int8} of {len(report['layers'])} layers INT8; {counts['quantize']} Q, {counts['dequantize']} DQ on "
        f"activations; {counts['extra_kernels']} predicted extra kernels, {counts['avoidable']} avoidable"
    )
    if not rows:
        return f"nothing to report\n{verdict}"
    return f"{table_text('findings', ('severity', 'rule', 'where', 'what'), rows, left=4)}\n{verdict}"
