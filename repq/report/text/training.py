"""Fusing and training as text."""

from __future__ import annotations

from collections.abc import Sequence

from repq.report.text.tables import fraction, span, table_text
from repq.results import EpochRow, FusionReport, QatReport, TrainReport


def fusion_table(report: FusionReport) -> str:
    """The proof of fusing, a row per block."""
    rows = [
        (block.block, block.kind, f"{block.max_abs_error:.2e}", f"{block.max_rel_error:.2e}",
         span(block.weight_range_before), span(block.weight_range_after))
        for block in report.blocks
    ]  # fmt: skip
    columns = ("block", "kind", "max error", "of range", "weights before", "weights after")
    verdict = (
        f"whole model on {report.images} images: max error {report.max_abs_error:.2e}, "
        f"{report.max_rel_error:.2e} of the output's range (bound {report.tolerance:.0e})"
    )
    return f"{table_text(f'{report.model}: fused blocks', columns, rows, left=2)}\n{verdict}"


def train_table(report: TrainReport) -> str:
    """Losses and AP by epoch."""
    verdict = (
        f"best epoch {report.best_epoch}: AP {report.accuracy.ap:.4f}, AP50 {report.accuracy.ap50:.4f}; "
        f"{report.images} images, {report.images_per_s:.1f} images/s"
    )
    return f"{_epoch_table(report.model, report.epochs)}\n{verdict}"


def qat_table(report: QatReport) -> str:
    """Losses by epoch, and what training won back."""
    stages = (report.accuracy_float, report.accuracy_calibrated, report.accuracy_trained)
    verdict = (
        f"{len(report.int8_layers)} of {len(report.int8_layers) + len(report.float_layers)} layers INT8, "
        f"{report.scheme}, {report.scales} scales; {report.images} images, {report.images_per_s:.1f} images/s\n"
        f"float -> calibrated -> trained: AP {' -> '.join(fraction(accuracy.ap) for accuracy in stages)}, "
        f"AP50 {' -> '.join(fraction(accuracy.ap50) for accuracy in stages)}"
    )
    return f"{_epoch_table(report.model, report.epochs)}\n{verdict}"


def _epoch_table(title: str, epochs: Sequence[EpochRow]) -> str:
    names = list(dict.fromkeys(name for row in epochs for name in row.losses))
    rows = [
        (str(row.epoch), f"{row.learning_rate:.2e}", *(f"{row.losses.get(name, 0):.3f}" for name in names),
         fraction(row.ap), fraction(row.ap50), f"{row.seconds:.1f}")
        for row in epochs
    ]  # fmt: skip
    columns = ("epoch", "learning rate", *names, "AP", "AP50", "seconds")
    return table_text(title, columns, rows, left=0)
