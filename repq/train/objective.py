"""What a detector is trained for; every family says what its own is (`repq.model.Family.objective`)."""

from __future__ import annotations

from torch import Tensor

from repq.errors import TrainingError
from repq.model import Detector, Spec, TrainOutput, family_named
from repq.recipe import TrainConfig
from repq.train.assigner import Objects
from repq.train.boxes import AnchorGrid
from repq.train.losses import DetectionLoss


class Objective:
    """Assigns objects to predictions and compares them. This one knows no loss, but what raw boxes are.

    Attributes:
        bins: of the distribution that a raw side of a box is; 0: it is none.
        unused: names of settings of training that mean nothing to it.
    """

    bins = 0
    unused: tuple[str, ...] = ()

    def __init__(self, model: Detector, config: TrainConfig) -> None:
        self.spec = model.spec
        self._l1_from = 0.0 if config.l1_epochs is None else 1 - config.l1_epochs / config.epochs

    def loss(
        self,
        output: TrainOutput,
        objects: Objects,
        grid: AnchorGrid,
        *,
        warm_up: bool = False,
        progress: float = 0.0,
    ) -> DetectionLoss:
        """The loss of one batch.

        Args:
            output: what the detector gives in training mode.
            grid: the points of the spec's strides; a family may have no use for it.
            warm_up: the first epochs, in which a simpler assignment may do.
            progress: share of the training that is done, 0..1.

        Raises:
            TrainingError: models of this family cannot be trained on labels.
        """
        raise _without_loss(self.spec)

    def with_l1_at_the_end(self, sums: dict[str, Tensor], progress: float) -> dict[str, Tensor]:
        """The parts of a loss, of which ``l1`` is 0 before the last ``l1_epochs``."""
        if "l1" not in sums or progress >= self._l1_from - 1e-9:
            return sums
        return {**sums, "l1": sums["l1"].detach() * 0}

    def corners(self, distances: Tensor, seen: Tensor, grid: AnchorGrid) -> Tensor:
        """The boxes x1, y1, x2, y2 in pixels, (P, 4), of the raw ones (B, N, any) at P points; here they are raw.

        Args:
            seen: (B, N) bool, the points.
            grid: of the N points.
        """
        return distances[seen]


def _without_loss(spec: Spec) -> TrainingError:
    return TrainingError(f"{spec.name} cannot be trained on labels", found=f"{spec.family} has no loss")


def has_loss(model: Detector) -> bool:
    """Whether labels say how wrong a model is: its family has a loss."""
    return family_named(model.spec.family).objective(model, TrainConfig()) is not None


def demand_trainable(model: Detector) -> None:
    """Refuse a detector that labels cannot train.

    Raises:
        TrainingError: its family has no loss, or it is fused and not pruned.
    """
    if not has_loss(model):
        raise _without_loss(model.spec)
    if model.deploy and not model.spec.widths:
        raise TrainingError("cannot train a fused model", fix="give the checkpoint from before fusing")


def objective_of(model: Detector, config: TrainConfig = TrainConfig()) -> Objective:
    """The objective of a detector's family, or the one without a loss."""
    own: Objective | None = family_named(model.spec.family).objective(model, config)
    return Objective(model, config) if own is None else own
