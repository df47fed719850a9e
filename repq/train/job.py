"""What is trained, on what, and how: checked, and told apart from other trainings."""

from __future__ import annotations

from dataclasses import dataclass

from repq.data import DetectionDataset
from repq.errors import TrainingError
from repq.identity import Identity, describe_fields, identify
from repq.model import Detector, Spec, search_and_target
from repq.recipe import EvalConfig, TrainConfig
from repq.reparam.repopt import RepScales, takes_scales
from repq.train.distill import check_teacher
from repq.train.loader import smallest_batch
from repq.train.objective import demand_trainable


@dataclass(frozen=True)
class TrainJob:
    """Everything that the trained weights depend on; see `repq.train.train` for the parts."""

    model: Detector
    train_set: DetectionDataset
    val_set: DetectionDataset
    imgsz: tuple[int, int]
    config: TrainConfig
    seed: int
    eval_config: EvalConfig
    scales: RepScales | None = None
    teacher: Detector | None = None
    teacher_classes: tuple[int, ...] | None = None

    def identity(self) -> Identity:
        """What the trained weights depend on: a saved state belongs to the jobs that have the same."""
        # The files that these name are among the inputs, as what was read from them.
        distill = None if self.config.distill is None else {**describe_fields(self.config.distill, without={"teacher"})}
        settings = describe_fields(self.config, without={"weights", "rep_scales", "distill"})
        settings |= {"distill": distill, "fine_tune": self.config.weights is not None}
        settings |= {"spec": self.model.spec.to_json(), "imgsz": self.imgsz, "eval": self.eval_config}
        inputs = {"start": self.model, "train_set": self.train_set, "val_set": self.val_set}
        inputs |= {"rep_scales": self.scales, "teacher": self.teacher, "teacher_classes": self.teacher_classes}
        return identify("train", settings, inputs, seed=self.seed)

    def check(self, processes: int = 1) -> None:
        """Check that the parts fit each other.

        Raises:
            TrainingError: they don't.
        """
        model, classes = self.model.spec, self.train_set.num_classes
        demand_trainable(self.model)
        check_images(model, self.train_set, self.imgsz, self.config.batch, processes)
        _check_batch_norm(self, processes)
        if self.config.class_weights and len(self.config.class_weights) != classes:
            raise TrainingError(
                "class_weights needs a factor for every class",
                found=f"{len(self.config.class_weights)} factors for {classes} classes",
            )
        _check_given("rep_scales", self.config.rep_scales, self.scales)
        _check_given("distill", self.config.distill, self.teacher)
        if self.teacher is not None:
            check_teacher(self.teacher.spec, self.model.spec, self.imgsz, self.config)
        if takes_scales(self.model) and self.scales is None and self.config.weights is None:
            raise TrainingError(
                f"{model.name} from scratch is trained with the scales of a hyper-search",
                fix=f"train {search_and_target(self.model.spec)[0]} first and give its scales as rep_scales",
            )


def check_images(model: Spec, train_set: DetectionDataset, imgsz: tuple[int, int], batch: int, processes: int) -> None:
    """Check that there are images, that they are of the model's classes and size, and enough for the processes.

    Raises:
        TrainingError: they don't fit.
    """
    if not len(train_set):
        raise TrainingError("there is no image to train on", fix="check the train split of the data set")
    if train_set.num_classes != model.num_classes:
        raise TrainingError(
            "the model does not fit the data set",
            found=f"{model.num_classes} classes in the model, {train_set.num_classes} in the data set",
            fix="build the model with the data set's number of classes",
        )
    coarsest = model.strides[-1]
    if imgsz[0] % coarsest or imgsz[1] % coarsest:
        raise TrainingError(
            "the image size does not fit the model",
            found=f"{imgsz[0]}x{imgsz[1]}",
            fix=f"use multiples of {coarsest}, the coarsest stride",
        )
    if min(batch, len(train_set)) < processes:
        raise TrainingError(
            "there is not an image for every process",
            found=f"{len(train_set)} images in batches of {batch} for {processes} processes",
            fix="make batch larger (it counts the images of all processes) or start fewer processes",
        )


def _check_batch_norm(job: TrainJob, processes: int) -> None:
    stride = job.model.spec.strides[-1]
    images, (height, width) = smallest_batch(len(job.train_set), job.imgsz, job.config, stride, processes)
    if images * (height // stride) * (width // stride) == 1:
        raise TrainingError(
            "batch norm needs more than one value of a channel, and the coarsest map has only one",
            found=f"a batch of 1 image of {height}x{width}, stride {stride}",
            fix="train on larger images, or in batches that give every process 2 images or more",
        )


def _check_given(name: str, asked: object, given: object) -> None:
    if (asked is None) != (given is None):
        raise TrainingError(
            f"the settings and what is given for {name} disagree",
            found=f"{name} is set, but what it names is not given" if given is None else f"{name} is not set",
        )
