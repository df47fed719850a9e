"""What quantizing each layer costs by every measure, and the plan that was made of it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any, NamedTuple

from repq.report.blocks import Block, Column, Columns, Figure, Finding, Findings, Table, Text, noted, number, table
from repq.report.comparison import engine_title
from repq.report.findings import disturbed
from repq.report.numbers import (
    change,
    compact,
    correlation,
    decibels,
    fraction,
    interval,
    percent,
    plural,
    significant,
    span,
)
from repq.report.sensitivity_plots import (
    correlation_matrix,
    latency_front,
    measure_cost,
    measures_by_layer,
    tried_plans,
)
from repq.report.summary import PLAN, SENSITIVITY, ReportSummary, Section
from repq.results import FrontPoint, LatencyFront, LayerSensitivity, PlanReport, PlanTrial, Sensitivity, Similarity

_STEPS = {
    "all_int8": "all in INT8",
    "comparison": "comparing orders",
    "bisection": "bisection",
    "greedy": "giving back",
}
_MEASURES = {
    "local": "MSE, SNR and cosine at every layer's own output, one pass for all",
    "end_to_end": "the same at the neck and the head, a pass from each layer on",
    "ap.only_int8": "AP with only this layer in INT8",
    "ap.only_float": "AP with only this layer in float",
}
_PLACES = ("local", "neck", "head")
_TIME_PLANS_AGAIN = "The plan weighs them: search again while nothing else computes."


def _plan_blocks(summary: ReportSummary) -> list[Block]:
    plan, measured = summary[PLAN], summary[SENSITIVITY]
    blocks: list[Block] = [Text(_plan_lead(plan, measured))]
    blocks += [Text(f"Quantize with it: `{summary.plan_command}`")] if summary.plan_command else []
    blocks += [Findings([finding])] if (finding := _verdict(plan)) else []
    if plan.latency is not None and plan.latency.points:
        title = f"AP against latency in {engine_title(plan.latency.engine)}, {plural(plan.latency.threads, 'thread')}"
        alt = "AP drop against latency of plans from all layers in INT8 to all in float"
        draw = partial(latency_front, plan.latency.points, engine_title(plan.latency.engine))
        blocks += noted(disturbed(plan.latency, _TIME_PLANS_AGAIN))
        blocks += [Figure(title, draw, alt, wide=True, file="front.svg"), _front_table(plan.latency)]
    if len(plan.trials) > 1:
        alt = "AP drop of every plan tried against its share in INT8"
        draw = partial(tried_plans, plan.trials, plan)
        blocks += [Figure("Plans tried", draw, alt, wide=True, file="plans-tried.svg"), _trial_table(plan)]
    return [*blocks, _float_table(measured, plan)] if plan.float_layers else blocks


def _sensitivity_blocks(summary: ReportSummary) -> list[Block]:
    measured, plan = summary[SENSITIVITY], summary.get(PLAN)
    lead = f"Every layer quantized alone ({measured.scheme}), on {plural(len(measured.images), 'image')}"
    if measured.ap_images:
        lead += f"; AP on {plural(len(measured.ap_images), 'image')}"
    if measured.ap_float is not None:
        lead += f", {fraction(measured.ap_float)} in float"
    if measured.ap_int8 is not None:
        lead += f", {fraction(measured.ap_int8)} with every layer in INT8"
    blocks: list[Block] = [Text(f"{lead}.{_smooth(measured)}")]
    blocks += noted([Finding("muted", note) for note in measured.notes])
    draw = partial(measures_by_layer, measured, plan.float_layers if plan else ())
    alt = "every measure of every layer in model order"
    blocks.append(Figure("By layer", draw, alt, wide=True, file="measures.svg"))
    tables = []
    if measured.correlations:
        draw = partial(correlation_matrix, measured.correlations)
        alt = "Spearman's rank correlation of every two measures"
        blocks.append(Figure("How the measures agree", draw, alt, file="correlation.svg"))
        tables.append(_correlation_table(measured))
    if measured.seconds:
        draw = partial(measure_cost, measured.seconds)
        alt = "seconds that each kind of measure took"
        blocks.append(Figure("What they cost", draw, alt, file="seconds.svg"))
        tables.append(_cost_table(measured))
    return [*blocks, *reversed(tables), _layer_table(measured, plan)]


PLAN_SECTION = Section("plan", "The plan", _plan_blocks, needs=(PLAN, SENSITIVITY), short="Plan")
SENSITIVITY_SECTION = Section(
    "sensitivity", "Sensitivity by layer", _sensitivity_blocks, (SENSITIVITY,), (PLAN,), short="Sensitivity"
)


def terminal_blocks(measured: Sensitivity, plan: PlanReport) -> list[Block]:
    """All measures side by side, and what the plan of them keeps in float."""
    lines = [f"{measured.model}, {measured.scheme}: {_plan_lead(plan, measured)}"]
    if verdict := _verdict(plan):
        lines.append(verdict.text)
    if plan.latency is not None:
        points = "  ".join(
            f"{'*' if point.chosen else ''}{point.latency_ms:.2f} ms {-point.drop:+.4f}"
            for point in plan.latency.points
            if point.efficient or point.chosen
        )
        lines.append(f"AP against latency in {engine_title(plan.latency.engine)}: {points}")
        lines += [f"! {note.text} {note.remedy}" for note in disturbed(plan.latency, _TIME_PLANS_AGAIN)]
    if smooth := _smooth(measured):
        lines.append(smooth.strip())
    lines.append(f"cost: {', '.join(f'{measure} {value:.1f} s' for measure, value in measured.seconds.items())}")
    return [_layer_table(measured, plan), Text("\n".join(lines))]


def _smooth(measured: Sensitivity) -> str:
    """How many layers have an activation that keeps a runtime from INT8."""
    names = [row.activation for row in measured.layers if row.activation]
    if not names:
        return ""
    kinds = ", ".join(dict.fromkeys(names))
    return (
        f" {len(names)} of {plural(len(measured.layers), 'layer')} have a smooth activation behind them ({kinds}): "
        "ONNX Runtime computes it in float, other runtimes take it into the kernel or convert for it. ReLU in its "
        "place costs neither (repq ablation activations)."
    )


def _plan_lead(plan: PlanReport, measured: Sensitivity) -> str:
    lead = (
        f"{len(plan.float_layers)} of {plural(len(measured.layers), 'layer')} stay in float, chosen by {plan.measure}; "
        f"{percent(plan.int8_macs_share)} of the multiply-adds are in INT8."
    )
    if plan.snr_db is None or plan.snr_db_int8 is None:
        return lead
    before, after = decibels(plan.snr_db_int8), decibels(plan.snr_db)
    return f"{lead} SNR of boxes and scores: {before} to {after} dB on {plural(plan.images, 'image')}."


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


def _front_table(front: LatencyFront) -> Table:
    columns: Columns[FrontPoint] = (
        number("Float layers", "float_layers", str),
        number("MACs in INT8", "int8_macs_share", percent),
        number("AP drop", "drop", change),
        number("95 %", "drop_interval", interval),
        number("Median, ms", "latency_ms", significant),
        number("Quartiles, ms", "latency_ms_range", span),
        Column(
            "",
            lambda point: ", ".join(["the plan"] * point.chosen + ["on the front"] * point.efficient),
            level=lambda point: "good" if point.efficient else "",
        ),
    )
    height, width = front.imgsz
    note = (
        f"{engine_title(front.engine)}, {height} × {width}, batch 1, {plural(front.threads, 'thread')}; all engines "
        "took turns in one run. AP is that of the simulation, on the images that the plan was chosen on."
    )
    return table("AP against latency, figures", columns, front.points, note)


def _trial_table(plan: PlanReport) -> Table:
    columns: Columns[PlanTrial] = (
        Column("Step", lambda trial: _STEPS[trial.step]),
        Column("Order", "order"),
        number("Float layers", "float_layers", str),
        number("Share in INT8", "int8_share", percent),
        number("AP drop", "drop", change),
        number("95 %", "drop_interval", interval),
        number("Compared", "bound", change, hint="the drop that the search compared with its budget"),
        Column("Fits", lambda t: "yes" if t.fits else "no", level=lambda trial: "good" if trial.fits else ""),
    )
    return table(f"All {len(plan.trials)} plans tried", columns, plan.trials, fold=13, numbered=True)


class _FloatLayer(NamedTuple):
    number: int
    layer: str
    share: float
    more_ms: float | None
    why: str


def _float_table(measured: Sensitivity, plan: PlanReport) -> Table:
    total = sum(row.macs for row in measured.layers) or 1
    times = plan.latency.layer_ms if plan.latency else {}
    places = {row.layer: (place, row) for place, row in enumerate(measured.layers, start=1)}
    rows = [
        _FloatLayer(place, layer, row.macs / total, times.get(layer), plan.reasons.get(layer, ""))
        for layer, (place, row) in ((layer, places[layer]) for layer in plan.float_layers)
    ]
    columns: Columns[_FloatLayer] = (
        number("#", "number", str),
        Column("Layer", "layer", code=True),
        number("MACs", "share", percent),
        number("In float, ms more", "more_ms", significant, hint="the layer's own time in float minus that in INT8",
               optional=True, note=lambda row: "the runtime gave no time" if row.more_ms is None else ""),
        Column("Why", "why", wrap=True),
    )  # fmt: skip
    return table(f"Layers in float ({len(rows)})", columns, rows, fold=25)


def _correlation_table(measured: Sensitivity) -> Table:
    found = measured.correlations

    def column(other: str) -> Column[str]:
        return number(
            other,
            lambda one: found[one].get(other),
            correlation,
            note=lambda one: "one of them does not vary" if found[one].get(other) is None else "",
        )

    return table("Rank correlation of the measures", [Column("Spearman", str), *map(column, found)], found, fold=0)


def _cost_table(measured: Sensitivity) -> Table:
    columns: Columns[tuple[str, float]] = (
        Column("Measure", lambda item: item[0]),
        number("Seconds", lambda item: item[1], significant),
        Column("What it is", lambda item: _MEASURES.get(item[0], ""), wrap=True),
    )
    return table("Seconds by measure", columns, measured.seconds.items(), "Summed over processes.")


def _layer_table(measured: Sensitivity, plan: PlanReport | None) -> Table:
    kept: Collection[str] = plan.float_layers if plan else ()
    total = sum(row.macs for row in measured.layers) or 1

    def similarity(title: str, place: str, write: Callable[[float], str], **more: Any) -> Column[LayerSensitivity]:
        return number(f"{title}: {place}", partial(_similarity, place, title), write, optional=True, **more)

    columns: Columns[LayerSensitivity] = [
        Column("Layer", "layer", code=True),
        Column(
            "Plan",
            lambda row: ("float" if row.layer in kept else "INT8") if plan else None,
            level=lambda row: "warn" if row.layer in kept else "",
            optional=True,
        ),
        number("MACs", lambda row: row.macs / total, percent),
        *(similarity("SNR, dB", place, decibels, note=partial(_equal, place)) for place in _PLACES),
        *(similarity("MSE", place, compact, detail=True) for place in _PLACES),
        *(similarity("1 − cosine", place, compact) for place in _PLACES),
        number("AP, only it INT8", "ap_only_int8", fraction, optional=True),
        number("AP, only it float", "ap_only_float", fraction, optional=True),
        Column("Activation", "activation", optional=True, wide=True,
               hint="a smooth one behind the layer: ONNX Runtime computes it, and the end of the layer, in float"),
    ]  # fmt: skip
    title = f"All {len(measured.layers)} layers, all measures"
    return table(title, columns, measured.layers, fold=13, numbered=True, badness=_damage)


def _damage(row: LayerSensitivity) -> float:
    """What quantizing the layer does to the model, or at least to its own output, as noise over signal."""
    found = row.head or row.local
    return 0.0 if found is None else -found.snr_db


def _similarity(place: str, title: str, row: LayerSensitivity) -> float | None:
    found: Similarity | None = getattr(row, place)
    if found is None:
        return None
    return {"SNR, dB": found.snr_db, "MSE": found.mse, "1 − cosine": 1 - found.cosine}[title]


def _equal(place: str, row: LayerSensitivity) -> str:
    return "equal to the float model" if _similarity(place, "MSE", row) == 0 else ""
