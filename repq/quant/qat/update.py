"""One update of quantization-aware training: the loss against the teacher, and against labels if they count."""

from __future__ import annotations

from typing import Any

import torch

from repq.model import Detector, TrainOutput
from repq.quant.qat.imitation import ImitationWeights, imitation_loss
from repq.quant.qat.learned import scale_parameters
from repq.recipe import QatConfig
from repq.train.distill import as_teacher, decayed
from repq.train.loader import TrainBatch
from repq.train.losses import DetectionLoss
from repq.train.objective import objective_of
from repq.train.optimizer import optimizer_of, parameter_groups
from repq.train.units import step_in_units
from repq.train.update import Stepper


class QatUpdater(Stepper):
    """Learns to answer as the teacher does, without autocast: in half precision values would be rounded otherwise.

    Args:
        model: with quantizers, in place on its device, in training mode.
        teacher: on the same device; it is frozen.

    Raises:
        TrainingError: student and teacher do not compare.
    """

    def __init__(self, model: Detector, teacher: Detector, config: QatConfig, device: torch.device) -> None:
        super().__init__(model, config, device, optimizer_of(qat_groups(model, config), config), half=False)
        step_in_units(self.optimizer, model)
        self.teacher = as_teacher(teacher, model, maps=config.feature_weight > 0)
        self.config, self.weights = config, ImitationWeights.from_config(config)
        self.objective = objective_of(model)

    def loss(self, batch: TrainBatch, *, warm_up: bool = False, progress: float = 0.0) -> DetectionLoss:
        pixels, grid = self.pixels(batch), self.grid(*batch.images.shape[1:3])
        with torch.no_grad():
            taught = self.teacher.answer(self.teacher.features(pixels))
        own = self.model.answer(self.model.features(pixels))
        imitated = imitation_loss(own, taught, grid, objective=self.objective, weights=self.weights)
        decay = decayed(self.config.final_factor, progress)
        sums = {name: value * decay for name, value in imitated.sums.items()}
        if self.config.task_weight:
            sums |= self.task_loss(own, batch).sums
        return DetectionLoss(sums, imitated.target_score)

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
