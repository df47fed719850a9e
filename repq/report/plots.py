"""Drawings of a run: accuracy, latency, ranges, training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from repq.report.comparison import engine_title, row_title
from repq.report.drawing import (
    BAD,
    FLOAT,
    INK,
    INT8,
    SERIES_A,
    SERIES_B,
    drawing,
    layer_axis,
    layer_curve,
    legend,
    literal,
    name_bars,
    panels,
    shade,
    svg_text,
)
from repq.report.numbers import change, largest, significant
from repq.results import BenchRow, Curves, EpochRow, LayerQuantization, ServiceRow, Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_SAMPLES = 120


def paired_bars(name: str, pairs: Mapping[str, tuple[float, float]], write: Callable[[float], str]) -> str:
    """Horizontal FP32 and INT8 bars, one pair a label; ``write`` puts a value at the end of its bar."""
    places = list(range(len(pairs)))[::-1]
    with drawing(4.1, 0.7 + 0.62 * len(pairs)) as (figure, axes):
        for side, offset, colour, variant in ((0, 0.2, FLOAT, "FP32"), (1, -0.2, INT8, "INT8")):
            values = [pair[side] for pair in pairs.values()]
            bars = axes.barh([place + offset for place in places], values, height=0.36, color=colour, label=variant)
            axes.bar_label(bars, list(map(write, values)), padding=3, fontsize=8.5)
        name_bars(axes, places, list(pairs))
        axes.set_xlim(0, 1.22 * max((value for pair in pairs.values() for value in pair), default=1) or 1)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        legend(axes, columns=2)
        return svg_text(figure, name)


def variant_dots(spreads: Mapping[str, Mapping[str, Spread]]) -> str:
    """A dot per variant and figure, with a line from the lowest to the highest seed."""
    colours = (FLOAT, INK, INT8, SERIES_A, SERIES_B, BAD)
    names = list(dict.fromkeys(name for row in spreads.values() for name in row if not name.startswith("AP50")))
    with drawing(9.6, 0.9 + 0.36 * len(spreads)) as (figure, axes):
        places = {variant: len(spreads) - number for number, variant in enumerate(spreads)}
        for number, name in enumerate(names):
            rows = [(places[variant] + 0.3 - 0.6 * number / max(len(names) - 1, 1), row[name])
                    for variant, row in spreads.items() if name in row]  # fmt: skip
            colour = colours[number % len(colours)]
            for place, spread in rows:
                axes.plot([spread.low, spread.high], [place, place], color=colour, linewidth=1.5)
            axes.plot([row.mean for _, row in rows], [place for place, _ in rows], "o", color=colour, label=name)
        name_bars(axes, list(places.values()), list(places))
        axes.set_xlabel("AP: dot = mean, line = lowest to highest seed")
        axes.grid(axis="x")
        legend(axes, columns=4)
        return svg_text(figure, "variants")


def latency_bars(rows: Sequence[BenchRow]) -> str:
    """Median latency per model, a whisker to the 95th percentile, a tick per run; one panel per setting."""
    settings = dict.fromkeys((row.scope, row.batch, row.threads) for row in rows)
    groups = {setting: [row for row in rows if (row.scope, row.batch, row.threads) == setting] for setting in settings}
    with panels(9.6, [0.75 + 0.32 * len(group) for group in groups.values()]) as (figure, all_axes):
        for axes, ((scope, batch, threads), group) in zip(all_axes, groups.items(), strict=True):
            _latency_panel(axes, group)
            what = "inference" if scope == "infer" else "end to end (with pre- and post-processing)"
            axes.set_title(f"{what}, batch {batch}, threads {threads}", loc="left")
        all_axes[-1].set_xlabel("latency, ms per batch: bar = median, whisker = 95th percentile, ticks = single runs")
        return svg_text(figure, "latency")


def accuracy_over_latency(points: Sequence[tuple[str, float, float, str]]) -> str:
    """AP over latency in ms: label, latency, AP and variant of each point."""
    colours = {"int8": INT8, "float16": SERIES_B}
    with drawing(9.6, 4.2) as (figure, axes):
        for place, (label, latency, ap, variant) in enumerate(sorted(points, key=lambda point: point[1])):
            axes.plot([latency], [ap], "o", color=colours.get(variant, FLOAT), markersize=6)
            beside = 5, (4, -12, 16, -24)[place % 4]  # neighbours would lie on each other
            axes.annotate(literal(label), (latency, ap), beside, textcoords="offset points", fontsize=8)
        axes.margins(0.12, 0.18)
        axes.set_xlabel("median latency, ms (left is faster)")
        axes.set_ylabel("AP")
        axes.grid()
        return svg_text(figure, "contest")


def shares(rows: Sequence[tuple[str, float, str]]) -> str:
    """Milliseconds of layers, the slowest first: name, time and precision of each."""
    places = list(range(len(rows)))[::-1]
    with drawing(9.6, 0.8 + 0.24 * len(rows)) as (figure, axes):
        colours = [INT8 if precision == "int8" else FLOAT for _, _, precision in rows]
        axes.barh(places, [ms for _, ms, _ in rows], height=0.7, color=colours)
        for place, (_, ms, _) in zip(places, rows, strict=True):
            _at_the_end(axes, ms, place, significant(ms))
        name_bars(axes, places, [name for name, _, _ in rows])
        axes.set_xlim(0, 1.12 * max((ms for _, ms, _ in rows), default=1) or 1)
        axes.set_xlabel("ms per run; coloured: INT8")
        axes.grid(axis="x")
        return svg_text(figure, "profile")


def _latency_panel(axes: Axes, rows: Sequence[BenchRow]) -> None:
    places = list(range(len(rows)))[::-1]
    colours = [INT8 if row.variant == "int8" else FLOAT for row in rows]
    axes.barh(places, [row.latency_ms_median for row in rows], height=0.62, color=colours)
    for place, row in zip(places, rows, strict=True):
        end = _end_of(row)
        axes.plot([row.latency_ms_median, end], [place, place], color=INK, linewidth=1.2)
        stride = max(1, math.ceil(len(row.samples_ms) / _MAX_SAMPLES))
        samples = [value for value in row.samples_ms[::stride] if value <= 2 * end]
        axes.plot(samples, [place - 0.4] * len(samples), "|", color=INK, markersize=3, alpha=0.5)
        _at_the_end(axes, end, place, f"{significant(row.latency_ms_median)} ms")
    names = list(map(row_title, rows))
    if len(set(names)) < len(names):  # more than one model
        names = [f"{row.model} · {name}" for row, name in zip(rows, names, strict=True)]
    name_bars(axes, places, names)
    axes.set_xlim(0, 1.15 * max(map(_end_of, rows)) or 1)
    axes.grid(axis="x")


def _end_of(row: BenchRow) -> float:
    """Where its bar and the line on it end: at the 95th percentile, or of few runs at the median."""
    return max(row.latency_ms_median, row.latency_ms_p95 or 0.0)


def _at_the_end(axes: Axes, x: float, y: float, text: str) -> None:
    axes.annotate(text, (x, y), (6, 0), textcoords="offset points", va="center")


def step_bars(rows: Sequence[ServiceRow]) -> str:
    """Milliseconds per image of each step from JPEG to boxes, one bar per arrangement."""
    steps = {"decode": SERIES_A, "preprocess": SERIES_B, "infer": INT8, "postprocess": FLOAT}
    places = list(range(len(rows)))[::-1]
    with drawing(9.6, 1.0 + 0.36 * len(rows)) as (figure, axes):
        left = [0.0] * len(rows)
        for name, colour in steps.items():
            values: list[float] = [getattr(row, f"{name}_ms") for row in rows]
            axes.barh(places, values, left=left, height=0.62, color=colour, label=name)
            left = [start + value for start, value in zip(left, values, strict=True)]
        for place, total, row in zip(places, left, rows, strict=True):
            _at_the_end(axes, total, place, f"{significant(row.images_per_s)} images/s")
        name_bars(
            axes,
            places,
            [f"{row.model} · {engine_title(row.engine)} · {row.loader}, batch {row.batch}" for row in rows],
        )
        axes.set_xlim(0, 1.2 * max(left) or 1)
        axes.set_xlabel("ms per image")
        axes.grid(axis="x")
        legend(axes, columns=4)
        return svg_text(figure, "steps")


def class_changes(changes: Sequence[tuple[str, float]], usual: float, shown: int = 24) -> str:
    """INT8 AP minus FP32 AP of the classes that change most, from the largest loss to the largest gain.

    Args:
        usual: changes up to this are shaded: one class varies so much.
    """
    chosen = sorted(sorted(changes, key=lambda item: -abs(item[1]))[:shown], key=lambda item: -item[1])
    values = [value for _, value in chosen]
    with drawing(9.6, 0.7 + 0.26 * len(chosen)) as (figure, axes):
        axes.axvspan(-usual, usual, color=FLOAT, alpha=0.15, linewidth=0)
        colours = [BAD if value < -usual else INT8 if value > usual else FLOAT for value in values]
        bars = axes.barh(range(len(chosen)), values, height=0.66, color=colours)
        axes.bar_label(bars, list(map(change, values)), padding=4, fontsize=8.5)
        axes.axvline(0, color=INK, linewidth=0.8)
        name_bars(axes, range(len(chosen)), [_shortened(name) for name, _ in chosen])
        widest = 1.25 * max(usual, *map(abs, values))
        axes.set_xlim(-widest, widest)
        axes.set_xlabel(f"AP change, INT8 − FP32; shaded: up to {usual:g}, as one class varies")
        axes.grid(axis="x")
        return svg_text(figure, "classes")


def layer_ranges(layers: Sequence[LayerQuantization]) -> str:
    """Largest absolute weight and activation of every layer, in model order, on a log scale."""
    with drawing(9.6, 3.3) as (figure, axes):
        activations = [largest(layer.activation_range) for layer in layers]
        layer_curve(axes, activations, SERIES_B, "input activation", logarithmic=True)
        layer_curve(axes, [largest(layer.weight_range) for layer in layers], SERIES_A, "weight", logarithmic=True)
        shade(axes, _in_float(layers), "kept float")
        axes.set_yscale("log")
        axes.set_ylabel("largest |value|")
        layer_axis(axes, [layer.layer for layer in layers])
        return svg_text(figure, "ranges")


def layer_noise(layers: Sequence[LayerQuantization]) -> str:
    """Signal-to-noise ratio of every layer's quantized weight and input."""
    with drawing(9.6, 3.0) as (figure, axes):
        layer_curve(axes, [layer.activation_snr_db for layer in layers], SERIES_B, "input activation")
        layer_curve(axes, [layer.weight_snr_db for layer in layers], SERIES_A, "weight")
        shade(axes, _in_float(layers), "kept float")
        axes.set_ylabel("SNR, dB (higher is better)")
        layer_axis(axes, [layer.layer for layer in layers])
        return svg_text(figure, "noise")


def weight_growth(blocks: Sequence[str], before: Sequence[float], after: Sequence[float]) -> str:
    """Largest absolute weight of every block before and after fusing, on a log scale."""
    with drawing(9.6, 2.8) as (figure, axes):
        layer_curve(axes, before, FLOAT, "branches, before", logarithmic=True)
        layer_curve(axes, after, SERIES_A, "fused, after", logarithmic=True)
        axes.set_yscale("log")
        axes.set_ylabel("largest |weight|")
        layer_axis(axes, blocks, "block, in model order")
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


def precision_recall(curves: Curves) -> str:
    """Precision over recall of the classes that the data holds, and their mean; names where there are few."""
    found = {name: values for name, values in zip(curves.names, curves.precision, strict=True) if values}
    with drawing(4.9, 3.4) as (figure, axes):
        recalls = [point / 100 for point in range(101)]
        for name, values in found.items():
            axes.plot(recalls, values, linewidth=0.9, alpha=0.7, label=_shortened(name) if len(found) <= 8 else None)
        mean = [sum(column) / len(found) for column in zip(*found.values(), strict=True)]
        axes.plot(recalls, mean, color=INK, linewidth=2, label="mean")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel(f"recall at IoU {curves.iou:g}")
        axes.set_ylabel("precision")
        axes.grid()
        legend(axes, columns=3)
        return svg_text(figure, "precision-recall")


def confusion_matrix(curves: Curves) -> str:
    """Shares of the objects of each class by what they were found as; the last row is what was found of nothing."""
    names = [*map(_shortened, curves.names), "nothing"]
    shares = [[value / max(sum(row), 1) for value in row] for row in curves.confusion]
    side = min(9.6, 2.2 + 0.38 * len(names))
    with drawing(side, side) as (figure, axes):
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        if len(names) <= 12:
            for line, row in enumerate(curves.confusion):
                for place, value in enumerate(row):
                    ink = "white" if shares[line][place] > 0.5 else INK
                    axes.text(place, line, str(value), ha="center", va="center", fontsize=7.5, color=ink)
        size = 8 if len(names) <= 24 else 4.5
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
        axes.set_yticks(range(len(names)), names, fontsize=size)
        axes.set_xlabel(f"found as (score {curves.confidence:g} and more)")
        axes.set_ylabel("object")
        return svg_text(figure, "confusion")


def _curves(curves: Mapping[str, Sequence[tuple[int, float]]], name: str, label: str) -> str:
    from matplotlib.ticker import MaxNLocator

    colours = (INT8, SERIES_B, SERIES_A, FLOAT, BAD, INK)
    with drawing(4.9, 3.0) as (figure, axes):
        for index, (title, points) in enumerate(curves.items()):
            epochs, values = [epoch for epoch, _ in points], [value for _, value in points]
            axes.plot(epochs, values, color=colours[index % len(colours)], linewidth=1.5, label=title)
            if len(points) < 25:
                axes.plot(epochs, values, "o", color=colours[index % len(colours)], markersize=3)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.grid()
        legend(axes, columns=4)
        return svg_text(figure, name)


def _in_float(layers: Sequence[LayerQuantization]) -> list[int]:
    return [number for number, layer in enumerate(layers, start=1) if layer.precision == "float"]


def _shortened(name: str) -> str:
    return literal(name if len(name) <= 18 else name[:17] + "…")
