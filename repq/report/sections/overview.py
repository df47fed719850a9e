"""The headline, what gives cause for care, and what was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from repq.report.blocks import Block, Card, Cards, Facts, Figure, Findings, Metric, Section
from repq.report.comparison import TORCH, Comparison, compare, engine_title
from repq.report.findings import findings
from repq.report.numbers import change, count, fraction, mebibytes, milliseconds, percent, plural, times
from repq.report.plots import paired_bars
from repq.report.summary import ReportSummary

_CALIBRATIONS = {
    "max": "largest absolute value",
    "percentile": "percentile",
    "mse": "least squared error",
    "entropy": "least relative entropy",
}


def headline_section(summary: ReportSummary) -> Section | None:
    """FP32 → INT8 per engine, with findings and side-by-side bars."""
    comparisons = compare(summary)
    notes = findings(summary, comparisons)
    # Torch's simulation is the headline only where no engine was run.
    shown = [comparison for comparison in comparisons if comparison.engine != TORCH] or list(comparisons)
    blocks: list[Block] = [Cards([_card(comparison) for comparison in shown])] if shown else []
    if notes:
        blocks.append(Findings(notes))
    blocks += _bars(shown)
    return Section("headline", "FP32 → INT8", blocks, short="Summary") if blocks else None


def measured_section(summary: ReportSummary) -> Section:
    """The model, the data and the settings."""
    ptq, training = summary.ptq, summary.training
    items: list[tuple[str, str]] = []
    model = summary.model or (ptq.model if ptq else summary.fusion.model if summary.fusion else None)
    if model:
        items.append(("Model", model))
    if training:
        items.append(("Parameters", count(training.parameters)))
    if summary.recipe:
        items.append(("Recipe", summary.recipe))
    if summary.data:
        items.append(("Data", summary.data))
    if summary.imgsz:
        items.append(("Network input", f"{summary.imgsz[0]} × {summary.imgsz[1]} pixels (height × width)"))
    accuracy = ptq.accuracy_float if ptq else summary.accuracies[0].accuracy if summary.accuracies else None
    if accuracy:
        items.append(("Evaluated on", f"{plural(accuracy.images, 'image')} with {plural(accuracy.objects, 'object')}"))
    if ptq:
        int8 = sum(layer.precision == "int8" for layer in ptq.layers)
        items += [
            ("Quantization", f"{ptq.scheme} INT8, per-channel weights, per-tensor activations"),
            ("Calibration", f"{_CALIBRATIONS.get(ptq.method, ptq.method)} on {plural(ptq.images, 'image')}"),
            ("Layers in INT8", f"{int8} of {len(ptq.layers)}: {percent(ptq.int8_macs_share)} of the multiply-adds"),
        ]
    if summary.engines:
        versions = {built.description.engine: built.description.version for built in summary.engines}
        names = (f"{engine_title(engine)} {version}" for engine, version in versions.items())
        items.append(("Engines", ", ".join(names)))
    items += [("Machine", summary.environment.gpu or summary.environment.cpu), ("Date", summary.created)]
    return Section("measured", "What was measured", [Facts(items)], short="Setup")


def _card(comparison: Comparison) -> Card:
    return Card(
        title=comparison.title,
        level=comparison.level,
        verdict=_verdict(comparison),
        metrics=[metric for metric in (_ap(comparison), _latency(comparison), _size(comparison)) if metric],
        note=_note(comparison),
    )


def _verdict(comparison: Comparison) -> str:
    """The worst trouble in a few words."""
    if not comparison.level or comparison.level == "good":
        return "OK" if comparison.level else ""
    troubles = (
        (comparison.accuracy_level, "large accuracy loss" if comparison.accuracy_level == "bad" else "accuracy loss"),
        (comparison.precision_level, "not all in INT8"),
        (comparison.speed_level, "not faster"),
    )
    return ", ".join(words for level, words in troubles if level in ("warn", "bad"))


def _ap(comparison: Comparison) -> Metric | None:
    before, after = comparison.float_accuracy, comparison.int8_accuracy
    if after is None:
        return None
    return Metric(
        "AP",
        fraction(before.ap if before else None),
        fraction(after.ap),
        change(comparison.ap_change) if before else "",
        comparison.accuracy_level,
    )


def _latency(comparison: Comparison) -> Metric | None:
    before, after = comparison.float_latency, comparison.int8_latency
    if before is None or after is None:
        return None
    words = f"{times(comparison.speedup)} as fast"
    return Metric(
        "Latency",
        milliseconds(before.latency_ms_median),
        milliseconds(after.latency_ms_median),
        words,
        comparison.speed_level,
    )


def _size(comparison: Comparison) -> Metric | None:
    if comparison.int8_size_bytes is None:
        return None
    words = f"{percent(comparison.size_ratio)} of FP32" if comparison.size_ratio is not None else ""
    return Metric("Size", mebibytes(comparison.float_size_bytes), mebibytes(comparison.int8_size_bytes), words)


def _note(comparison: Comparison) -> str:
    parts = []
    if comparison.int8_latency:
        row = comparison.int8_latency
        scope = "inference" if row.scope == "infer" else "end to end"
        parts.append(f"median {scope} latency, batch {row.batch}, {plural(row.threads, 'thread')}")
    if comparison.layers is not None:
        parts.append(f"{comparison.int8_layers} of {plural(comparison.layers, 'layer')} executed in INT8")
    if comparison.float_accuracy and comparison.float_engine != comparison.engine:
        parts.append(f"FP32 AP measured in {engine_title(comparison.float_engine)}")
    return "; ".join(parts)


def _bars(comparisons: Sequence[Comparison]) -> list[Figure]:
    def bars(
        name: str, unit: str, digits: int, pick: Callable[[Comparison], tuple[float, float] | None]
    ) -> list[Figure]:
        pairs = [(comparison.title, pair) for comparison in comparisons if (pair := pick(comparison))]
        if not pairs:
            return []
        svg = paired_bars(
            f"bars-{name.lower()}",
            [title for title, _ in pairs],
            [a for _, (a, _) in pairs],
            [b for _, (_, b) in pairs],
            digits,
        )
        return [Figure(f"{name} ({unit})", svg, f"{name} of FP32 and INT8 in each engine")]

    return [
        *bars("Accuracy", "AP, higher is better", 4, _ap_pair),
        *bars("Latency", "ms, lower is better", 3, _latency_pair),
        *bars("Size", "MiB on disk", 3, _size_pair),
    ]


def _ap_pair(comparison: Comparison) -> tuple[float, float] | None:
    before, after = comparison.float_accuracy, comparison.int8_accuracy
    return (before.ap, after.ap) if before and after else None


def _latency_pair(comparison: Comparison) -> tuple[float, float] | None:
    before, after = comparison.float_latency, comparison.int8_latency
    return (before.latency_ms_median, after.latency_ms_median) if before and after else None


def _size_pair(comparison: Comparison) -> tuple[float, float] | None:
    before, after = comparison.float_size_bytes, comparison.int8_size_bytes
    return (before / 2**20, after / 2**20) if before and after is not None else None
