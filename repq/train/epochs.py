"""Epochs as lines for a log and as a table for other tools."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from repq.results import EpochRow


def epoch_line(row: EpochRow, epochs: int) -> str:
    """An epoch in one line."""
    losses = ", ".join(f"{name} {value:.4g}" for name, value in row.losses.items())
    accuracy = "" if row.ap is None else f", AP {row.ap:.4f}, AP50 {row.ap50:.4f}"
    taught = "" if row.teacher_seconds is None else f" ({row.teacher_seconds:.1f} s the teacher's)"
    return f"epoch {row.epoch}/{epochs}: {losses}{accuracy}, {row.seconds:.1f} s{taught}"


def epochs_csv(rows: Sequence[EpochRow]) -> str:
    """The epochs as a table of comma-separated values; what was not measured is empty."""
    names = ["epoch", "learning_rate", *dict.fromkeys(f"loss_{name}" for row in rows for name in row.losses)]
    names += ["ap", "ap50", "seconds", "teacher_seconds"]
    with io.StringIO(newline="") as text:
        table = csv.DictWriter(text, names, lineterminator="\n", extrasaction="ignore")
        table.writeheader()
        for row in rows:
            losses = {f"loss_{name}": value for name, value in row.losses.items()}
            table.writerow({**row.model_dump(), **losses})
        return text.getvalue()
