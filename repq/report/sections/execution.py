"""The precision that each engine really used, layer by layer."""

from __future__ import annotations

from repq.report.blocks import Block, Cell, Column, LayerMap, LayerStrip, Level, Section, Table
from repq.report.comparison import engine_title
from repq.report.numbers import ABSENT, count, mebibytes
from repq.report.summary import VARIANT_TITLES, BuiltEngine, ReportSummary


def execution_section(summary: ReportSummary) -> Section | None:
    """Engines, a map of the precision of every layer, and the same as a table."""
    if not summary.engines:
        return None
    blocks: list[Block] = [_engine_table(summary)]
    described = [built for built in summary.engines if built.description.layers]
    if described:
        strips = [LayerStrip(built_title(b), [(x.layer, x.precision) for x in b.description.layers]) for b in described]
        if summary.ptq:
            plan = [(layer.layer, layer.precision) for layer in summary.ptq.layers]
            strips.insert(0, LayerStrip("Plan", plan))
        blocks += [LayerMap(strips), _precision_table(summary, described)]
    lead = "As the runtimes report it of the graph that they execute, not as asked for."
    return Section("execution", "Executed precision", blocks, lead, short="Precision")


def built_title(built: BuiltEngine) -> str:
    """The engine and the variant, such as ``OpenVINO INT8``."""
    return f"{engine_title(built.description.engine)} {VARIANT_TITLES[built.variant]}"


def _engine_table(summary: ReportSummary) -> Table:
    columns = [
        Column("Engine", numeric=False),
        Column("Version", numeric=False),
        Column("Device", numeric=False),
        Column("Input", numeric=False),
        Column("Outputs", numeric=False),
        Column("Size"),
        Column("Layers by precision", numeric=False),
        Column("Conversions left", numeric=False, hint="nodes of the executed graph that only convert or reorder"),
    ]
    rows = []
    for built in summary.engines:
        engine = built.description
        shape = " × ".join(map(str, engine.input_shape))
        rows.append(
            [
                Cell(built_title(built)),
                Cell(engine.version),
                Cell(engine.device),
                Cell(f"{engine.input_name} {shape}"),
                Cell(", ".join(engine.output_names)),
                Cell(mebibytes(engine.size_bytes), engine.size_bytes),
                Cell(_counts(engine.precision_counts())),
                Cell(_counts(engine.extra_nodes)),
            ]
        )
    return Table("Engines", columns, rows)


def _precision_table(summary: ReportSummary, described: list[BuiltEngine]) -> Table:
    plan: dict[str, str] = {layer.layer: layer.precision for layer in summary.ptq.layers} if summary.ptq else {}
    executed = [{layer.layer: layer for layer in built.description.layers} for built in described]
    names = list(dict.fromkeys([*plan, *(layer for layers in executed for layer in layers)]))
    columns = [Column("#"), Column("Layer", numeric=False, code=True)]
    columns += [Column("Plan", numeric=False)] if plan else []
    columns += [Column(built_title(built), numeric=False) for built in described]
    rows = []
    for number, name in enumerate(names, start=1):
        cells = [Cell(str(number), number), Cell(name)]
        if plan:
            cells.append(Cell(plan.get(name, ABSENT)))
        for built, layers in zip(described, executed, strict=True):
            layer = layers.get(name)
            if layer is None:
                cells.append(Cell(ABSENT, hint="not reported by the runtime"))
                continue
            strayed = built.variant == "int8" and plan.get(name) == "int8" and layer.precision != "int8"
            level: Level = "warn" if strayed else "good" if layer.precision == "int8" else ""
            text = f"{layer.precision} ({layer.kernel})" if layer.kernel else layer.precision
            cells.append(Cell(text, level=level))
        rows.append(cells)
    return Table(f"All {len(rows)} layers", columns, rows, collapsed=len(rows) > 12)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count(number)} {name}" for name, number in sorted(counts.items())) or ABSENT
