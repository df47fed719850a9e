"""Timings of several machines, and the published ones beside them."""

from __future__ import annotations

from typing import NamedTuple

from repq.model.families import FAMILIES
from repq.model.family import Family, PublishedSpeed
from repq.report.blocks import Block, Column, Columns, Text, noted, number, table
from repq.report.comparison import engine_title, variant_title
from repq.report.findings import disturbed_machines
from repq.report.numbers import count, significant, times
from repq.report.sections.timing import SCOPES, service_table
from repq.report.summary import MACHINES, ReportSummary, Section
from repq.results import BenchReport, BenchRow


class _Timed(NamedTuple):
    """A row of one machine."""

    machine: str
    bench: BenchReport
    row: BenchRow

    @property
    def device_ms(self) -> float | None:
        graph = self.row.device_graph_ms_median
        return self.row.device_ms_median if graph is None else graph

    @property
    def readings(self) -> str | None:
        gpu = self.row.gpu
        if gpu is None:
            return None
        low, high = gpu.sm_clock_range_mhz
        clock = f"held at {low:.0f} MHz" if low == high else f"{low:.0f} … {high:.0f} MHz"
        return clock if gpu.power_w is None else f"{clock}, {gpu.power_w:.0f} W"


class _Pair(NamedTuple):
    """A published figure and what was measured of the same model; no ratio to a time that is not to be trusted."""

    published: PublishedSpeed
    timed: _Timed | None

    @property
    def images_per_s(self) -> float | None:
        return self.timed and self.timed.row.images_per_s

    @property
    def ratio(self) -> float | None:
        disturbed = self.timed is not None and self.timed.bench.crowded
        return None if self.images_per_s is None or disturbed else self.images_per_s / self.published.images_per_s

    @property
    def where(self) -> str:
        return f"{self.timed.machine}: {engine_title(self.timed.row.engine)}" if self.timed else "not measured"


def _blocks(summary: ReportSummary) -> list[Block]:
    machines = summary[MACHINES]
    timed = [_Timed(name, bench, row) for name, bench in machines.items() for row in bench.rows]
    pairs, published = [], [(family, speed) for family in FAMILIES for speed in family.published]
    for family, speed in published:
        found = [_Pair(speed, row) for row in timed if row.row.scope == "infer" and _same(family, speed, row)]
        pairs += found or [_Pair(speed, None)]
    sources = "; ".join(dict.fromkeys(speed.source for _, speed in published))
    several = machines if len(machines) > 1 else {}  # of one alone the section of its timings says it
    return [
        Text("Each machine was timed by itself, so compare models within a machine and machines with care."),
        *noted(disturbed_machines(several)),
        table("Machines", _MACHINE, machines.items()),
        table("Measured", _TIMED, timed),
        *(service_table(bench, f"JPEG to boxes on {name}") for name, bench in several.items() if bench.service),
        table("Published figures", _PAIR, pairs, f"{sources}; what was not measured here has no figure."),
    ]


SECTION = Section("machines", "Machines", _blocks, needs=(MACHINES,))


def _same(family: Family, speed: PublishedSpeed, timed: _Timed) -> bool:
    architecture = None if timed.row.spec is None else family.architecture(timed.row.spec)
    own = (architecture, timed.row.variant, timed.row.batch, tuple(timed.bench.imgsz))
    return own == (speed.spec, speed.variant, speed.batch, speed.imgsz)


def _runtimes(bench: BenchReport) -> str | None:
    engines = {row.engine for row in bench.rows}
    libraries = sorted(bench.environment.libraries.items())
    found = [f"{name} {version}" for name, version in libraries if name.partition("-")[0] in engines]
    return ", ".join(found) or None


_MACHINE: Columns[tuple[str, BenchReport]] = (
    Column("Machine", lambda item: item[0]),
    Column("CPU", lambda item: item[1].environment.cpu),
    Column("GPU", lambda item: item[1].environment.gpu or "none"),
    number("Cores", lambda item: item[1].environment.cores, count),
    number("Load", lambda item: item[1].environment.load_average, "{:.2f}".format,
           hint="processes that ran or waited in the minute before"),
    number("Cores busy", lambda item: item[1].others, "{:.1f}".format,
           hint="cores that other processes kept busy meanwhile",
           level=lambda item: "warn" if item[1].crowded else ""),
    Column("Runtimes", lambda item: _runtimes(item[1])),
)  # fmt: skip

_TIMED: Columns[_Timed] = (
    Column("Machine", "machine"),
    Column("Runs on", "bench.processor", wrap=True),
    Column("Model", "row.model"),
    Column("Engine", lambda timed: engine_title(timed.row.engine)),
    Column("Built as", lambda timed: variant_title(timed.row.variant)),
    Column("Layers ran in", "row.precision"),
    Column("Input", lambda timed: "{} × {}".format(*timed.bench.imgsz)),
    Column("Scope", "row.scope", SCOPES.__getitem__, hint="end to end adds pre- and post-processing"),
    number("Batch", "row.batch", count),
    number("Threads", "row.threads", count),
    number("Median, ms", "row.latency_ms_median", significant, hint="what the caller waits for"),
    number("Device, ms", "device_ms", significant, hint="on the GPU alone, as one CUDA graph where that is possible",
           optional=True),
    number("Images/s", "row.images_per_s", significant),
    Column("Clock and power", "readings", optional=True),
)  # fmt: skip

_PAIR: Columns[_Pair] = (
    Column("Model", "published.spec", code=True),
    Column("Precision", lambda pair: variant_title(pair.published.variant)),
    number("Batch", "published.batch", count),
    number("Published, images/s", "published.images_per_s", count),
    Column("Table", lambda pair: f"{pair.published.table} ({pair.published.setting})"),
    Column("Measured here", "where", hint="the same architecture, precision, batch and input size",
           level=lambda pair: "" if pair.timed else "muted"),
    number("Images/s", "images_per_s", significant),
    number("Measured over published", "ratio", times,
           note=lambda pair: "other processes disturbed the timing" if pair.timed and pair.timed.bench.crowded else ""),
)  # fmt: skip
