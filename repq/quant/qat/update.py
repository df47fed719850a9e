"""One update of quantization-aware training: the loss against the teacher, and against labels if they count."""

from __future__ import annotations

from typing import Any

import torch

from repq.model import Detector, TrainOutput
from repq.quant.qat.learned import scale_parameters
from repq.recipe import QatConfig
from repq.train.distill import Teacher
from repq.train.loader import TrainBatch
from repq.train.losses import DetectionLoss
from repq.train.objective import objective_of
from repq.train.optimizer import hold_zeros, optimizer_of, parameter_groups
from repq.train.units import step_in_units
from repq.train.update import Stepper, projector_groups


class QatUpdater(Stepper):
    """Learns to answer as the teacher does, in float32: with fewer bits values would be rounded before quantizers do.

    Args:
        model: with quantizers, in place on its device, in training mode.
        teacher: of this model.
    """

    teacher: Teacher

    def __init__(self, model: Detector, teacher: Teacher, config: QatConfig, device: torch.device) -> None:
        groups = [*qat_groups(model, config), *projector_groups(teacher, config.weight_decay)]
        super().__init__(model, config, device, optimizer_of(groups, config), teacher=teacher)
        step_in_units(self.optimizer, model)
        if config.keep_zeros:
            hold_zeros(model)
        self.config = config
        self.objective = objective_of(model)

    def loss(self, batch: TrainBatch, *, warm_up: bool = False, progress: float = 0.0) -> DetectionLoss:
        pixels = self.pixels(batch)
        taught = self.taught(self.teacher, batch, pixels)
        own = self.answer(pixels)
        height, width = batch.images.shape[1:3]
        imitated = self.teacher.loss(own, taught, (height, width), progress)
        if not self.config.task_weight:
            return imitated
        return DetectionLoss({**imitated.sums, **self.task_loss(own, batch).sums}, imitated.target_score)

    def task_loss(self, own: TrainOutput, batch: TrainBatch) -> DetectionLoss:
        """The weighted detection loss of this process's images of one batch."""
        grid = self.grid(*batch.images.shape[1:3])
        found = self.objective.loss(own, self.objects(batch), grid)
        weighted = {name: value * self.config.task_weight for name, value in found.sums.items()}
        return DetectionLoss(weighted, found.target_score)


def qat_groups(model: Detector, config: QatConfig) -> list[dict[str, Any]]:
    """The groups of `parameter_groups`, and the scales in one of their own; they are many and small, so fused."""
    scales = scale_parameters(model)
    apart = {id(parameter) for parameter in scales}
    groups = parameter_groups(model, config.weight_decay)
    for group in groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in apart]
    return [
        *groups,
        {"name": "scales", "params": scales, "weight_decay": 0.0, "rate_factor": config.scale_rate, "fused": True},
    ]
