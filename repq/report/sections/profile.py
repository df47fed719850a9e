"""Where a model's time goes: by layer, the rest by kind."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from repq.report.blocks import Block, Column, Columns, Figure, Listing, Text, noted, number, table
from repq.report.comparison import engine_title
from repq.report.findings import disturbed, load_of
from repq.report.numbers import count, milliseconds, percent, significant
from repq.report.plots import shares
from repq.report.summary import Key, ReportSummary, Section
from repq.results import ProfileReport

PROFILE = Key("profile", ProfileReport)
_SHOWN = 24


@dataclass(frozen=True)
class _Row:
    """A layer with all that the runtime runs for it, or all nodes of a kind that belong to no layer."""

    layer: str
    kinds: str
    precision: str
    nodes: int
    ms: float
    share: float


_ROWS: Columns[_Row] = (
    Column("Layer", "layer", code=True),
    Column("Run as", "kinds", wide=True, wrap=True),
    Column("Precision", "precision"),
    number("Nodes", "nodes", count),
    number("ms", "ms", significant),
    number("Share", "share", percent),
)


def _rows(report: ProfileReport) -> list[_Row]:
    groups: dict[str, list[int]] = {}
    for place, node in enumerate(report.nodes):
        groups.setdefault(node.layer or f"({node.kind})", []).append(place)
    rows = []
    for name, places in groups.items():
        nodes = [report.nodes[place] for place in places]
        ms = sum(node.ms for node in nodes)
        kinds, precisions = ("+".join(dict.fromkeys(filter(None, values))) for values in
                             ((node.kind for node in nodes), (node.precision for node in nodes)))  # fmt: skip
        rows.append(_Row(name, kinds, precisions, len(nodes), ms, ms / max(report.nodes_ms, 1e-12)))
    return rows


def profile_blocks(report: ProfileReport) -> list[Block]:
    """The times of every layer, in the order of execution."""
    rows = _rows(report)
    lead = (
        f"{engine_title(report.engine)}, {report.imgsz[0]} × {report.imgsz[1]}, batch {report.batch}: a run takes "
        f"{milliseconds(report.total_ms)} without profiling; its nodes add up to {milliseconds(report.nodes_ms)} with "
        f"it. In parentheses: what belongs to no layer. {load_of(report)}."
    )
    most = sorted(rows, key=lambda row: -row.ms)[:_SHOWN]
    bars = [(row.layer, row.ms, row.precision) for row in most]
    alt = "bars of the time of the slowest layers"
    blocks: list[Block] = [Text(lead), *noted(disturbed(report))]
    blocks.append(Figure("Slowest layers", partial(shares, bars), alt, wide=True))
    blocks.append(table("Time by layer", _ROWS, rows, numbered=True, badness=lambda row: row.ms))
    return [*blocks, Listing("Nsight Systems", "\n".join(report.nsight))] if report.nsight else blocks


def _section(summary: ReportSummary) -> list[Block]:
    return profile_blocks(summary[PROFILE])


SECTION = Section("profile", "Where the time goes", _section, needs=(PROFILE,))
