"""The training curve and the weights that were kept."""

from __future__ import annotations

from collections.abc import Sequence

from repq.report.blocks import Block, Cell, Column, Facts, Figure, Section, Table
from repq.report.numbers import compact, count, fraction, significant
from repq.report.plots import training_accuracy, training_losses
from repq.report.summary import ReportSummary
from repq.results import EpochRow


def training_section(summary: ReportSummary) -> Section | None:
    """What training reached, epoch by epoch."""
    training = summary.training
    if training is None:
        return None
    facts = [
        ("Model", training.model),
        ("Parameters", count(training.parameters)),
        ("Training images", count(training.images)),
        ("Epochs", count(len(training.epochs))),
        ("Weights kept", f"of epoch {training.best_epoch}"),
        ("AP", fraction(training.accuracy.ap)),
        ("AP50", fraction(training.accuracy.ap50)),
        ("Speed", f"{significant(training.images_per_s)} images/s"),
        ("Time", f"{significant(sum(epoch.seconds for epoch in training.epochs))} s"),
    ]
    return Section("training", "Training", [Facts(facts), *epoch_blocks(training.epochs, "training")])


def epoch_blocks(epochs: Sequence[EpochRow], section: str) -> list[Block]:
    """Curves and a table of the training that a section is about."""
    if not epochs:
        return []
    blocks: list[Block] = [Figure("Losses", training_losses(epochs, f"{section}-losses"), "mean losses per epoch")]
    if any(epoch.ap is not None for epoch in epochs):
        alt = "AP and AP50 at the evaluated epochs"
        blocks.append(Figure("Accuracy", training_accuracy(epochs, f"{section}-accuracy"), alt))
    return [*blocks, _epoch_table(epochs)]


def _epoch_table(epochs: Sequence[EpochRow]) -> Table:
    names = list(dict.fromkeys(name for epoch in epochs for name in epoch.losses))
    columns = [
        Column("Epoch"),
        Column("Learning rate"),
        *(Column(f"Loss: {name}") for name in names),
        Column("AP"),
        Column("AP50"),
        Column("Seconds"),
    ]
    rows = [
        [
            Cell(str(epoch.epoch), epoch.epoch),
            Cell(compact(epoch.learning_rate), epoch.learning_rate),
            *(Cell(compact(epoch.losses.get(name)), epoch.losses.get(name)) for name in names),
            Cell(fraction(epoch.ap), epoch.ap),
            Cell(fraction(epoch.ap50), epoch.ap50),
            Cell(significant(epoch.seconds), epoch.seconds),
        ]
        for epoch in epochs
    ]
    return Table(f"All {len(rows)} epochs", columns, rows, collapsed=len(rows) > 12)
