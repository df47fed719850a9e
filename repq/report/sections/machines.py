"""Timings of several machines, and the published ones beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from repq.model.families import FAMILIES
from repq.model.family import Family, PublishedSpeed
from repq.report.blocks import Block, Cell, Column, Section, Table
from repq.report.comparison import engine_title
from repq.report.numbers import count, significant, times
from repq.report.summary import VARIANT_TITLES, MachineBench, ReportSummary
from repq.results import BenchRow, GpuReadings


def machines_section(summary: ReportSummary) -> Section | None:
    """One table of every machine's timings, one of published figures with what was measured of the same model."""
    if not summary.machines:
        return None
    blocks: list[Block] = [_described(summary.machines), _measured(summary.machines), _published(summary.machines)]
    lead = "Each machine was timed by itself, so compare models within a machine and machines with care."
    return Section("machines", "Machines", blocks, lead)


def _rows(machines: Sequence[MachineBench]) -> Iterator[tuple[MachineBench, BenchRow]]:
    for machine in machines:
        for row in machine.bench.rows:
            if row.scope == "infer":
                yield machine, row


def _described(machines: Sequence[MachineBench]) -> Table:
    columns = [Column(title, numeric=False) for title in ("Machine", "CPU", "GPU")]
    columns += [Column("Cores"), Column("Load", hint="processes that ran or waited in the minute before")]
    columns += [Column("Runtimes", numeric=False)]
    cells = []
    for machine in machines:
        own = machine.bench.environment
        engines = {row.engine for row in machine.bench.rows}
        runtimes = [f"{name} {version}" for name, version in sorted(own.libraries.items()) if name in engines]
        cells.append([
            Cell(machine.name), Cell(own.cpu), Cell(own.gpu or "none"), Cell(count(own.cores), own.cores),
            Cell(f"{own.load_average:.2f}", own.load_average), Cell(", ".join(runtimes) or "–"),
        ])  # fmt: skip
    return Table("Machines", columns, cells)


def _measured(machines: Sequence[MachineBench]) -> Table:
    columns = [
        Column("Machine", numeric=False),
        Column("Runs on", numeric=False),
        Column("Model", numeric=False),
        Column("Engine", numeric=False),
        Column("Built as", numeric=False),
        Column("Layers ran in", numeric=False),
        Column("Input", numeric=False),
        Column("Batch"),
        Column("Median, ms", hint="what the caller waits for"),
        Column("Device, ms", hint="on the GPU alone, as one CUDA graph where that is possible"),
        Column("Images/s"),
        Column("Clock and power", numeric=False),
    ]
    cells = [
        [
            Cell(machine.name),
            Cell(machine.processor),
            Cell(row.model),
            Cell(engine_title(row.engine)),
            Cell(VARIANT_TITLES[row.variant]),
            Cell(row.precision),
            Cell("{} × {}".format(*machine.bench.imgsz)),
            Cell(count(row.batch), row.batch),
            Cell(significant(row.latency_ms_median), row.latency_ms_median),
            _device(row),
            Cell(significant(row.images_per_s), row.images_per_s),
            Cell(_readings(row.gpu)),
        ]
        for machine, row in _rows(machines)
    ]
    return Table("Measured, inference alone", columns, cells)


def _published(machines: Sequence[MachineBench]) -> Table:
    columns = [
        Column("Model", numeric=False, code=True),
        Column("Precision", numeric=False),
        Column("Batch"),
        Column("Published, images/s"),
        Column("Table", numeric=False),
        Column("Measured here", numeric=False, hint="the same architecture, precision, batch and input size"),
        Column("Images/s"),
        Column("Measured over published"),
    ]
    cells: list[list[Cell]] = []
    published = [(family, speed) for family in FAMILIES for speed in family.published]
    for family, speed in published:
        found = [(machine, row) for machine, row in _rows(machines) if _same(family, speed, machine, row)]
        cells += [_beside(speed, machine, row) for machine, row in found] or [_beside(speed)]
    sources = "; ".join(dict.fromkeys(speed.source for _, speed in published))
    return Table("Published figures", columns, cells, f"{sources}; what was not measured here has no figure.")


def _same(family: Family, speed: PublishedSpeed, machine: MachineBench, row: BenchRow) -> bool:
    architecture = None if row.spec is None else family.architecture(row.spec)
    own = (architecture, row.variant, row.batch, tuple(machine.bench.imgsz))
    return own == (speed.spec, speed.variant, speed.batch, speed.imgsz)


def _beside(speed: PublishedSpeed, machine: MachineBench | None = None, row: BenchRow | None = None) -> list[Cell]:
    measured = None if row is None else row.images_per_s
    ratio = None if measured is None else measured / speed.images_per_s
    where = "not measured" if machine is None or row is None else f"{machine.name}: {engine_title(row.engine)}"
    return [
        Cell(speed.spec),
        Cell(VARIANT_TITLES[speed.variant]),
        Cell(count(speed.batch), speed.batch),
        Cell(count(speed.images_per_s), speed.images_per_s),
        Cell(f"{speed.table} ({speed.setting})"),
        Cell(where, level="muted" if row is None else ""),
        Cell(significant(measured), measured),
        Cell(times(ratio), ratio),
    ]


def _device(row: BenchRow) -> Cell:
    value = row.device_graph_ms_median if row.device_graph_ms_median is not None else row.device_ms_median
    return Cell(significant(value), value)


def _readings(gpu: GpuReadings | None) -> str:
    if gpu is None:
        return "–"
    low, high = gpu.sm_clock_range_mhz
    clock = f"held at {low:.0f} MHz" if low == high else f"{low:.0f} … {high:.0f} MHz"
    return clock if gpu.power_w is None else f"{clock}, {gpu.power_w:.0f} W"
