"""How a model came about: training, quantization-aware training, fusing."""

from __future__ import annotations

from typing import Literal

from repq.results.accuracy import Accuracy, Curves
from repq.results.base import Range, Result, measured_time


class EpochRow(Result):
    epoch: int
    learning_rate: float
    losses: dict[str, float]  # class, iou, dfl, total: means over the epoch
    ap: float | None = None
    ap50: float | None = None
    seconds: float = measured_time(0.0)
    teacher_seconds: float | None = measured_time(None)  # of them, of the teacher's pass; None: there is no teacher


class TrainReport(Result):
    model: str
    epochs: tuple[EpochRow, ...]
    images: int
    images_per_s: float = measured_time()
    best_epoch: int
    accuracy: Accuracy  # of the EMA weights that were kept
    parameters: int
    class_weights: tuple[float, ...] = ()  # factors of the loss of scores; none: 1 each
    precision: str | None = None  # of the forward pass; None: not noted
    curves: Curves | None = None  # of the same


class ScaleChange(Result):
    """What training made of a layer's scales; where there is one per channel, the geometric mean of them."""

    layer: str
    input_before: float
    input_after: float
    weight_ratio: float


class QatReport(Result):
    """Quantization-aware training: ``accuracy_calibrated`` is of the model that it started from. None: not measured.

    Where the trained weights have less AP than that, the calibrated ones are ``kept``, and no scale changes.
    """

    model: str
    scheme: str
    scales: Literal["learned", "frozen"]
    epochs: tuple[EpochRow, ...]
    images: int
    images_per_s: float = measured_time()
    int8_layers: tuple[str, ...]
    float_layers: tuple[str, ...]
    changes: tuple[ScaleChange, ...]
    accuracy_float: Accuracy | None
    accuracy_calibrated: Accuracy | None
    accuracy_trained: Accuracy | None
    kept: Literal["trained", "calibrated"] = "trained"

    @property
    def accuracy(self) -> Accuracy | None:
        """Of the weights that are kept."""
        return self.accuracy_trained if self.kept == "trained" else self.accuracy_calibrated


class BlockFusion(Result):
    """One block before and after fusing. Errors compare the block's output on the same real input."""

    block: str
    kind: str
    layer: str
    max_abs_error: float
    max_rel_error: float  # max_abs_error over the output's range (max - min)
    weight_range_before: Range  # over all branch kernels, before batch norm is folded in
    weight_range_after: Range


class SweptGroup(Result):
    """A group that alone has so many units ``left``: what the answers lose against the whole model's, 0 or more.

    ``macs_saved`` is the share of the whole model's multiply-adds that this saves.
    """

    left: int
    loss: float
    macs_saved: float


class PrunedGroup(Result):
    """Layers whose channels were removed together: how many units there were, and how many are left.

    ``sweep``: from most units left to fewest. Empty: there was none, or nothing of the group can go.
    """

    layers: tuple[str, ...]
    before: int
    after: int
    sweep: tuple[SweptGroup, ...] = ()


class PruneReport(Result):
    """What pruning took away. Multiply-adds and parameters are of the layers; AP is None where it was not measured.

    ``zeros`` is the share of the layers' weights that are zero in the end, where single weights were removed; None:
    channels were.
    """

    model: str
    importance: str
    scope: str = ""
    groups: tuple[PrunedGroup, ...]
    fixed: int
    macs_before: int
    macs_after: int
    parameters_before: int
    parameters_after: int
    zeros: float | None = None
    accuracy_before: Accuracy | None = None
    accuracy_pruned: Accuracy | None = None
    accuracy_recovered: Accuracy | None = None
    epochs: tuple[EpochRow, ...] = ()


class FusionReport(Result):
    """The proof of one fused model. ``max_*`` are of the whole model's detections."""

    model: str
    blocks: tuple[BlockFusion, ...]
    max_abs_error: float
    max_rel_error: float
    images: int
    tolerance: float
