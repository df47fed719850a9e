"""What quantizing each layer costs by every measure, and the plan that was made of it."""

from __future__ import annotations

from repq.report.blocks import Block, Cell, Column, Figure, Finding, Findings, Section, Table
from repq.report.numbers import ABSENT, change, compact, decibels, fraction, percent, plural, significant
from repq.report.sensitivity_plots import (
    correlation_matrix,
    latency_front,
    measure_cost,
    measures_by_layer,
    tried_plans,
)
from repq.report.summary import ReportSummary
from repq.results import LatencyFront, LayerSensitivity, PlanReport, Sensitivity, Similarity

_STEPS = {
    "all_int8": "all in INT8",
    "comparison": "comparing orders",
    "bisection": "bisection",
    "greedy": "giving back",
}


def plan_section(summary: ReportSummary) -> Section | None:
    """Which layers stay in float, why, and what the search for them tried."""
    plan, measured = summary.plan, summary.sensitivity
    if plan is None or measured is None:
        return None
    lead = (
        f"{len(plan.float_layers)} of {plural(len(measured.layers), 'layer')} stay in float, chosen by {plan.measure}; "
        f"{percent(plan.int8_macs_share)} of the multiply-adds are in INT8."
    )
    blocks: list[Block] = [Findings([finding])] if (finding := _verdict(plan)) else []
    if plan.latency is not None and plan.latency.points:
        blocks += [_front_figure(plan.latency), _front_table(plan.latency)]
    if plan.trials:
        alt = "AP drop of every plan tried against its share in INT8"
        figure = Figure("Plans tried", tried_plans(plan.trials, plan), alt, wide=True, file="plans-tried.svg")
        blocks += [figure, _trial_table(plan)]
    blocks.append(_float_table(measured, plan))
    return Section("plan", "The plan", blocks, lead, short="Plan")


def sensitivity_section(summary: ReportSummary) -> Section | None:
    """All measures side by side per layer, how they agree, and what each costs."""
    measured = summary.sensitivity
    if measured is None:
        return None
    kept = summary.plan.float_layers if summary.plan else ()
    lead = f"Every layer quantized alone ({measured.scheme}), on {plural(len(measured.images), 'image')}"
    if measured.ap_images:
        lead += f"; AP on {plural(len(measured.ap_images), 'image')}"
    if measured.ap_float is not None:
        lead += f", {fraction(measured.ap_float)} in float"
    if measured.ap_int8 is not None:
        lead += f", {fraction(measured.ap_int8)} with every layer in INT8"
    blocks: list[Block] = [Findings([Finding("warn", note) for note in measured.notes])] if measured.notes else []
    alt = "every measure of every layer in model order"
    blocks.append(Figure("By layer", measures_by_layer(measured, kept), alt, wide=True, file="measures.svg"))
    tables = []
    if measured.correlations:
        alt = "Spearman's rank correlation of every two measures"
        svg = correlation_matrix(measured.correlations)
        blocks.append(Figure("How the measures agree", svg, alt, file="correlation.svg"))
        tables.append(_correlation_table(measured))
    if measured.seconds:
        alt = "seconds that each kind of measure took"
        blocks.append(Figure("What they cost", measure_cost(measured.seconds), alt, file="seconds.svg"))
        tables.append(_cost_table(measured))
    blocks += reversed(tables)
    blocks.append(_layer_table(measured, summary.plan))
    return Section("sensitivity", "Sensitivity by layer", blocks, lead + ".", short="Sensitivity")


def _verdict(plan: PlanReport) -> Finding | None:
    if plan.drop is None or plan.drop_interval is None or plan.max_drop is None:
        return None
    low, high = plan.drop_interval
    text = (
        f"AP drop {change(plan.drop)} (95 %: {change(low)} to {change(high)}) on {plural(plan.images, 'image')} of the "
        f"split that the plan was chosen on; the budget is {fraction(plan.max_drop)}"
    )
    if plan.holds:
        return Finding("good", text + ".")
    return Finding("warn", text + ": no plan tried holds it with so much in INT8.")


def _front_figure(front: LatencyFront) -> Figure:
    alt = "AP drop against latency of plans from all layers in INT8 to all in float"
    return Figure("AP against latency", latency_front(front.points, front.engine), alt, wide=True, file="front.svg")


def _front_table(front: LatencyFront) -> Table:
    height, width = front.imgsz
    columns = [
        Column("Float layers"),
        Column("MACs in INT8"),
        Column("AP drop"),
        Column("95 %, from"),
        Column("to"),
        Column("Median, ms"),
        Column("Quartiles, from"),
        Column("to"),
        Column("", numeric=False),
    ]
    rows = [
        [
            Cell(str(point.float_layers), point.float_layers),
            Cell(percent(point.int8_macs_share), point.int8_macs_share),
            Cell(change(point.drop), point.drop),
            *(Cell(change(value), value) for value in point.drop_interval),
            Cell(significant(point.latency_ms), point.latency_ms),
            *(Cell(significant(value), value) for value in point.latency_ms_range),
            Cell(
                ", ".join(["the plan"] * point.chosen + ["on the front"] * point.efficient),
                level="good" if point.efficient else "",
            ),
        ]
        for point in front.points
    ]
    note = (
        f"{front.engine}, {height} × {width}, batch 1, {plural(front.threads, 'thread')}; all engines took turns in "
        "one run. AP is that of the simulation, on the images that the plan was chosen on."
    )
    return Table("AP against latency, figures", columns, rows, note)


def _trial_table(plan: PlanReport) -> Table:
    columns = [
        Column("#"),
        Column("Step", numeric=False),
        Column("Order", numeric=False),
        Column("Float layers"),
        Column("Share in INT8"),
        Column("AP drop"),
        Column("95 %, from"),
        Column("to"),
        Column("Compared"),
        Column("Fits", numeric=False),
    ]
    rows = [
        [
            Cell(str(number), number),
            Cell(_STEPS[trial.step]),
            Cell(trial.order),
            Cell(str(trial.float_layers), trial.float_layers),
            Cell(percent(trial.int8_share), trial.int8_share),
            Cell(change(trial.drop), trial.drop),
            *(Cell(change(value), value) for value in trial.drop_interval),
            Cell(change(trial.bound), trial.bound),
            Cell("yes" if trial.fits else "no", level="good" if trial.fits else ""),
        ]
        for number, trial in enumerate(plan.trials, start=1)
    ]
    return Table(f"All {len(rows)} plans tried", columns, rows, collapsed=len(rows) > 12)


def _float_table(measured: Sensitivity, plan: PlanReport) -> Table:
    total = sum(row.macs for row in measured.layers) or 1
    numbers = {row.layer: (number, row.macs / total) for number, row in enumerate(measured.layers, start=1)}
    columns = [Column("#"), Column("Layer", numeric=False, code=True), Column("MACs"), Column("Why", numeric=False)]
    times = plan.latency.layer_ms if plan.latency else {}
    if times:
        columns.insert(3, Column("In float, ms more", hint="the layer's own time in float minus that in INT8"))
    rows = []
    for layer in plan.float_layers:
        number, share = numbers[layer]
        cells = [Cell(str(number), number), Cell(layer), Cell(percent(share), share), Cell(plan.reasons.get(layer, ""))]
        if times:
            cells.insert(3, Cell(significant(times.get(layer)), times.get(layer)))
        rows.append(cells)
    return Table(f"Layers in float ({len(rows)})", columns, rows, collapsed=len(rows) > 24)


def _correlation_table(measured: Sensitivity) -> Table:
    names = list(measured.correlations)
    columns = [Column("Spearman", numeric=False), *(Column(name) for name in names)]
    rows = []
    for one in names:
        values = [measured.correlations[one].get(other) for other in names]
        rows.append([Cell(one), *(Cell(ABSENT if value is None else f"{value:.2f}", value) for value in values)])
    return Table("Rank correlation of the measures", columns, rows, collapsed=True)


def _cost_table(measured: Sensitivity) -> Table:
    what = {
        "local": "MSE, SNR and cosine at every layer's own output, one pass for all",
        "end_to_end": "the same at the neck and the head, a pass from each layer on",
        "ap.only_int8": "AP with only this layer in INT8",
        "ap.only_float": "AP with only this layer in float",
    }
    columns = [Column("Measure", numeric=False), Column("Seconds"), Column("What it is", numeric=False)]
    rows = [
        [Cell(name), Cell(significant(value), value), Cell(what.get(name, ""))]
        for name, value in measured.seconds.items()
    ]
    return Table("Seconds by measure", columns, rows, "Summed over processes.")


def _layer_table(measured: Sensitivity, plan: PlanReport | None) -> Table:
    kept = set(plan.float_layers) if plan else set()
    total = sum(row.macs for row in measured.layers) or 1
    columns = [Column("#"), Column("Layer", numeric=False, code=True)]
    columns += [Column("Plan", numeric=False)] if plan else []
    columns.append(Column("MACs"))
    places = [place for place in ("local", "neck", "head") if any(getattr(row, place) for row in measured.layers)]
    for title in ("SNR, dB", "MSE", "1 − cosine"):
        columns += [Column(f"{title}: {place}") for place in places]
    sweeps = [
        (title, name)
        for title, name in (("AP, only it INT8", "ap_only_int8"), ("AP, only it float", "ap_only_float"))
        if any(getattr(row, name) is not None for row in measured.layers)
    ]
    columns += [Column(title) for title, _ in sweeps]
    rows = []
    for number, row in enumerate(measured.layers, start=1):
        cells = [Cell(str(number), number), Cell(row.layer)]
        if plan:
            cells.append(Cell("float", level="warn") if row.layer in kept else Cell("INT8"))
        cells.append(Cell(percent(row.macs / total), row.macs))
        cells += _similarity_cells(row, places)
        cells += [Cell(fraction(value), value) for value in (getattr(row, name) for _, name in sweeps)]
        rows.append(cells)
    return Table(f"All {len(rows)} layers, all measures", columns, rows, collapsed=len(rows) > 12)


def _similarity_cells(row: LayerSensitivity, places: list[str]) -> list[Cell]:
    found: list[Similarity | None] = [getattr(row, place) for place in places]
    distances = [None if value is None else 1 - value.cosine for value in found]
    return [
        *(Cell(ABSENT) if value is None else Cell(decibels(value.snr_db), value.snr_db) for value in found),
        *(Cell(ABSENT) if value is None else Cell(compact(value.mse), value.mse) for value in found),
        *(Cell(compact(value), value) for value in distances),
    ]
