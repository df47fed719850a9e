"""One update of the weights: the gradients of some batches, added up over batches and processes, and a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from repq.machine.precision import settled_precision
from repq.machine.torch_device import on_device
from repq.model import Detector, TrainOutput
from repq.preprocessing import Preprocessing
from repq.recipe import LoopConfig, TrainConfig
from repq.reparam.repopt import RepScales
from repq.train.assigner import Objects, pad_objects
from repq.train.boxes import AnchorGrid, grid_of
from repq.train.compiled import told_of_compiler
from repq.train.cuda_graphs import Answers
from repq.train.distill import Teacher
from repq.train.gradients import GradientSum, overlaps
from repq.train.loader import TrainBatch
from repq.train.losses import DetectionLoss
from repq.train.objective import objective_of
from repq.train.optimizer import Rates, build_optimizer, parameter_groups, set_rates
from repq.train.precision import computing_in, gradient_scaler
from repq.train.units import step_in_units

LAYOUT = torch.channels_last
"""Of images and weights: convolutions gain from it on GPUs and on CPUs, above all backwards."""


class Stepper(ABC):
    """Owns the optimizer of a model that is in place on its device, in training mode; subclasses say what the loss is.

    The loss of an update is the sum over all its images, in all batches and on all processes, divided once by the sum
    of all target scores: gradients are those of one process with the joined batch (batch norm aside, which sees each
    batch of each process alone).

    Args:
        teacher: whom the model imitates; its projectors learn with the model, so ``optimizer`` holds their parameters.
        precision: of the forward pass, settled for the device; see `repq.train.precision`.
        compiled: let torch compile forward and backward pass; see `repq.train.compiled`.
    """

    def __init__(
        self,
        model: Detector,
        config: LoopConfig,
        device: torch.device,
        optimizer: torch.optim.Optimizer,
        *,
        teacher: Teacher | None = None,
        precision: str = "float32",
        compiled: bool = False,
    ) -> None:
        self.model, self.device, self.optimizer, self.teacher = model, device, optimizer, teacher
        self.images_per_batch, self.max_grad_norm = config.batch, config.max_grad_norm
        self.precision, self.scaler = precision, gradient_scaler(precision, device)
        self.answer = Answers(model, device, graphs=config.cuda_graphs, compiled=compiled)
        modules = (model, *([self.projectors] if self.projectors else []))
        self.parameters = [parameter for part in modules for parameter in part.parameters() if parameter.requires_grad]
        self.gradient_sum = GradientSum(self.parameters, overlap=overlaps(device))

    @property
    def projectors(self) -> nn.ModuleDict | None:
        """What learns with the model and is thrown away at the end; None: nothing."""
        return None if self.teacher is None else self.teacher.projectors

    @abstractmethod
    def loss(self, batch: TrainBatch, *, warm_up: bool = False, progress: float = 0.0) -> DetectionLoss:
        """The loss of this process's images of one batch."""

    def update(
        self, batches: Iterable[TrainBatch], rates: Rates, *, warm_up: bool = False, progress: float = 0.0
    ) -> dict[str, Tensor]:
        """Make one step; returns the parts of the loss by name, ``total`` last, without waiting for the device.

        Args:
            warm_up: assign with ATSS.
            progress: share of the training that is done, 0..1.
        """
        set_rates(self.optimizer, rates)
        sums = self.add_gradients(batches, warm_up=warm_up, progress=progress)
        if self.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.forget_gradients()
        return sums

    def forget_gradients(self) -> None:
        """Start the sum of the next update."""
        if not self.answer.graphs:
            self.optimizer.zero_grad(set_to_none=True)
        elif gradients := [parameter.grad for parameter in self.parameters if parameter.grad is not None]:
            torch._foreach_zero_(gradients)

    def add_gradients(
        self, batches: Iterable[TrainBatch], *, warm_up: bool = False, progress: float = 0.0
    ) -> dict[str, Tensor]:
        """Leave the gradients of an update in the parameters; returns the parts of its loss."""
        sums: dict[str, Tensor] = {}
        target_score = torch.zeros((), device=self.device)
        for batch, last in marking_last(batches):
            found = self._backward(batch, warm_up=warm_up, progress=progress, last=last)
            for name, value in found.sums.items():
                sums[name] = value + sums[name] if name in sums else value.clone()
            target_score += found.target_score
        gradients = self.gradient_sum.finish([*sums.values(), target_score])
        self.scaler.unscale_(self.optimizer)  # after the sum: all processes have to see the same overflows
        target_score = target_score.clamp(min=1)
        torch._foreach_mul_(gradients, self.images_per_batch / target_score)
        parts = {name: value / target_score for name, value in sums.items()}
        return {**parts, "total": torch.stack(list(parts.values())).sum()}

    def _backward(self, batch: TrainBatch, *, warm_up: bool, progress: float, last: bool) -> DetectionLoss:
        """Add the gradients of one batch; the loss comes back without what they were computed by.

        Args:
            last: of the update; its gradients are summed over processes as they come.
        """
        loss = self.loss(batch, warm_up=warm_up, progress=progress)
        if not batch.counts:
            loss = DetectionLoss({name: value * 0 for name, value in loss.sums.items()}, loss.target_score * 0)
        # A constant keeps gradients in the range of float16; it is taken out again after the sum.
        scaled = self.scaler.scale(loss.total_sum / self.images_per_batch)
        with told_of_compiler(), self.gradient_sum.beginning() if last else nullcontext():
            scaled.backward()
        return DetectionLoss({name: value.detach() for name, value in loss.sums.items()}, loss.target_score.detach())

    def pixels(self, batch: TrainBatch, preprocessing: Preprocessing | None = None) -> Tensor:
        """The images of a batch as network input: (B, 3, H, W) float32, on the device; by default as of the model."""
        preprocessing = self.model.spec.preprocessing if preprocessing is None else preprocessing
        images = on_device(torch.as_tensor(batch.images), self.device).permute(0, 3, 1, 2)
        pixels = (images.flip(1) if preprocessing.bgr else images).to(torch.float32, memory_format=LAYOUT)
        normalized: Tensor = preprocessing.normalize(pixels)
        return normalized

    def taught(self, teacher: Teacher, batch: TrainBatch, pixels: Tensor) -> TrainOutput:
        """What the teacher says to a batch, of which ``pixels`` are the model's own input."""
        wanted = teacher.preprocessing
        return teacher.answer(pixels if wanted == self.model.spec.preprocessing else self.pixels(batch, wanted))

    def objects(self, batch: TrainBatch) -> Objects:
        """The labels of a batch, on the device."""
        return pad_objects(batch.objects).to(self.device)

    def grid(self, height: int, width: int) -> AnchorGrid:
        return grid_of((height, width), self.model.spec.strides, self.device)


def marking_last(batches: Iterable[TrainBatch]) -> Iterator[tuple[TrainBatch, bool]]:
    """Every batch, and whether it is the last."""
    source = iter(batches)
    current = next(source, None)
    while current is not None:
        following = next(source, None)
        yield current, following is None
        current = following


class Updater(Stepper):
    """Learns to detect: labels, and a teacher if there is one. Steps of a fused model are relative to its weights."""

    def __init__(
        self,
        model: Detector,
        config: TrainConfig,
        device: torch.device,
        *,
        scales: RepScales | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        further = projector_groups(teacher, config.weight_decay)
        super().__init__(
            model, config, device, build_optimizer(model, config, scales, further), teacher=teacher,
            precision=settled_precision(config.precision, device), compiled=config.compile,
        )  # fmt: skip
        if model.deploy:
            step_in_units(self.optimizer, model)
        self.objective = objective_of(model, config)

    def loss(self, batch: TrainBatch, *, warm_up: bool = False, progress: float = 0.0) -> DetectionLoss:
        pixels = self.pixels(batch)
        with computing_in(self.precision, self.model, self.device):
            taught = None if self.teacher is None else self.taught(self.teacher, batch, pixels)
            output = self.answer(pixels)
        height, width = batch.images.shape[1:3]
        found = self.objective.loss(
            output, self.objects(batch), self.grid(height, width), warm_up=warm_up, progress=progress
        )
        if self.teacher is None or taught is None:
            return found
        imitated = self.teacher.loss(output, taught, (height, width), progress)
        return DetectionLoss({**found.sums, **imitated.sums}, found.target_score)


def projector_groups(teacher: Teacher | None, weight_decay: float) -> list[dict[str, Any]]:
    """The groups of `parameter_groups` of a teacher's projectors; none without any."""
    projectors = None if teacher is None else teacher.projectors
    return parameter_groups(projectors, weight_decay) if projectors else []
