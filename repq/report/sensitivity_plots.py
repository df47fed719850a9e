"""Drawings of layer-wise sensitivity: the measures side by side, how they agree, and what the search for a plan tried.

(YOLOv6 report, figure 7 shows the like for its own layers.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from repq.report.drawing import (
    BAD,
    FAINT,
    HALF,
    INK,
    INT8,
    LAYERS,
    SERIES_A,
    SERIES_B,
    drawing,
    layer_axis,
    layer_curve,
    legend,
    name_bars,
    panels,
    shade,
    svg_text,
)
from repq.report.numbers import significant
from repq.results import FrontPoint, PlanReport, PlanTrial, Sensitivity, Similarity

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PLACES = (("local", SERIES_A, "at its own output"), ("neck", SERIES_B, "at the neck"), ("head", INT8, "at the head"))
_PANELS: tuple[tuple[str, Callable[[Similarity], float], bool], ...] = (
    ("SNR, dB (low is bad)", lambda found: found.snr_db, False),
    ("MSE", lambda found: found.mse, True),
    ("1 − cosine similarity", lambda found: 1 - found.cosine, True),
)


def measures_by_layer(measured: Sensitivity, kept: Sequence[str]) -> str:
    """All measures of every layer, one panel a kind, in model order; ``kept`` layers are shaded."""
    rows, chosen = measured.layers, set(kept)
    places = [number for number, row in enumerate(rows, start=1) if row.layer in chosen]
    similarities = [panel for panel in _PANELS if any(getattr(row, place) for row in rows for place, _, _ in _PLACES)]
    sweeps = _ap_curves(measured)
    count = len(similarities) + bool(sweeps)
    with panels(9.6, [2.1] * max(count, 1)) as (figure, all_axes):
        for axes, (label, value, logarithmic) in zip(all_axes, similarities, strict=False):
            for place, colour, name in _PLACES:
                found: list[Similarity | None] = [getattr(row, place) for row in rows]
                if any(found):
                    values = [None if similarity is None else value(similarity) for similarity in found]
                    layer_curve(axes, values, colour, name, logarithmic=logarithmic)
            if logarithmic:
                axes.set_yscale("log")
            axes.set_ylabel(label)
        if sweeps:
            for name, colour, changes in sweeps:
                layer_curve(all_axes[-1], changes, colour, name)
            all_axes[-1].axhline(0, color=INK, linewidth=0.8)
            all_axes[-1].set_ylabel("AP (high is bad)")
        for number, axes in enumerate(all_axes):
            shade(axes, places, "kept float" if number == 0 else None)
            layer_axis(axes, [row.layer for row in rows], LAYERS if number == len(all_axes) - 1 else "", columns=4)
        return svg_text(figure, "measures")


def _ap_curves(measured: Sensitivity) -> list[tuple[str, str, list[float | None]]]:
    """AP that is lost with only a layer in INT8, and won with only it in float."""
    curves = []
    rows, base, whole = measured.layers, measured.ap_float, measured.ap_int8
    if base is not None:
        lost = [None if row.ap_only_int8 is None else base - row.ap_only_int8 for row in rows]
        curves.append(("AP lost with only this layer in INT8", BAD, lost))
    if whole is not None:
        won = [None if row.ap_only_float is None else row.ap_only_float - whole for row in rows]
        curves.append(("AP won with only this layer in float", HALF, won))
    return curves


def correlation_matrix(correlations: Mapping[str, Mapping[str, float | None]]) -> str:
    """Spearman's rank correlation of every two measures as a matrix of shaded cells."""
    names = list(correlations)
    size = 1.9 + 0.5 * len(names)
    with drawing(size + 1.0, size) as (figure, axes):
        from matplotlib.patches import Rectangle

        for row, one in enumerate(names):
            for column, other in enumerate(names):
                value = correlations[one].get(other)
                shade = 0.0 if value is None else 0.55 * abs(value) ** 1.5
                colour = INT8 if value is None or value >= 0 else BAD
                corner = (column - 0.48, row - 0.48)
                axes.add_patch(Rectangle(corner, 0.96, 0.96, color=colour, alpha=shade, linewidth=0))
                text = "–" if value is None else f"{value:.2f}".replace("-", "−")
                axes.text(column, row, text, ha="center", va="center", fontsize=10.5)
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xticks(range(len(names)), names, rotation=45, ha="left")
        axes.set_yticks(range(len(names)), names)
        axes.xaxis.tick_top()
        axes.tick_params(length=0, labelsize=10.5)
        for spine in axes.spines.values():
            spine.set_visible(False)
        return svg_text(figure, "correlation")


def measure_cost(seconds: Mapping[str, float]) -> str:
    """Seconds that each kind of measure took."""
    names = list(seconds)[::-1]
    with drawing(4.6, 0.8 + 0.34 * len(names)) as (figure, axes):
        bars = axes.barh(range(len(names)), [seconds[name] for name in names], height=0.6, color=SERIES_A)
        axes.bar_label(bars, [significant(seconds[name]) for name in names], padding=3, fontsize=8.5)
        name_bars(axes, range(len(names)), [name.replace("_", " ") for name in names])
        axes.set_xlim(0, 1.2 * (max(seconds.values(), default=1) or 1))
        axes.set_xlabel("seconds")
        axes.grid(axis="x")
        return svg_text(figure, "seconds")


def tried_plans(trials: Sequence[PlanTrial], plan: PlanReport) -> str:
    """AP drop of every plan that the search tried, against what of it is in INT8; the budget is a line."""
    with drawing(9.6, 3.3) as (figure, axes):
        for step, marker, name in (("all_int8", "D", "all in INT8"), ("comparison", "s", "comparing orders"),
                                   ("bisection", "o", "bisection"), ("greedy", "^", "giving back")):  # fmt: skip
            chosen = [trial for trial in trials if trial.step == step]
            if chosen:
                _with_intervals(axes, [t.int8_share for t in chosen], [t.drop for t in chosen],
                                [t.drop_interval for t in chosen], marker, name)  # fmt: skip
        same = [t for t in trials if t.drop == plan.drop and t.float_layers == len(plan.float_layers)]
        if same:
            _circle(axes, same[0].int8_share, same[0].drop)
        if plan.max_drop is not None:
            axes.axhline(plan.max_drop, color=BAD, linewidth=1.1, linestyle="--", label="budget")
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.set_xlabel("share in INT8")
        axes.set_ylabel("AP drop; bar = 95 %")
        axes.grid()
        legend(axes, columns=6)
        return svg_text(figure, "trials")


def latency_front(points: Sequence[FrontPoint], engine: str) -> str:
    """AP drop against latency; a line joins the plans that no other one beats in both."""
    with drawing(9.6, 3.4) as (figure, axes):
        efficient = [point for point in points if point.efficient]
        axes.plot([p.latency_ms for p in efficient], [p.drop for p in efficient], color=INT8, linewidth=1.6,
                  label="Pareto front")  # fmt: skip
        _with_intervals(axes, [p.latency_ms for p in points], [p.drop for p in points],
                        [p.drop_interval for p in points], "o", "plans")  # fmt: skip
        for point in points:
            axes.plot(point.latency_ms_range, [point.drop, point.drop], color=SERIES_A, linewidth=1)
            axes.annotate(f"{point.float_layers}", (point.latency_ms, point.drop), (5, 5), textcoords="offset points")
        for point in points:
            if point.chosen:
                _circle(axes, point.latency_ms, point.drop)
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.set_xlabel(f"{engine}: median latency, ms; bar = quartiles; the number counts float layers")
        axes.set_ylabel("AP drop; bar = 95 %")
        axes.grid()
        legend(axes, columns=4)
        return svg_text(figure, "front")


def _circle(axes: Axes, x: float, y: float) -> None:
    style = {"markersize": 11, "markerfacecolor": "none", "markeredgecolor": BAD, "markeredgewidth": 1.6}
    axes.plot([x], [y], "o", label="the plan", **style)  # type: ignore[arg-type]


def _with_intervals(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    intervals: Sequence[tuple[float, float]],
    marker: str,
    name: str,
) -> None:
    for place, (low, high) in zip(x, intervals, strict=True):
        axes.plot([place, place], [low, high], color=FAINT, linewidth=2.5, solid_capstyle="butt", zorder=1)
    axes.plot(x, y, marker, color=SERIES_A, markersize=5, label=name, linestyle="none")
