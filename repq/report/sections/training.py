"""How the model came about: training, quantization-aware training, and the proof of fusing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from repq.report.blocks import Block, Column, Columns, Facts, Figure, Table, Text, number, table
from repq.report.findings import unproven
from repq.report.numbers import (
    change,
    compact,
    count,
    difference,
    fraction,
    largest,
    percent,
    plural,
    significant,
    span,
)
from repq.report.plots import (
    confusion_matrix,
    precision_recall,
    training_accuracy,
    training_losses,
    weight_growth,
)
from repq.report.summary import FUSE, QAT, TRAIN, Section
from repq.results import (
    Accuracy,
    BlockFusion,
    Curves,
    EpochRow,
    FusionReport,
    QatReport,
    ScaleChange,
    TrainReport,
    metric_of,
)

TRAINING = Section("training", "Training", lambda summary: train_blocks(summary[TRAIN]), needs=(TRAIN,))
TRAINED_QUANTIZED = Section(
    "qat", "Quantization-aware training", lambda summary: qat_blocks(summary[QAT]), needs=(QAT,), short="QAT"
)
FUSION = Section("fusion", "Fusing", lambda summary: fusion_blocks(summary[FUSE]), needs=(FUSE,))


class _Stage(NamedTuple):
    """A model on its way through quantization-aware training."""

    title: str
    accuracy: Accuracy | None
    float_accuracy: Accuracy | None


def _change(stage: _Stage) -> float | None:
    before = metric_of(stage.float_accuracy)
    return difference(before, metric_of(stage.accuracy)) if before else None


def _why_no_change(stage: _Stage) -> str:
    return "the float model finds no object" if metric_of(stage.float_accuracy) == 0 else ""


def train_blocks(training: TrainReport) -> list[Block]:
    """What training reached, epoch by epoch."""
    facts = [
        ("Model", training.model),
        ("Parameters", count(training.parameters)),
        ("Training images", count(training.images)),
        ("Epochs", count(len(training.epochs))),
        *([("Precision", training.precision)] if training.precision else []),
        ("Weights kept", f"of epoch {training.best_epoch}"),
        ("AP", fraction(training.accuracy.defined())),
        ("AP50", fraction(training.accuracy.defined("ap50"))),
        ("Speed", f"{significant(training.images_per_s)} images/s"),
        ("Time", f"{significant(sum(epoch.seconds for epoch in training.epochs))} s"),
        *_teacher_facts(training.epochs),
        *([("Class weights", ", ".join(map(compact, training.class_weights)))] if training.class_weights else []),
    ]
    return [*epoch_blocks(training.epochs, "training", Facts(facts)), *curve_figures(training.curves)]


def curve_figures(curves: Curves | None) -> list[Figure]:
    """Precision over recall and the confusion of classes, which are files as well."""
    if curves is None or not any(curves.precision):
        return []
    return [
        Figure("Precision and recall", partial(precision_recall, curves), "precision over recall by class",
               file="pr_curve.svg"),
        Figure("Confusion of classes", partial(confusion_matrix, curves), "what objects were found as, by class",
               file="confusion.svg"),
    ]  # fmt: skip


def qat_blocks(training: QatReport) -> list[Block]:
    """AP before and after, epoch by epoch, and the change of each layer's scales."""
    accuracies = {
        "Float": training.accuracy_float,
        "INT8, calibrated": training.accuracy_calibrated,
        "INT8, trained": training.accuracy_trained,
    }
    stages = [_Stage(name, found, training.accuracy_float) for name, found in accuracies.items()]
    columns: Columns[_Stage] = (
        Column("Model", "title"),
        number("AP", lambda stage: metric_of(stage.accuracy), fraction),
        number("AP50", lambda stage: metric_of(stage.accuracy, "ap50"), fraction),
        number("AP change", _change, change, note=_why_no_change),
    )
    facts = [
        ("Layers INT8", f"{len(training.int8_layers)} of {len(training.int8_layers) + len(training.float_layers)}"),
        ("Scheme", training.scheme),
        ("Scales", training.scales),
        ("Training images", count(training.images)),
        ("Epochs", count(len(training.epochs))),
        ("Weights kept", "trained" if training.kept == "trained" else "calibrated, which have more AP"),
        ("Speed", f"{significant(training.images_per_s)} images/s"),
        *_teacher_facts(training.epochs),
    ]
    return [
        Text("AP in torch's simulation. Unless another one is given, the float model is the teacher."),
        *unproven(metric_of(training.accuracy_float)),
        table("Before and after", columns, stages),
        *epoch_blocks(training.epochs, "qat", Facts(facts)),
        *([_scale_table(training.changes)] if training.changes and training.scales == "learned" else []),
    ]


def _teacher_facts(epochs: Sequence[EpochRow]) -> list[tuple[str, str]]:
    """What asking a teacher cost, if there was one."""
    seconds, asked = sum(epoch.seconds for epoch in epochs), [epoch.teacher_seconds for epoch in epochs]
    known = [value for value in asked if value is not None]
    if len(known) < len(asked) or not seconds:
        return []
    return [("Teacher's pass", f"{percent(sum(known) / seconds)} of the time")]


def epoch_blocks(epochs: Sequence[EpochRow], section: str, facts: Facts) -> list[Block]:
    """Facts, curves and a table of a training; ``section`` keeps the ids of the drawings apart."""
    if not epochs:
        return [facts]
    draw = partial(training_losses, epochs, f"{section}-losses")
    blocks: list[Block] = [facts, Figure("Losses", draw, "mean losses per epoch")]
    if any(epoch.ap is not None for epoch in epochs):
        draw = partial(training_accuracy, epochs, f"{section}-accuracy")
        blocks.append(Figure("Accuracy", draw, "AP and AP50 at the evaluated epochs"))
    losses = dict.fromkeys(name for epoch in epochs for name in epoch.losses)
    columns: Columns[EpochRow] = (
        Column("Epoch", "epoch", numeric=True),
        number("Learning rate", "learning_rate", compact),
        *(number(f"Loss: {name}", partial(_loss, name), compact) for name in losses),
        number("AP", "ap", fraction, optional=True, note=_unevaluated),
        number("AP50", "ap50", fraction, optional=True, note=_unevaluated),
        number("Seconds", "seconds", significant),
    )
    return [*blocks, table(f"All {len(epochs)} epochs", columns, epochs, fold=13)]


def _loss(name: str, epoch: EpochRow) -> float | None:
    return epoch.losses.get(name)


def _unevaluated(epoch: EpochRow) -> str:
    return "not evaluated after this epoch" if epoch.ap is None else ""


def _scale_table(changes: Sequence[ScaleChange]) -> Table:
    columns: Columns[ScaleChange] = (
        Column("Layer", "layer", code=True),
        number("Input scale before", "input_before", compact),
        number("Input scale after", "input_after", compact),
        number("Ratio", lambda row: row.input_after / row.input_before if row.input_before else None, significant),
        number("Ratio of weight scales", "weight_ratio", significant, hint="geometric mean over the channels"),
    )
    return table(f"Scales of all {len(changes)} layers", columns, changes, fold=0, badness=_scale_change)


def _scale_change(row: ScaleChange) -> float:
    """By how many powers of e the scales of a layer moved."""
    ratios = (row.input_after / row.input_before if row.input_before else 1.0, row.weight_ratio)
    return sum(abs(math.log(ratio)) for ratio in ratios if ratio > 0)


def fusion_blocks(fusion: FusionReport) -> list[Block]:
    """The error of the whole model, and every block before and after."""
    lead = (
        f"Whole model on {plural(fusion.images, 'real image')}: largest error {compact(fusion.max_abs_error)}, "
        f"{compact(fusion.max_rel_error)} relative to the output's range; tolerance {compact(fusion.tolerance)}."
    )
    blocks: list[Block] = [Text(lead)]
    if len(fusion.blocks) > 1:
        before = [largest(block.weight_range_before) for block in fusion.blocks]
        after = [largest(block.weight_range_after) for block in fusion.blocks]
        alt = "largest weight of every block before and after fusing, log scale"
        draw = partial(weight_growth, [block.block for block in fusion.blocks], before, after)
        blocks.append(Figure("Weight range before and after", draw, alt, wide=True))
    columns: Columns[BlockFusion] = (
        Column("Block", "block", code=True),
        Column("Kind", "kind"),
        Column("Fused layer", "layer", code=True, detail=True),
        number("Largest error", "max_abs_error", compact),
        number("Relative", "max_rel_error", compact, hint="largest error over the range of the block's output",
               level=lambda row: "bad" if row.max_rel_error > fusion.tolerance else ""),
        number("Weights before", "weight_range_before", span),
        number("Weights after", "weight_range_after", span),
    )  # fmt: skip
    if fusion.blocks:
        blocks.append(
            table(
                f"All {len(fusion.blocks)} blocks",
                columns,
                fusion.blocks,
                fold=13,
                numbered=True,
                badness=lambda block: block.max_rel_error,
            )
        )
    return blocks
