"""Latency and throughput side by side, and the sizes of the artifacts."""

from __future__ import annotations

from collections.abc import Sequence

from repq.report.blocks import Block, Cell, Column, Figure, Section, Table
from repq.report.comparison import engine_title
from repq.report.numbers import count, mebibytes, percent, significant, times
from repq.report.plots import latency_bars, step_bars
from repq.report.summary import VARIANT_TITLES, ReportSummary
from repq.results import BenchReport, BenchRow, ServiceRow


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
    if any(row.device_ms_median is not None for row in bench.rows):
        blocks.append(_device_table(bench.rows))
    if bench.service:
        alt = "stacked bars of the time that each step takes per image"
        blocks += [Figure("JPEG to boxes", step_bars(bench.service), alt, wide=True), _service_table(bench.service)]
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


def _device_table(rows: Sequence[BenchRow]) -> Table:
    columns = [
        Column("Model", numeric=False),
        Column("Engine", numeric=False),
        Column("Batch"),
        Column("Host, ms", hint="what the caller waits for, copies included"),
        Column("Device, ms", hint="on the GPU alone, kernels started one by one"),
        Column("CUDA graph, ms", hint="on the GPU alone, all kernels started at once"),
        Column("SM clock, MHz", numeric=False),
        Column("Power, W", numeric=False),
        Column("Clock limited by", numeric=False),
    ]
    shown = [row for row in rows if row.device_ms_median is not None]
    note = "Clocks and power are read while all models took turns at the setting; nothing is set."
    return Table("On the GPU", columns, [_device_cells(row) for row in shown], note)


def _device_cells(row: BenchRow) -> list[Cell]:
    gpu = row.gpu
    return [
        Cell(row.model),
        Cell(engine_title(row.engine)),
        Cell(count(row.batch), row.batch),
        Cell(significant(row.latency_ms_median), row.latency_ms_median),
        Cell(significant(row.device_ms_median), row.device_ms_median),
        Cell(significant(row.device_graph_ms_median), row.device_graph_ms_median),
        Cell("–" if gpu is None else "{:.0f} … {:.0f}".format(*gpu.sm_clock_range_mhz)),
        Cell("–" if gpu is None else f"{significant(gpu.power_w)} of {significant(gpu.power_limit_w)}"),
        Cell("–" if gpu is None else ", ".join(gpu.limited_by) or "nothing"),
    ]


def _service_table(rows: Sequence[ServiceRow]) -> Table:
    columns = [
        Column("Model", numeric=False),
        Column("Engine", numeric=False),
        Column("Decoded by", numeric=False),
        Column("Letterbox", numeric=False, hint="loader: together with decoding"),
        Column("NMS", numeric=False),
        Column("Batch"),
        Column("Threads"),
        Column("Decode, ms"),
        Column("Preprocess, ms"),
        Column("Infer, ms"),
        Column("Postprocess, ms"),
        Column("Images/s", hint="one step after the other"),
        Column("Overlapped", hint="images/s with decoding and letterbox in background threads"),
        Column("Bottleneck", numeric=False, hint="the step that takes most, and its share"),
    ]
    note = "Milliseconds per image, medians over the rounds; decoding and letterbox run in one thread there."
    return Table("JPEG to boxes", columns, [_service_cells(row) for row in rows], note)


def _service_cells(row: ServiceRow) -> list[Cell]:
    steps = (row.decode_ms, row.preprocess_ms, row.infer_ms, row.postprocess_ms)
    return [
        Cell(row.model),
        Cell(engine_title(row.engine)),
        Cell(row.loader),
        Cell(row.letterbox),
        Cell(row.nms),
        Cell(count(row.batch), row.batch),
        Cell(count(row.threads), row.threads),
        *(Cell(significant(value), value) for value in steps),
        Cell(significant(row.images_per_s), row.images_per_s),
        Cell(significant(row.overlapped_images_per_s), row.overlapped_images_per_s),
        Cell(f"{row.bottleneck}, {percent(row.bottleneck_share)}"),
    ]
