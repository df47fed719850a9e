"""Latency and throughput side by side, and the sizes of the artifacts."""

from __future__ import annotations

from functools import partial

from repq.report.blocks import Block, Column, Columns, Figure, Table, Text, noted, number, table
from repq.report.comparison import built_title, engine_title, row_title
from repq.report.findings import disturbed, load_of
from repq.report.numbers import count, mebibytes, percent, plural, significant, times
from repq.report.plots import latency_bars, step_bars
from repq.report.summary import BENCH, BUILD, SIZES, ReportSummary, Section
from repq.results import BenchReport, BenchRow, ServiceRow


def _bench_section(summary: ReportSummary) -> list[Block]:
    return bench_blocks(summary[BENCH]) if summary[BENCH].rows else []


def _size_section(summary: ReportSummary) -> list[Block]:
    sizes = dict(summary.get(SIZES) or {})
    sizes |= {f"{built_title(name)} engine": row.size_bytes for name, row in (summary.get(BUILD) or {}).items()}
    columns: Columns[tuple[str, int]] = (
        Column("Artifact", lambda row: row[0]),
        number("Size", lambda row: row[1], mebibytes),
        number("Bytes", lambda row: row[1], count),
    )
    return [table("Artifacts", columns, sizes.items())] if sizes else []


SCOPES = {"infer": "inference", "end_to_end": "end to end"}

TIMING = Section("timing", "Latency", _bench_section, needs=(BENCH,))
SIZE = Section("size", "Size on disk", _size_section, uses=(SIZES, BUILD), short="Size")


def bench_blocks(bench: BenchReport) -> list[Block]:
    """Every timed setting, the GPU's own time, and the way from JPEG files to boxes."""
    height, width = bench.imgsz
    machine, rounds = bench.environment, plural(bench.rounds, "round")
    lead = (
        f"All models timed in one run at {height} × {width} on {machine.cpu}, in {rounds} of alternating order. "
        f"{load_of(bench)}."
    )
    if bench.images:
        lead += f" End to end: {plural(bench.images, 'image')} of the data set, decoded beforehand."
    alt = "bars of the median latency of every model, engine and setting"
    blocks: list[Block] = [Text(lead), *noted(disturbed(bench))]
    blocks.append(Figure("Latency", partial(latency_bars, bench.rows), alt, wide=True))
    few = any(row.latency_ms_p95 is None for row in bench.rows)
    note = "Of fewer than 20 runs there is no 95th percentile." if few else ""
    blocks.append(table("All settings", _SETTING, bench.rows, note, fold=17))
    if shown := [row for row in bench.rows if row.device_ms_median is not None]:
        note = "Clocks and power are read while all models took turns at the setting; nothing is set."
        blocks.append(table("On the GPU", _DEVICE, shown, note))
    if bench.service:
        alt = "stacked bars of the time that each step takes per image"
        blocks += [Figure("JPEG to boxes", partial(step_bars, bench.service), alt, wide=True), service_table(bench)]
    return blocks


_SETTING: Columns[BenchRow] = (
    Column("Model", lambda row: None if row.model == f"{row.engine}-{row.variant}" else row.model, optional=True),
    Column("Engine", row_title),
    Column("Scope", "scope", SCOPES.__getitem__, hint="end to end adds pre- and post-processing"),
    number("Batch", "batch", count),
    number("Threads", "threads", count),
    number("Median, ms", "latency_ms_median", significant, hint="latency of a whole batch"),
    number("95th percentile, ms", "latency_ms_p95", significant),
    number("Images/s", "images_per_s", significant),
    number("Speedup", "speedup", times, hint="against the first model at the same setting",
           note=lambda row: "the first model was not timed at this setting" if row.speedup is None else ""),
    Column("Layers ran in", "precision", wrap=True, wide=True),
    number("Size", "size_bytes", mebibytes, detail=True),
    number("Runs", "runs", count, detail=True),
)  # fmt: skip

_DEVICE: Columns[BenchRow] = (
    Column("Model", "model"),
    Column("Engine", lambda row: engine_title(row.engine)),
    number("Batch", "batch", count),
    number("Host, ms", "latency_ms_median", significant, hint="what the caller waits for, copies included"),
    number("Device, ms", "device_ms_median", significant, hint="on the GPU alone, kernels started one by one"),
    number("CUDA graph, ms", "device_graph_ms_median", significant,
           hint="on the GPU alone, all kernels started at once",
           note=lambda row: "" if row.device_graph_ms_median else "the work cannot be captured as a CUDA graph"),
    Column("SM clock, MHz", lambda row: row.gpu and "{:.0f} … {:.0f}".format(*row.gpu.sm_clock_range_mhz),
           note=lambda row: "" if row.gpu else "NVML gave no readings"),
    Column("Power, W",
           lambda row: row.gpu and f"{significant(row.gpu.power_w)} of {significant(row.gpu.power_limit_w)}"),
    Column("Clock limited by", lambda row: row.gpu and (", ".join(row.gpu.limited_by) or "nothing")),
)  # fmt: skip

_SERVICE: Columns[ServiceRow] = (
    Column("Model", "model"),
    Column("Engine", lambda row: engine_title(row.engine)),
    Column("Decoded by", "loader"),
    Column("Letterbox", "letterbox", hint="loader: together with decoding", wide=True),
    Column("NMS", "nms", wide=True),
    number("Batch", "batch", count),
    number("Threads", "threads", count, wide=True),
    number("Decode, ms", "decode_ms", significant),
    number("Preprocess, ms", "preprocess_ms", significant),
    number("Infer, ms", "infer_ms", significant),
    number("Postprocess, ms", "postprocess_ms", significant),
    number("Images/s", "images_per_s", significant, hint="one step after the other"),
    number("Overlapped", "overlapped_images_per_s", significant,
           hint="images/s with decoding and letterbox in background threads"),
    Column("Bottleneck", lambda row: f"{row.bottleneck}, {percent(row.bottleneck_share)}",
           hint="the step that takes most, and its share"),
)  # fmt: skip


def service_table(bench: BenchReport, title: str = "JPEG to boxes") -> Table:
    """What each step takes on the way from JPEG files to boxes."""
    note = "Milliseconds per image, medians over the rounds; decoding and letterbox run in one thread there."
    return table(title, _SERVICE, bench.service, note)
