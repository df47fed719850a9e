"""What TensorRT is expected to make of a graph: Q/DQ and extra kernels, lint's findings, and estimates of its speed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from repq.report.blocks import Block, Column, Columns, Facts, Level, Table, Text, number, table
from repq.report.numbers import change, count, difference, fraction, mebibytes, plural, significant
from repq.report.summary import EXPORT, PTQ, ReportSummary, Section
from repq.results import Estimate, ExportReport, GraphFinding, KernelEstimate, PtqReport, metric_of

_LEVELS: dict[str, Level] = {"error": "bad", "warning": "warn", "info": "muted"}
_COUNTS_TITLE = "Q, DQ and the kernels that they cost"
_COUNTS = {
    "QuantizeLinear on activations": "quantize",
    "DequantizeLinear on activations": "dequantize",
    "Predicted extra kernels": "extra_kernels",
    "of these avoidable": "avoidable",
}


class _Count(NamedTuple):
    title: str
    before: int
    after: int


def _blocks(summary: ReportSummary) -> list[Block]:
    graph, ptq = summary[EXPORT], summary.get(PTQ)
    lead = (
        "An estimate from the graph alone, by the rules of NVIDIA's guide; `repq describe` compares it with what an "
        "engine really runs."
    )
    blocks: list[Block] = [Text(lead), _counts_table(graph, ptq)]
    if facts := [*_sharing_facts(ptq), *_precision_facts(graph), *_pass_facts(graph)]:
        blocks.append(Facts(facts))
    if graph.findings:
        title = f"Lint: {plural(len(graph.findings), 'finding')}"
        blocks.append(table(title, _FINDING, graph.findings, fold=13))
    return blocks


GRAPH = Section("graph", "The graph in TensorRT", _blocks, (EXPORT,), (PTQ,), short="Graph")

_FINDING: Columns[GraphFinding] = (
    Column("Severity", "severity", level=lambda row: _LEVELS[row.severity]),
    Column("Rule", "rule", code=True, note=lambda row: row.source),
    Column("Where", "where", code=True),
    Column("What", "message", wrap=True),
    number("Kernels", "extra_kernels", count, hint="estimated extra kernels per run", detail=True),
    number("Traffic", "bytes_moved", mebibytes, hint="estimated memory traffic of those kernels per run", detail=True),
)


def _counts_table(graph: ExportReport, ptq: PtqReport | None) -> Table:
    """``before`` is what each tensor's own scale gives, also where shared ones were calibrated from the start."""
    own = ptq.qdq_own_scales if ptq is not None else None
    before = own or graph.qdq_before_merging
    rows = [_Count(title, getattr(before, name), getattr(graph.qdq, name)) for title, name in _COUNTS.items()]
    groups = ptq.shared_groups if ptq is not None and own is not None else graph.merged_groups
    if not groups:
        columns: Columns[_Count] = (Column("", "title"), number("Count", "after", count))
        return table(_COUNTS_TITLE, columns, rows)
    columns = (
        Column("", "title"),
        number("Own scales", "before", count),
        number("Shared scales", "after", count),
    )
    joint = ptq is not None and ptq.share_scales == "joint"
    how = "calibrated on joint histograms" if joint else "the largest of each group"
    return table(_COUNTS_TITLE, columns, rows, f"{plural(groups, 'group')} share one scale: {how}.")


def _sharing_facts(ptq: PtqReport | None) -> list[tuple[str, str]]:
    if ptq is None or ptq.accuracy_own_scales is None:
        return []
    own, shared = ptq.accuracy_own_scales.defined(), metric_of(ptq.accuracy_quantized)
    return [
        ("AP with own scales", fraction(own)),
        ("AP with shared scales", f"{fraction(shared)} ({change(difference(own, shared))})"),
    ]


def _pass_facts(graph: ExportReport) -> list[tuple[str, str]]:
    changed = ", ".join(entry.title for entry in graph.passes if entry.changed)
    return [("Graph passes", changed)] if changed else []


def _precision_facts(graph: ExportReport) -> list[tuple[str, str]]:
    if not graph.precision.endswith("float16"):
        return []
    return [
        ("FP32 because FP16 overflows", ", ".join(graph.fp32_nodes) or "none"),
        ("Scales raised to the least of FP16", ", ".join(graph.raised_scales) or "none"),
    ]


def export_blocks(report: ExportReport) -> list[Block]:
    """For the terminal: what was written, what it costs in TensorRT, and what lint would say."""
    before, after = report.qdq_before_merging, report.qdq
    lines = [f"{report.out}: {report.layers_int8} layers INT8, {report.layers_float} float, {report.precision}"]
    if report.layers_int8:
        lines.append(
            f"{_change(before.quantize, after.quantize)} Q, {_change(before.dequantize, after.dequantize)} DQ; extra "
            f"kernels in TensorRT, predicted: {_change(before.extra_kernels, after.extra_kernels)}, of which "
            f"{_change(before.avoidable, after.avoidable)} avoidable"
        )
    if report.merged_groups:
        lines.append(f"{plural(report.merged_groups, 'group')} of tensors got one scale")
    if report.fp32_nodes:
        lines.append(f"FP32, since FP16 overflows there: {', '.join(report.fp32_nodes)}")
    if report.raised_scales:
        lines.append(f"scales raised to the least of FP16: {', '.join(report.raised_scales)}")
    if changed := [entry.title for entry in report.passes if entry.changed]:
        lines.append(f"graph passes: {', '.join(changed)}")
    lines += [f"{entry.title}: {reason}" for entry in report.passes for reason in entry.reasons]
    counts = Counter(finding.severity for finding in report.findings)
    lines.append(f"lint: {', '.join(f'{counts[name]} {name}' for name in ('error', 'warning', 'info'))}")
    return [Text("\n".join(lines))]


def _change(before: int, after: int) -> str:
    return str(after) if before == after else f"{before} -> {after}"


class _Kind(NamedTuple):
    """Findings of one rule: how many, and the first."""

    times: int
    first: GraphFinding


_KIND: Columns[_Kind] = (
    Column("Severity", "first.severity"),
    Column("Rule", "first.rule", code=True),
    number("Times", "times", count),
    Column("The first: where", "first.where", code=True),
    Column("What", "first.message", wrap=True),
)


def lint_blocks(report: Mapping[str, Any], shown: int) -> list[Block]:
    """For the terminal: findings, the gravest first, by rule where there are more than are ``shown``.

    Args:
        report: a lint report as plain values.
    """
    findings = [GraphFinding.model_validate(finding) for finding in report["findings"]]
    layers, counts = report["layers"], report["counts"]
    verdict = (
        f"{sum(layer['precision'] == 'int8' for layer in layers)} of {plural(len(layers), 'layer')} INT8; "
        f"{counts['quantize']} Q, {counts['dequantize']} DQ on activations; "
        f"{counts['extra_kernels']} predicted extra kernels, {counts['avoidable']} avoidable"
    )
    if not findings:
        return [Text("nothing to report"), Text(verdict)]
    if len(findings) <= shown:
        return [table("Findings", _FINDING, findings), Text(verdict)]
    rules = dict[tuple[str, str], list[GraphFinding]]()
    for finding in findings:
        rules.setdefault((finding.severity, finding.rule), []).append(finding)
    kinds = [_Kind(len(alike), alike[0]) for alike in rules.values()]
    note = f"{plural(len(findings), 'finding')} by rule; --all shows each"
    return [table("Findings", _KIND, kinds, note), Text(verdict)]


def estimate_blocks(found: Sequence[Estimate], top: int) -> list[Block]:
    """Estimates side by side, and the kernels of the last one that take longest."""
    columns: Columns[Estimate] = (
        Column("Device", "device"),
        number("Batch", "batch", count),
        number("Latency, ms", "latency_ms", significant),
        number("Images/s", "images_per_s", significant),
        number("Peaks alone, ms", "roofline_ms", significant),
        number("Extra kernels, ms", "extra_kernels_ms", significant),
        number("Kernels", lambda row: len(row.kernels), count),
    )
    kernels: Columns[KernelEstimate] = (
        Column("Kernel", "name"),
        Column("Kind", "kind"),
        Column("Precision", "precision"),
        Column("Bound by", "bound"),
        number("GFLOP", "gflops", significant),
        number("MB", "megabytes", significant),
        number("µs", "total_us", significant),
    )
    blocks: list[Block] = [table("ESTIMATED, not measured", columns, found)]
    last = found[-1]
    if slowest := sorted(last.kernels, key=lambda kernel: -kernel.total_us)[:top]:
        blocks.append(table(f"Slowest kernels on {last.device}, batch {last.batch}", kernels, slowest))
    notes = dict.fromkeys(note for row in found for note in row.notes)
    return [*blocks, Text("\n".join([f"factors between peak and reality: {last.efficiencies}", *notes]))]
