"""How a training went."""

from __future__ import annotations

from repq.results.accuracy import Accuracy
from repq.results.base import Result, measured_time


class EpochRow(Result):
    epoch: int
    learning_rate: float
    losses: dict[str, float]  # class, iou, dfl, total: means over the epoch
    ap: float | None = None
    ap50: float | None = None
    seconds: float = measured_time(0.0)


class TrainReport(Result):
    model: str
    epochs: tuple[EpochRow, ...]
    images: int
    images_per_s: float = measured_time()
    best_epoch: int
    accuracy: Accuracy  # of the EMA weights that were kept
    parameters: int
