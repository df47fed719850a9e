"""Every engine and precision of one checkpoint: what each reaches, and which one to ship."""

from __future__ import annotations

from functools import partial

from repq.report.blocks import Block, Column, Columns, Figure, Finding, Findings, Text, noted, number, table
from repq.report.comparison import engine_title, row_title
from repq.report.findings import disturbed, load_of
from repq.report.numbers import count, fraction, mebibytes, percent, plural, significant
from repq.report.plots import accuracy_over_latency
from repq.report.summary import Key, ReportSummary, Section
from repq.report.verdict import time_again
from repq.results import Availability, BatchTiming, Contender, Contest

CONTEST = Key("compare", Contest)


_CONTENDERS: Columns[Contender] = (
    Column("Engine", row_title),
    number("AP", "ap", fraction),
    number("AP50", "ap50", fraction, wide=True),
    number("p50, ms", "first.p50_ms", significant, hint="median at the smallest batch"),
    number("Mean", "first.mean_ms", significant, wide=True),
    number("Std", "first.std_ms", significant, wide=True),
    number("p95", "first.p95_ms", significant),
    number("p99", "first.p99_ms", significant),
    number("Peak memory", "first.memory_bytes", mebibytes, hint="resident, of a process that runs nothing else"),
    number("On disk", "size_bytes", mebibytes),
    number("In INT8", "int8_macs_share", percent, hint="multiply-adds of layers that really ran in INT8"),
    Column("Layers ran in", "precision", wrap=True, detail=True),
    Column("Set-up", "setup", wrap=True, wide=True),
)

_BATCHES: Columns[tuple[Contender, BatchTiming]] = (
    Column("Engine", lambda row: row_title(row[0])),
    number("Batch", lambda row: row[1].batch, count),
    number("Images/s", lambda row: row[1].images_per_s, significant, note=lambda row: row[1].reason or ""),
    number("p50, ms", lambda row: row[1].p50_ms, significant),
    number("p99, ms", lambda row: row[1].p99_ms, significant, wide=True),
    number("Peak memory", lambda row: row[1].memory_bytes, mebibytes),
    number("Runs", lambda row: row[1].runs, count, detail=True),
    Column("Why not", lambda row: row[1].reason, wrap=True, optional=True),
)

_MISSING: Columns[Availability] = (
    Column("Engine", lambda row: engine_title(row.runtime)),
    Column("Why it is not here", "detail", wrap=True),
    Column("To get it", "fix", wrap=True),
)


def contest_blocks(found: Contest) -> list[Block]:
    """The choice, the tables, and AP against latency."""
    machine, (height, width) = found.environment, found.imgsz
    lead = (
        f"AP on {plural(found.images, 'image')}; all timed in one run at {height} × {width} on {machine.cpu} with "
        f"{plural(found.threads, 'thread')}, in turns. {load_of(found)}."
    )
    blocks: list[Block] = [Text(lead), *noted(disturbed(found, f"{time_again('compare').capitalize()}."))]
    if found.choice is not None:
        first, *others = found.choice.reasons
        rest = [Finding("warn", text) for text in others]
        blocks.append(Findings([Finding("bad" if found.choice.ship is None else "good", first), *rest]))
    timed = [row for row in found.contenders if row.first.p50_ms is not None]
    points = [(row_title(row), row.first.p50_ms or 0.0, row.ap, row.variant) for row in timed]
    alt = "AP over median latency, one point for each engine and precision"
    blocks.append(Figure("AP against latency", partial(accuracy_over_latency, points), alt, wide=True))
    blocks.append(table("Engines", _CONTENDERS, found.contenders))
    rows = [(row, timing) for row in found.contenders for timing in row.timings]
    note = "Large batches are timed in fewer runs. Of fewer than 20 there is no p95, of fewer than 100 no p99."
    blocks.append(table("Batches", _BATCHES, rows, note))
    return [*blocks, table("Not compared", _MISSING, found.missing)] if found.missing else blocks


def _section(summary: ReportSummary) -> list[Block]:
    return contest_blocks(summary[CONTEST])


SECTION = Section("contest", "Engines side by side", _section, needs=(CONTEST,))
