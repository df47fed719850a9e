"""Self-distillation: a trained detector of the same kind teaches its scores and its distributions of box sides.

Source: YOLOv6 report (2209.02976), section 2.4.2: the divergences of the class scores and of the DFL boxes are added
to the detection loss, with a weight that decays with a cosine, since the teacher helps most at the start.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from repq.errors import TrainingError
from repq.model import Detector
from repq.recipe import DistillConfig

EPS = 1e-6  # keeps logarithms of saturated float32 scores finite


@dataclass(frozen=True)
class Imitation:
    """What the teacher says to a batch: outputs as in ``TrainOutput``, and the weights of the two divergences."""

    scores: Tensor
    distances: Tensor
    class_weight: float
    dfl_weight: float


def as_teacher(model: Detector, student: Detector, *, maps: bool = False) -> Detector:
    """Freeze a detector, in place; its ``answer`` compares with the student's training outputs.

    Args:
        maps: whether the neck's maps are compared too.

    Raises:
        TrainingError: student and teacher differ in what the family compares.
    """
    own, other = (detector.spec.answers(maps=maps) for detector in (student, model))
    if own != other:
        raise TrainingError(
            "the teacher's outputs do not compare with the student's",
            found=f"teacher {other}, student {own}",
            fix="take as teacher a training of the same model on the same classes",
        )
    return model.eval().requires_grad_(False)


class Teacher:
    """A frozen detector and how much its answers count.

    Raises:
        TrainingError: student and teacher differ in classes, strides or bins.
    """

    def __init__(self, model: Detector, student: Detector, config: DistillConfig) -> None:
        self.model, self.config = as_teacher(model, student), config

    @torch.no_grad()
    def answer(self, pixels: Tensor, progress: float) -> Imitation:
        """Look at images (B, 3, H, W); ``progress`` is the share of the training that is done, 0..1."""
        output = self.model.answer(self.model.features(pixels))
        weight = decayed(self.config.final_factor, progress)
        return Imitation(
            scores=output.scores.float(),
            distances=output.distances.float(),
            class_weight=self.config.class_weight * weight,
            dfl_weight=self.config.dfl_weight * weight,
        )


def decayed(final: float, progress: float) -> float:
    """A cosine from 1 at ``progress`` 0 to ``final`` at 1."""
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2


def class_divergence(scores: Tensor, taught: Tensor) -> Tensor:
    """Sum of ``KL(taught || scores)`` over all points and classes, each score being a probability of its own.

    The scores come from sigmoids, not from one softmax, so every class is a yes-or-no distribution. (A softmax over
    them would have nothing to teach to a detector of one class.)
    """
    scores, taught = scores.clamp(EPS, 1 - EPS), taught.clamp(EPS, 1 - EPS)
    yes = taught * (taught.log() - scores.log())
    no = (1 - taught) * (torch.log1p(-taught) - torch.log1p(-scores))
    return (yes + no).sum()


def side_divergence(logits: Tensor, taught: Tensor) -> Tensor:
    """Mean over the four sides of ``KL(taught || own)`` between distributions of bins: (P, 4, bins) to (P,)."""
    own, other = logits.log_softmax(-1), taught.log_softmax(-1)
    return (other.exp() * (other - own)).sum(-1).mean(-1)
