"""Quantization-aware training in one call."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from repq.data import DetectionDataset
from repq.distributed import agreed, copy_from_first, told_by_first
from repq.errors import DataError, QuantizationError, TrainingError
from repq.identity import Identity, describe_fields, identify
from repq.model import Detector, layer_ids
from repq.progress import Progress, silent
from repq.quant.calibration.observation import Groups
from repq.quant.qat.learned import fix_scales, learn_scales
from repq.quant.qat.update import QatUpdater
from repq.quant.state import apply_scales, quantized_layers, scale_table
from repq.recipe import EvalConfig, QatConfig, RecoveryConfig
from repq.results import EpochRow, ScaleChange
from repq.scales import ScaleTable, TensorScale
from repq.train import Board, joined_processes
from repq.train.distill import Teacher, check_teacher
from repq.train.job import check_images
from repq.train.objective import has_loss
from repq.train.trainer import Trainer, handed_back, moved


@dataclass(frozen=True)
class QatOutcome:
    """The averaged weights of the last epoch with their scales, in eval mode on the CPU, and how they came about."""

    model: Detector
    epochs: tuple[EpochRow, ...]
    images: int
    images_per_s: float
    scales: tuple[ScaleChange, ...]


@dataclass(frozen=True)
class QatJob:
    """Everything that the trained weights depend on; see `train_quantized` for the parts."""

    model: Detector
    teacher: Detector
    train_set: DetectionDataset
    val_set: DetectionDataset
    imgsz: tuple[int, int]
    config: QatConfig
    seed: int
    eval_config: EvalConfig
    groups: Groups = ()
    teacher_classes: tuple[int, ...] | None = None

    def identity(self) -> Identity:
        """What the trained weights depend on: a saved state belongs to the jobs that have the same."""
        settings = {
            **describe_fields(self.config, without={"teacher"}),  # what it names is among the inputs
            "spec": self.model.spec.to_json(), "imgsz": self.imgsz, "eval": self.eval_config,
        }  # fmt: skip
        inputs = {"start": [self.model, scale_table(self.model)], "groups": self.groups, "teacher": self.teacher}
        inputs |= {"teacher_classes": self.teacher_classes}
        inputs |= {"train_set": self.train_set, "val_set": self.val_set}
        return identify("qat", settings, inputs, seed=self.seed)

    def check(self, processes: int = 1) -> None:
        """Check that the parts fit each other.

        Raises:
            QuantizationError: no layer of the model quantizes.
            DataError: labels count, and there are none.
            TrainingError: there are no images, or they do not fit; or labels count, and the model has no loss on them.
        """
        if not quantized_layers(self.model) and not isinstance(self.config, RecoveryConfig):
            raise QuantizationError(
                "there is nothing to train for: no layer of the model quantizes",
                fix="keep fewer layers in float, or give a model that `repq ptq` wrote",
            )
        demand_labels(self.model, self.train_set, self.config)
        check_images(self.model.spec, self.train_set, self.imgsz, self.config.batch, processes)
        check_teacher(self.teacher.spec, self.model.spec, self.imgsz, self.config)


def demand_labels(model: Detector, train_set: DetectionDataset, config: QatConfig) -> None:
    """Check that a model can learn from labels, if they are to count.

    Raises:
        DataError: no image has a labelled object.
        TrainingError: the model's family has no loss on labels.
    """
    if config.task_weight and not train_set.objects:
        raise DataError("there are no labels to learn from", fix="give a labelled data set, or no --task-weight")
    if config.task_weight and not has_loss(model):
        raise TrainingError(
            f"{model.spec.name} cannot learn from labels", found=f"the family {model.spec.family}, which has no loss",
            fix="leave --task-weight away: it then learns from its teacher alone",
        )  # fmt: skip


def train_quantized(
    model: Detector,
    teacher: Detector,
    train_set: DetectionDataset,
    val_set: DetectionDataset,
    imgsz: tuple[int, int],
    config: QatConfig,
    *,
    groups: Groups = (),
    teacher_classes: tuple[int, ...] | None = None,
    device: str = "cpu",
    seed: int = 0,
    state_path: Path | None = None,
    eval_config: EvalConfig = EvalConfig(),
    board: Board | None = None,
    after_epoch: Callable[[Trainer], None] | None = None,
    progress: Progress = silent,
) -> QatOutcome:
    """Train a calibrated model to answer as a float model does, and give back the average of its weights.

    Layers without quantizers run in float and learn with the others; with a `repq.recipe.RecoveryConfig` all may.
    State and processes are as in `repq.train.train`.

    Args:
        model: with calibrated quantizers; it is not changed.
        teacher: the float model, or another detector; it is not changed.
        groups: layers whose inputs were declared to share one scale; they go on sharing it.
        teacher_classes: where each class of the model is among the teacher's; None: they are the same.
        seed: of order and augmentation.
        state_path: where the state is saved after every epoch, and gone on from.
        after_epoch: is called after every epoch, in the first process.

    Raises:
        QuantizationError: no layer quantizes, or a layer has no scale.
        TrainingError: nothing to train on; a size or teacher that does not fit; a loss that is not finite; a state of
            another training; or another process is gone.
        DataError: an image can no longer be read.
    """
    job = QatJob(model, teacher, train_set, val_set, imgsz, config, seed, eval_config, groups, teacher_classes)
    with joined_processes(device) as (processes, own_device):
        job.check(processes.count)
        identity, start = agreed(job.identity()), told_by_first(lambda: scale_table(model))
        student = moved(copy.deepcopy(model), own_device).train()
        imitated = moved(copy.deepcopy(teacher), own_device)
        apply_scales(student, start)
        copy_from_first(student)  # before the updater, whose units are made of the weights
        copy_from_first(imitated)
        for parameter in _weights(student):
            parameter.requires_grad_(True)
        if config.scales == "learned":
            learn_scales(student, groups, weights=config.learn_weight_scales)
        tutor = Teacher(imitated, student, config, classes=teacher_classes, seed=seed, graphs=config.cuda_graphs)
        updater = QatUpdater(student, tutor, config, own_device)
        trainer = Trainer(
            updater,
            job,
            identity,
            state_path=state_path,
            board=board,
            after_epoch=after_epoch,
            eval_interval=config.eval_interval,
        )
        trainer.run(progress)
        trained = handed_back(copy.deepcopy(trainer.average.model))
    fix_scales(trained)
    return QatOutcome(
        model=trained,
        epochs=trainer.position.epochs,
        images=len(trainer.cache),
        images_per_s=trainer.images_per_s,
        scales=scale_changes(start, scale_table(trained)),
    )


def _weights(model: Detector) -> list[torch.nn.Parameter]:
    layers = [model.get_submodule(layer) for layer in layer_ids(model)]
    return [parameter for module in layers for parameter in module.parameters(recurse=False)]


def scale_changes(before: ScaleTable, after: ScaleTable) -> tuple[ScaleChange, ...]:
    """What training made of the scales, layer by layer."""
    return tuple(
        ScaleChange(
            layer=layer,
            input_before=_middle(before[layer].input),
            input_after=_middle(scales.input),
            weight_ratio=_middle(scales.weight) / _middle(before[layer].weight),
        )
        for layer, scales in after.items()
    )


def _middle(value: TensorScale) -> float:
    """The scale, or the geometric mean of a scale per channel."""
    return float(np.exp(np.log(value.scale.astype(np.float64)).mean()))
