"""What TensorRT is expected to make of the INT8 graph: Q/DQ and extra kernels, before and after scales were merged."""

from __future__ import annotations

from collections.abc import Sequence

from repq.report.blocks import Block, Cell, Column, Facts, Level, Section, Table
from repq.report.numbers import change, count, fraction, mebibytes, plural
from repq.report.summary import ReportSummary
from repq.results import ExportReport, GraphFinding, PtqReport

_LEVELS: dict[str, Level] = {"error": "bad", "warning": "warn", "info": "muted"}
_COUNTS = (
    ("quantize", "QuantizeLinear on activations"),
    ("dequantize", "DequantizeLinear on activations"),
    ("extra_kernels", "Predicted extra kernels"),
    ("avoidable", "of these avoidable"),
)


def graph_section(summary: ReportSummary) -> Section | None:
    """Counts before and after merging, what sharing scales cost, and what lint found."""
    graph = summary.graph
    if graph is None:
        return None
    blocks: list[Block] = [_counts_table(graph, summary.ptq)]
    if facts := [*_sharing_facts(summary.ptq), *_precision_facts(graph)]:
        blocks.append(Facts(facts))
    if graph.findings:
        blocks.append(_findings_table(graph.findings))
    lead = (
        "An estimate from the graph alone, by the rules of NVIDIA's guide; `repq describe` compares it with what an "
        "engine really runs."
    )
    return Section("graph", "The graph in TensorRT", blocks, lead, short="Graph")


def _counts_table(graph: ExportReport, ptq: PtqReport | None) -> Table:
    """``before`` is what each tensor's own scale gives, also where shared ones were calibrated from the start."""
    own = ptq.qdq_own_scales if ptq is not None else None
    before, after = own or graph.qdq_before_merging, graph.qdq
    rows = [
        [Cell(title), Cell(count(getattr(before, name)), getattr(before, name)),
         Cell(count(getattr(after, name)), getattr(after, name))]
        for name, title in _COUNTS
    ]  # fmt: skip
    columns = [Column("", numeric=False), Column("Own scales"), Column("Shared scales")]
    groups = ptq.shared_groups if ptq is not None and own is not None else graph.merged_groups
    joint = ptq is not None and ptq.share_scales == "joint"
    how = "calibrated on joint histograms" if joint else "the largest of each group"
    note = f"{plural(groups, 'group')} share one scale: {how}."
    return Table("Q, DQ and the kernels that they cost", columns, rows, note)


def _sharing_facts(ptq: PtqReport | None) -> list[tuple[str, str]]:
    if ptq is None or ptq.accuracy_own_scales is None:
        return []
    own, shared = ptq.accuracy_own_scales.ap, ptq.accuracy_quantized.ap
    return [
        ("AP with own scales", fraction(own)),
        ("AP with shared scales", f"{fraction(shared)} ({change(shared - own)})"),
    ]


def _precision_facts(graph: ExportReport) -> list[tuple[str, str]]:
    if not graph.precision.endswith("float16"):
        return []
    kept = ", ".join(graph.fp32_nodes) or "none"
    return [("FP32 because FP16 overflows", kept)]


def _findings_table(findings: Sequence[GraphFinding]) -> Table:
    columns = [
        Column("Severity", numeric=False),
        Column("Rule", numeric=False, code=True),
        Column("Where", numeric=False, code=True),
        Column("What", numeric=False),
        Column("Kernels", hint="estimated extra kernels per run"),
        Column("Traffic", hint="estimated memory traffic of those kernels per run"),
    ]
    rows = [
        [
            Cell(finding.severity, level=_LEVELS[finding.severity]),
            Cell(finding.rule, hint=finding.source),
            Cell(finding.where),
            Cell(finding.message),
            Cell(count(finding.extra_kernels), finding.extra_kernels),
            Cell(mebibytes(finding.bytes_moved), finding.bytes_moved),
        ]
        for finding in findings
    ]
    return Table(f"Lint: {plural(len(rows), 'finding')}", columns, rows, collapsed=len(rows) > 12)
