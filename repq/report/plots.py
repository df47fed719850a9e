"""Drawings of a run: accuracy, latency, ranges, training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from repq.report.comparison import engine_title
from repq.report.drawing import (
    BAD,
    FLOAT,
    INK,
    INT8,
    SERIES_A,
    SERIES_B,
    drawing,
    figure_of,
    layer_axis,
    legend,
    svg_text,
)
from repq.report.numbers import significant
from repq.report.summary import VARIANT_TITLES
from repq.results import BenchRow, EpochRow, LayerQuantization, ServiceRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_SAMPLES = 120


def paired_bars(
    name: str, labels: Sequence[str], before: Sequence[float], after: Sequence[float], digits: int = 3
) -> str:
    """Horizontal FP32 and INT8 bars, one pair a label."""
    with drawing(4.6, 0.7 + 0.62 * len(labels)) as (figure, axes):
        for offset, values, colour, variant in ((0.2, before, FLOAT, "FP32"), (-0.2, after, INT8, "INT8")):
            places = [len(labels) - 1 - row + offset for row in range(len(labels))]
            bars = axes.barh(places, values, height=0.36, color=colour, label=variant)
            axes.bar_label(bars, [significant(value, digits) for value in values], padding=3, fontsize=8.5)
        axes.set_yticks(range(len(labels)), list(reversed(labels)))
        axes.set_xlim(0, 1.18 * max((*before, *after), default=1) or 1)
        axes.tick_params(axis="y", length=0)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        legend(axes, columns=2)
        return svg_text(figure, name)


def latency_bars(rows: Sequence[BenchRow]) -> str:
    """Median latency per model, a whisker to the 95th percentile, a tick per run; one panel per setting."""
    settings = list(dict.fromkeys((row.scope, row.batch, row.threads) for row in rows))
    panels = [[row for row in rows if (row.scope, row.batch, row.threads) == setting] for setting in settings]
    heights = [0.75 + 0.32 * len(panel) for panel in panels]
    with figure_of(9.6, sum(heights)) as figure:
        all_axes = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
        for axes, panel, (scope, batch, threads) in zip(all_axes, panels, settings, strict=True):
            _latency_panel(axes, panel)
            what = "inference" if scope == "infer" else "end to end (with pre- and post-processing)"
            axes.set_title(f"{what}, batch {batch}, threads {threads}", loc="left")
        all_axes[-1].set_xlabel("latency, ms per batch: bar = median, whisker = 95th percentile, ticks = single runs")
        return svg_text(figure, "latency")


def _latency_panel(axes: Axes, rows: Sequence[BenchRow]) -> None:
    places = list(range(len(rows)))[::-1]
    colours = [INT8 if row.variant == "int8" else FLOAT for row in rows]
    axes.barh(places, [row.latency_ms_median for row in rows], height=0.62, color=colours)
    for place, row in zip(places, rows, strict=True):
        axes.plot([row.latency_ms_median, row.latency_ms_p95], [place, place], color=INK, linewidth=1.2)
        stride = max(1, math.ceil(len(row.samples_ms) / _MAX_SAMPLES))
        samples = [value for value in row.samples_ms[::stride] if value <= 2 * row.latency_ms_p95]
        axes.plot(samples, [place - 0.4] * len(samples), "|", color=INK, markersize=3, alpha=0.5)
        text = f"{significant(row.latency_ms_median)} ms"
        axes.annotate(
            text, (max(row.latency_ms_p95, *samples, 0), place), (6, 0), textcoords="offset points", va="center"
        )
    names = [f"{engine_title(row.engine)} {VARIANT_TITLES[row.variant]}" for row in rows]
    if len(set(names)) < len(names):  # more than one model
        names = [f"{row.model} · {name}" for row, name in zip(rows, names, strict=True)]
    axes.set_yticks(places, [_literal(name) for name in names])
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, 1.15 * max(max((row.latency_ms_p95, *row.samples_ms[:1])) for row in rows))
    axes.grid(axis="x")


def step_bars(rows: Sequence[ServiceRow]) -> str:
    """Milliseconds per image of each step from JPEG to boxes, one bar per arrangement."""
    steps = {
        "decode": (SERIES_A, [row.decode_ms for row in rows]),
        "preprocess": (SERIES_B, [row.preprocess_ms for row in rows]),
        "infer": (INT8, [row.infer_ms for row in rows]),
        "postprocess": (FLOAT, [row.postprocess_ms for row in rows]),
    }
    places = list(range(len(rows)))[::-1]
    with drawing(9.6, 1.0 + 0.36 * len(rows)) as (figure, axes):
        left = [0.0] * len(rows)
        for name, (colour, values) in steps.items():
            axes.barh(places, values, left=left, height=0.62, color=colour, label=name)
            left = [start + value for start, value in zip(left, values, strict=True)]
        for place, total, row in zip(places, left, rows, strict=True):
            text = f"{significant(row.images_per_s)} images/s"
            axes.annotate(text, (total, place), (6, 0), textcoords="offset points", va="center")
        names = [f"{row.model} · {engine_title(row.engine)} · {row.loader}, batch {row.batch}" for row in rows]
        axes.set_yticks(places, [_literal(name) for name in names])
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(0, 1.2 * max(left) or 1)
        axes.set_xlabel("ms per image")
        axes.grid(axis="x")
        legend(axes, columns=4)
        return svg_text(figure, "steps")


def class_changes(changes: Sequence[tuple[str, float]], shown: int = 24) -> str:
    """INT8 AP minus FP32 AP of the classes that change most, from the largest loss to the largest gain."""
    chosen = sorted(sorted(changes, key=lambda item: -abs(item[1]))[:shown], key=lambda item: item[1])
    with drawing(9.6, 2.9) as (figure, axes):
        values = [value for _, value in chosen]
        axes.bar(
            range(len(chosen)), values, width=0.7, color=[BAD if value < 0 else INT8 for value in values], alpha=0.8
        )
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.set_xticks(range(len(chosen)), [_shortened(name) for name, _ in chosen], rotation=45, ha="right")
        axes.tick_params(axis="x", length=0)
        axes.set_xlim(-0.7, max(len(chosen), 8) - 0.3)
        axes.set_ylabel("AP change, INT8 − FP32")
        axes.grid(axis="y")
        return svg_text(figure, "classes")


def layer_ranges(layers: Sequence[LayerQuantization]) -> str:
    """Largest absolute weight and activation of every layer, in model order, on a log scale."""
    with drawing(9.6, 3.3) as (figure, axes):
        for values, colour, name in (
            ([_magnitude(layer.activation_range) for layer in layers], SERIES_B, "input activation"),
            ([_magnitude(layer.weight_range) for layer in layers], SERIES_A, "weight"),
        ):
            axes.plot(
                range(1, len(values) + 1), values, color=colour, linewidth=1.4, marker="o", markersize=2.6, label=name
            )
        _mark_float(axes, layers)
        axes.set_yscale("log")
        axes.set_ylabel("largest |value|")
        layer_axis(axes, len(layers))
        return svg_text(figure, "ranges")


def layer_noise(layers: Sequence[LayerQuantization]) -> str:
    """Signal-to-noise ratio of every layer's quantized weight and input."""
    with drawing(9.6, 3.0) as (figure, axes):
        for values, colour, name in (
            ([_finite(layer.activation_snr_db) for layer in layers], SERIES_B, "input activation"),
            ([_finite(layer.weight_snr_db) for layer in layers], SERIES_A, "weight"),
        ):
            axes.plot(
                range(1, len(values) + 1), values, color=colour, linewidth=1.4, marker="o", markersize=2.6, label=name
            )
        _mark_float(axes, layers)
        axes.set_ylabel("SNR, dB (higher is better)")
        layer_axis(axes, len(layers))
        return svg_text(figure, "noise")


def weight_growth(before: Sequence[float], after: Sequence[float]) -> str:
    """Largest absolute weight of every block before and after fusing, on a log scale."""
    numbers = range(1, len(before) + 1)
    with drawing(9.6, 2.8) as (figure, axes):
        axes.plot(numbers, before, color=FLOAT, linewidth=1.4, marker="o", markersize=2.6, label="branches, before")
        axes.plot(numbers, after, color=SERIES_A, linewidth=1.4, marker="o", markersize=2.6, label="fused, after")
        axes.set_yscale("log")
        axes.set_ylabel("largest |weight|")
        layer_axis(axes, len(before), "block, in model order")
        return svg_text(figure, "fusion")


def training_losses(epochs: Sequence[EpochRow], name: str = "losses") -> str:
    """Mean losses per epoch."""
    parts = list(dict.fromkeys(part for epoch in epochs for part in epoch.losses))
    curves = {part: [(epoch.epoch, epoch.losses[part]) for epoch in epochs if part in epoch.losses] for part in parts}
    return _curves(curves, name, "mean loss")


def training_accuracy(epochs: Sequence[EpochRow], name: str = "accuracy") -> str:
    """AP and AP50 at the epochs that were evaluated."""
    curves = {
        "AP": [(epoch.epoch, epoch.ap) for epoch in epochs if epoch.ap is not None],
        "AP50": [(epoch.epoch, epoch.ap50) for epoch in epochs if epoch.ap50 is not None],
    }
    return _curves(curves, name, "AP on the validation images")


def _curves(curves: Mapping[str, Sequence[tuple[int, float]]], name: str, label: str) -> str:
    colours = (INT8, SERIES_B, SERIES_A, FLOAT, BAD, INK)
    with drawing(4.9, 3.0) as (figure, axes):
        for index, (title, points) in enumerate(curves.items()):
            epochs, values = [epoch for epoch, _ in points], [value for _, value in points]
            axes.plot(epochs, values, color=colours[index % len(colours)], linewidth=1.5, label=title)
            if len(points) < 25:
                axes.plot(epochs, values, "o", color=colours[index % len(colours)], markersize=3)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.grid()
        legend(axes, columns=4)
        return svg_text(figure, name)


def _mark_float(axes: Axes, layers: Sequence[LayerQuantization]) -> None:
    kept = [index for index, layer in enumerate(layers, start=1) if layer.precision == "float"]
    for number, index in enumerate(kept):
        axes.axvspan(
            index - 0.5, index + 0.5, color=FLOAT, alpha=0.22, linewidth=0, label=None if number else "kept float"
        )


def _magnitude(limits: tuple[float, float]) -> float:
    """Largest |value| of a range; not a number (a gap) where a log scale cannot show it."""
    value = max(abs(limits[0]), abs(limits[1]))
    return value if value > 0 and math.isfinite(value) else math.nan


def _finite(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) else math.nan


def _shortened(name: str, length: int = 18) -> str:
    return _literal(name if len(name) <= length else name[: length - 1] + "…")


def _literal(text: str) -> str:
    """Keep matplotlib from reading formulas into a name."""
    return text.replace("$", r"\$")
