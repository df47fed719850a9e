"""COCO metrics of every variant and engine, and where INT8 loses: by object size and by class."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

from repq.report.blocks import Block, Column, Columns, Figure, Level, Row, Table, Text, number, table
from repq.report.comparison import (
    TORCH,
    Comparison,
    accuracy_of,
    comparisons,
    engine_title,
    names_of,
    variant_title,
)
from repq.report.numbers import change, count, difference, fraction, interval, plural
from repq.report.plots import class_changes
from repq.report.summary import EVAL, PTQ, QAT, ReportSummary, Section
from repq.results import Accuracy, ClassAccuracy

_METRICS = (
    ("AP", "ap", "mean over IoU 0.50 to 0.95"),
    ("AP50", "ap50", "IoU 0.50"),
    ("AP75", "ap75", "IoU 0.75"),
    ("AP small", "ap_small", "objects under 32² pixels"),
    ("AP medium", "ap_medium", "objects of 32² to 96² pixels"),
    ("AP large", "ap_large", "objects over 96² pixels"),
)
_PART_DROPS = (0.02, 0.05)  # objects of one size vary more than all
_CLASS_DROPS = (0.05, 0.15)  # and one class more still


class _Measured(NamedTuple):
    model: str
    engine: str
    accuracy: Accuracy


class _Class(NamedTuple):
    """One class in FP32 and in INT8."""

    before: ClassAccuracy
    after: ClassAccuracy

    def change(self, metric: str) -> float | None:
        return difference(getattr(self.before, metric), getattr(self.after, metric))


def _blocks(summary: ReportSummary) -> list[Block]:
    measured = _measured(summary)
    if not measured:
        return []
    compared = [item for item in comparisons(summary) if item.float_accuracy and item.int8_accuracy]
    blocks: list[Block] = [
        Text("COCO AP, fractions of 1. Changes are INT8 minus FP32: a minus sign is a loss."),
        metrics_table(f"All measurements, on {_amount(measured[0].accuracy)}", measured),
    ]
    if compared:
        blocks.append(_changes_table(compared))
        blocks += _class_plot(compared[-1])
    return [*blocks, *map(_class_table, compared)]


ACCURACY = Section("accuracy", "Accuracy", _blocks, uses=(EVAL, PTQ, QAT))


def accuracy_blocks(accuracy: Accuracy, title: str) -> list[Block]:
    """One measurement for the terminal: the classes that the data holds, and the metrics."""
    rows = [row for row in accuracy.per_class if row.objects]
    columns: Columns[ClassAccuracy] = (
        Column("Class", "name"),
        number("Objects", "objects", count),
        *(number(name, metric, fraction) for name, metric, _ in _METRICS[:2]),
    )
    counts = f"{_amount(accuracy)}, {accuracy.detections} detections"
    metrics = "  ".join(f"{name} {fraction(accuracy.defined(metric))}" for name, metric, _ in _METRICS)
    if (cost := accuracy.tta) is not None:
        metrics += f"\ntest-time augmentation: {cost.passes} passes, {cost.time_ratio:.2f} x the time"
    return [
        table("By class", columns, rows, badness=lambda row: -(row.ap or 0.0)),
        Text(f"{title}: {counts}\n{metrics}"),
    ]


def metrics_table(title: str, measured: Iterable[_Measured]) -> Table:
    """COCO metrics of several models."""

    def column(name: str, metric: str, hint: str) -> Column[_Measured]:
        def value(row: _Measured) -> float | None:
            return row.accuracy.defined(metric)

        def note(row: _Measured) -> str:
            return "the data has no such object" if value(row) is None else ""

        return number(name, value, fraction, hint=hint, note=note, optional=metric != "ap")

    columns: Columns[_Measured] = [
        Column("Model", "model"),
        Column("Engine", "engine"),
        *(column(*metric) for metric in _METRICS),
        number("Detections", "accuracy.detections", count),
    ]
    return table(title, columns, measured)


def _amount(accuracy: Accuracy) -> str:
    return f"{plural(accuracy.images, 'image')} with {plural(accuracy.objects, 'object')}"


def _measured(summary: ReportSummary) -> list[_Measured]:
    names = dict.fromkeys([(TORCH, "float32"), (TORCH, "int8"), *names_of(summary, EVAL)])
    engines = list(dict.fromkeys(engine for engine, _ in names))
    return [
        _Measured(
            variant_title(variant),
            "torch (simulation)" if (engine, variant) == (TORCH, "int8") else engine_title(engine),
            accuracy,
        )
        for engine, variant in sorted(names, key=lambda name: engines.index(name[0]))
        if (accuracy := accuracy_of(summary, engine, variant))
    ]


def _change_column(title: str, value: Callable[[Row], float | None], bounds: tuple[float, float]) -> Column[Row]:
    """Changes of AP, marked where the loss is above the first bound, or above the second."""

    def level(row: Row) -> Level:
        loss = -(value(row) or 0.0)
        return "bad" if loss > bounds[1] else "warn" if loss > bounds[0] else ""

    return number(title, value, change, level=level, optional=True)


def _changes_table(compared: Sequence[Comparison]) -> Table:
    columns: Columns[Comparison] = [
        Column("Engine", "title"),
        number(
            "AP", "ap_change", change, level=lambda item: "" if item.accuracy_level == "good" else item.accuracy_level
        ),
        number("AP, 95 %", "ap_interval", interval, optional=True, hint="of a paired bootstrap over the images"),
        *(
            _change_column(title, partial(Comparison.metric_change, metric=metric), _PART_DROPS)
            for title, metric, _ in _METRICS[1:]
        ),
    ]
    return table("Change from FP32 to INT8, overall and by object size", columns, compared)


def _class_plot(item: Comparison) -> list[Block]:
    changes = [(row.after.name, found) for row in _classes(item) if (found := row.change("ap")) is not None]
    if len(changes) < 2:
        return []
    title = f"AP change by class, {item.title}" + (": the 24 largest" if len(changes) > 24 else "")
    draw = partial(class_changes, changes, _CLASS_DROPS[0])
    return [Figure(title, draw, "bars of the AP change of each class", wide=True)]


def _class_table(item: Comparison) -> Table:
    columns: Columns[_Class] = [Column("Class", "after.name"), number("Objects", "after.objects", count)]
    for name, metric, _ in _METRICS[:2]:
        columns = [
            *columns,
            number(f"FP32 {name}", f"before.{metric}", fraction),
            number(f"INT8 {name}", f"after.{metric}", fraction),
            _change_column(f"Change of {name}", partial(_Class.change, metric=metric), _CLASS_DROPS),
        ]
    rows = _classes(item)
    return table(f"By class: {item.title} ({len(rows)} classes)", columns, rows, fold=7)


def _classes(item: Comparison) -> list[_Class]:
    assert item.float_accuracy is not None
    assert item.int8_accuracy is not None
    before = {row.name: row for row in item.float_accuracy.per_class}
    return [_Class(before[row.name], row) for row in item.int8_accuracy.per_class if row.name in before]
