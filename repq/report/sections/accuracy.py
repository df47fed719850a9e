"""COCO metrics of every variant and engine, and where INT8 loses: by object size and by class."""

from __future__ import annotations

from repq.report.blocks import Block, Cell, Column, Figure, Level, Section, Table
from repq.report.comparison import AP_DROP_BAD, AP_DROP_WARN, TORCH, Comparison, accuracy_of, compare, engine_title
from repq.report.numbers import change, count, fraction
from repq.report.plots import class_changes
from repq.report.summary import VARIANT_TITLES, ReportSummary, Variant
from repq.results import Accuracy, ClassAccuracy

_METRICS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
_METRIC_COLUMNS = (
    Column("AP", hint="mean over IoU 0.50 to 0.95"),
    Column("AP50", hint="IoU 0.50"),
    Column("AP75", hint="IoU 0.75"),
    Column("AP small", hint="objects under 32² pixels"),
    Column("AP medium", hint="objects of 32² to 96² pixels"),
    Column("AP large", hint="objects over 96² pixels"),
)
_CLASS_DROPS = (0.05, 0.15)  # one class varies more than the mean over classes
_VARIANTS: tuple[Variant, ...] = ("fp32", "fp16", "int8")


def accuracy_section(summary: ReportSummary) -> Section | None:
    """COCO AP of every variant and engine, the changes by size and the changes by class."""
    measured = _measured(summary)
    if not measured:
        return None
    compared = [item for item in compare(summary) if item.float_accuracy and item.int8_accuracy]
    blocks: list[Block] = [_metrics_table(measured)]
    if compared:
        blocks.append(_changes_table(compared))
    blocks += _class_plot(compared)
    blocks += [_class_table(item) for item in compared]
    lead = "COCO AP, fractions of 1. Changes are INT8 minus FP32: a minus sign is a loss."
    return Section("accuracy", "Accuracy", blocks, lead)


def _change_cell(value: float | None, warn: float = AP_DROP_WARN, bad: float = AP_DROP_BAD) -> Cell:
    """A signed change, coloured by how large the loss is."""
    if value is None:
        return Cell(change(None))
    level: Level = "bad" if value < -bad else "warn" if value < -warn else ""
    return Cell(change(value), value, level)


def _measured(summary: ReportSummary) -> list[tuple[Variant, str, Accuracy]]:
    engines = list(dict.fromkeys([TORCH, *(item.engine for item in summary.accuracies)]))
    found = ((variant, engine, accuracy_of(summary, engine, variant)) for engine in engines for variant in _VARIANTS)
    return [(variant, engine, accuracy) for variant, engine, accuracy in found if accuracy]


def _metrics_table(measured: list[tuple[Variant, str, Accuracy]]) -> Table:
    columns = [
        Column("Model", numeric=False),
        Column("Engine", numeric=False),
        *_METRIC_COLUMNS,
        Column("Images"),
        Column("Objects"),
        Column("Detections"),
    ]
    rows = []
    for variant, engine, accuracy in measured:
        simulated = engine == TORCH and variant == "int8"
        metrics = [getattr(accuracy, name) for name in _METRICS]
        rows.append(
            [
                Cell(VARIANT_TITLES[variant]),
                Cell("torch (simulation)" if simulated else engine_title(engine)),
                *(Cell(fraction(value), value) for value in metrics),
                Cell(count(accuracy.images), accuracy.images),
                Cell(count(accuracy.objects), accuracy.objects),
                Cell(count(accuracy.detections), accuracy.detections),
            ]
        )
    return Table("All measurements", columns, rows)


def _changes_table(compared: list[Comparison]) -> Table:
    rows = []
    for item in compared:
        changes = [_difference(getattr(item.float_accuracy, m), getattr(item.int8_accuracy, m)) for m in _METRICS]
        rows.append([Cell(item.title), *map(_change_cell, changes)])
    return Table(
        "Change from FP32 to INT8, overall and by object size", [Column("Engine", False), *_METRIC_COLUMNS], rows
    )


def _class_plot(compared: list[Comparison]) -> list[Block]:
    if not compared:
        return []
    item = compared[-1]
    changes = [
        (quick.name, difference)
        for slow, quick in _classes(item)
        if (difference := _difference(slow.ap, quick.ap)) is not None
    ]
    if len(changes) < 2:
        return []
    title = f"AP change by class, {item.title}" + (": the 24 largest" if len(changes) > 24 else "")
    return [Figure(title, class_changes(changes), "bars of the AP change of each class", wide=True)]


def _class_table(item: Comparison) -> Table:
    columns = [
        Column("Class", numeric=False),
        Column("Objects"),
        *(Column(f"{variant} {metric}") for metric in ("AP", "AP50") for variant in ("FP32", "INT8", "Change of")),
    ]
    rows = [
        [
            Cell(quick.name),
            Cell(count(quick.objects), quick.objects),
            Cell(fraction(slow.ap), slow.ap),
            Cell(fraction(quick.ap), quick.ap),
            _change_cell(_difference(slow.ap, quick.ap), *_CLASS_DROPS),
            Cell(fraction(slow.ap50), slow.ap50),
            Cell(fraction(quick.ap50), quick.ap50),
            _change_cell(_difference(slow.ap50, quick.ap50), *_CLASS_DROPS),
        ]
        for slow, quick in _classes(item)
    ]
    return Table(f"By class: {item.title} ({len(rows)} classes)", columns, rows, collapsed=len(rows) > 6)


def _classes(item: Comparison) -> list[tuple[ClassAccuracy, ClassAccuracy]]:
    assert item.float_accuracy is not None
    assert item.int8_accuracy is not None
    before = {row.name: row for row in item.float_accuracy.per_class}
    return [(before[row.name], row) for row in item.int8_accuracy.per_class if row.name in before]


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before
