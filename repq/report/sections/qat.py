"""Quantization-aware training: what it won back, its curve, and where it took the scales."""

from __future__ import annotations

from repq.report.blocks import Block, Cell, Column, Facts, Section, Table
from repq.report.numbers import change, compact, count, fraction, significant
from repq.report.sections.training import epoch_blocks
from repq.report.summary import ReportSummary
from repq.results import QatReport


def qat_section(summary: ReportSummary) -> Section | None:
    """AP before and after, epoch by epoch, and the change of each layer's scales."""
    training = summary.qat
    if training is None:
        return None
    facts = [
        ("Layers INT8", f"{len(training.int8_layers)} of {len(training.int8_layers) + len(training.float_layers)}"),
        ("Scheme", training.scheme),
        ("Scales", training.scales),
        ("Training images", count(training.images)),
        ("Epochs", count(len(training.epochs))),
        ("Speed", f"{significant(training.images_per_s)} images/s"),
    ]
    blocks: list[Block] = [_accuracy_table(training), Facts(facts), *epoch_blocks(training.epochs, "qat")]
    if training.scales == "learned":
        blocks.append(_scale_table(training))
    lead = "AP in torch's simulation; the float model is the teacher."
    return Section("qat", "Quantization-aware training", blocks, lead)


def _accuracy_table(training: QatReport) -> Table:
    found = (
        ("Float", training.accuracy_float),
        ("INT8, calibrated", training.accuracy_calibrated),
        ("INT8, trained", training.accuracy_trained),
    )
    rows = [
        [
            Cell(title),
            Cell(fraction(accuracy.ap), accuracy.ap),
            Cell(fraction(accuracy.ap50), accuracy.ap50),
            Cell(change(accuracy.ap - training.accuracy_float.ap), accuracy.ap - training.accuracy_float.ap),
        ]
        for title, accuracy in found
    ]
    return Table("Before and after", [Column("Model", False), Column("AP"), Column("AP50"), Column("AP change")], rows)


def _scale_table(training: QatReport) -> Table:
    columns = [
        Column("Layer", False),
        Column("Input scale before"),
        Column("Input scale after"),
        Column("Ratio"),
        Column("Ratio of weight scales", hint="geometric mean over the channels"),
    ]
    rows = [
        [
            Cell(row.layer),
            Cell(compact(row.input_before), row.input_before),
            Cell(compact(row.input_after), row.input_after),
            Cell(significant(row.input_after / row.input_before), row.input_after / row.input_before),
            Cell(significant(row.weight_ratio), row.weight_ratio),
        ]
        for row in training.changes
    ]
    return Table(f"Scales of all {len(rows)} layers", columns, rows, collapsed=True)
