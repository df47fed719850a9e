"""Latency and throughput side by side, and the sizes of the artifacts."""

from __future__ import annotations

from repq.report.blocks import Block, Cell, Column, Figure, Section, Table
from repq.report.comparison import engine_title
from repq.report.numbers import count, mebibytes, significant, times
from repq.report.plots import latency_bars
from repq.report.summary import VARIANT_TITLES, ReportSummary
from repq.results import BenchReport, BenchRow


def timing_section(summary: ReportSummary) -> Section | None:
    """Every timed setting, with a plot."""
    bench = summary.bench
    if bench is None or not bench.rows:
        return None
    height, width = bench.imgsz
    lead = (
        f"All models timed in one run at {height} × {width}, in {bench.rounds} rounds of alternating order. "
        f"The load of the machine was {bench.environment.load_average:.2f} on {bench.environment.cores} cores."
    )
    alt = "bars of the median latency of every model, engine and setting"
    blocks: list[Block] = [Figure("Latency", latency_bars(bench.rows), alt, wide=True), _bench_table(bench)]
    return Section("timing", "Latency", blocks, lead)


def size_section(summary: ReportSummary) -> Section | None:
    """Bytes on disk of every artifact."""
    sizes = [(item.name, item.size_bytes) for item in summary.sizes]
    sizes += [
        (
            f"{engine_title(built.description.engine)} {VARIANT_TITLES[built.variant]} engine",
            built.description.size_bytes,
        )
        for built in summary.engines
    ]
    if not sizes:
        return None
    columns = [Column("Artifact", numeric=False), Column("Size"), Column("Bytes")]
    rows = [[Cell(name), Cell(mebibytes(size), size), Cell(count(size), size)] for name, size in dict(sizes).items()]
    return Section("size", "Size on disk", [Table("Artifacts", columns, rows)], short="Size")


def _bench_table(bench: BenchReport) -> Table:
    columns = [
        Column("Model", numeric=False),
        Column("Engine", numeric=False),
        Column("Built as", numeric=False),
        Column("Layers ran in", numeric=False),
        Column("Scope", numeric=False, hint="end to end adds pre- and post-processing"),
        Column("Batch"),
        Column("Threads"),
        Column("Median, ms", hint="latency of a whole batch"),
        Column("95th percentile, ms"),
        Column("Images/s"),
        Column("Speedup", hint="against the first model at the same setting"),
        Column("Size"),
        Column("Runs"),
    ]
    return Table("All settings", columns, [_bench_cells(row) for row in bench.rows], collapsed=len(bench.rows) > 16)


def _bench_cells(row: BenchRow) -> list[Cell]:
    return [
        Cell(row.model),
        Cell(engine_title(row.engine)),
        Cell(VARIANT_TITLES[row.variant]),
        Cell(row.precision),
        Cell("inference" if row.scope == "infer" else "end to end"),
        Cell(count(row.batch), row.batch),
        Cell(count(row.threads), row.threads),
        Cell(significant(row.latency_ms_median), row.latency_ms_median),
        Cell(significant(row.latency_ms_p95), row.latency_ms_p95),
        Cell(significant(row.images_per_s), row.images_per_s),
        Cell(times(row.speedup), row.speedup),
        Cell(mebibytes(row.size_bytes), row.size_bytes),
        Cell(count(row.runs), row.runs),
    ]
