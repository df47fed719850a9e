"""Training a detector on labels: the parts, joined, and the best weights kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from repq.data import DetectionDataset
from repq.distributed import agreed, joined_processes, told_by_first
from repq.errors import TrainingError
from repq.machine.precision import with_precision
from repq.machine.torch_random import seeded
from repq.model import Detector, Spec, build, get_spec, outline
from repq.progress import Progress, silent
from repq.recipe import EvalConfig, LoopConfig, QatConfig, TrainConfig
from repq.reparam.repopt import RepScales, reinitialize
from repq.results import TrainReport
from repq.train.balance import with_class_weights
from repq.train.board import Board
from repq.train.distill import Teacher
from repq.train.job import TrainJob
from repq.train.objective import demand_trainable, objective_of
from repq.train.optimizer import peak_rate, rates_at, warmup_steps
from repq.train.trainer import Trainer, handed_back, moved, updates_of_epoch
from repq.train.update import Updater


@dataclass(frozen=True)
class TrainOutcome:
    """The averaged weights of the best evaluation, in eval mode on the CPU, and how they came about."""

    model: Detector
    report: TrainReport


def train(
    model: Detector,
    train_set: DetectionDataset,
    val_set: DetectionDataset,
    imgsz: tuple[int, int],
    config: TrainConfig,
    *,
    device: str = "cpu",
    seed: int = 0,
    state_path: Path | None = None,
    eval_config: EvalConfig = EvalConfig(),
    scales: RepScales | None = None,
    teacher: Detector | None = None,
    teacher_classes: tuple[int, ...] | None = None,
    board: Board | None = None,
    after_epoch: Callable[[Trainer], None] | None = None,
    progress: Progress = silent,
) -> TrainOutcome:
    """Train ``model`` and give it back with the averaged weights that had the best AP on ``val_set``.

    With ``state_path`` the state is saved after every epoch, and a state that is there already is gone on from: on a
    CPU with the same number of threads, to the same bits as without the interruption. Remove the file to start again.

    Processes that ``torchrun`` started train together (see `repq.distributed`): all of them make this call with
    equal arguments and get an equal outcome; the first one writes the state.

    Args:
        imgsz: height and width of the network input, multiples of the coarsest stride.
        seed: of order and augmentation; the weights come with ``model``.
        scales: what ``config.rep_scales`` holds. RepOptimizer trains the model with them, and re-initializes it first
            unless it comes with trained weights (``config.weights``).
        teacher: the detector that ``config.distill`` names, of any family.
        teacher_classes: where each class of the model is among the teacher's; None: they are the same.
        board: where to show scalars and a batch while training.
        after_epoch: is called after every epoch, in the first process.

    Raises:
        TrainingError: nothing to train on; labels, size, scales or teacher that do not fit the model; a precision that
            the device does not have; a loss that is not finite; a state of another training; or another process is
            gone.
        CheckpointError: the scales do not fit the model.
        DataError: an image can no longer be read.
    """
    config = with_class_weights(config, train_set)
    with joined_processes(device) as (processes, own_device):
        precision = told_by_first(lambda: with_precision(config, own_device).precision)
        config = config.model_copy(update={"precision": precision})
        config = with_precision(config, own_device)  # this process's device has to have it as well
        job = TrainJob(model, train_set, val_set, imgsz, config, seed, eval_config, scales, teacher, teacher_classes)
        job.check(processes.count)
        identity = agreed(job.identity())
        if scales is not None and config.weights is None:
            reinitialize(model, scales, seed)
        model = moved(model, own_device).train()
        imitated = None
        if teacher is not None and config.distill is not None and config.distill.imitates:
            imitated = Teacher(
                moved(teacher, own_device), model, config.distill, classes=teacher_classes, seed=seed,
                graphs=config.cuda_graphs,
            )  # fmt: skip
        trainer = Trainer(
            Updater(model, config, own_device, scales=scales, teacher=imitated), job, identity,
            state_path=state_path, board=board, after_epoch=after_epoch, eval_interval=config.eval_interval,
            patience=config.patience, warm_up_epochs=config.atss_epochs,
        )  # fmt: skip
        trainer.run(progress)
        return _outcome(trainer, config)


def _outcome(trainer: Trainer, config: TrainConfig) -> TrainOutcome:
    best, rows = trainer.position.best, trainer.position.epochs
    assert best is not None, "the last epoch is evaluated"
    trainer.model.load_state_dict(trainer.best)
    model = handed_back(trainer.model)
    report = TrainReport(
        model=model.spec.name,
        epochs=rows,
        images=len(trainer.cache),
        images_per_s=trainer.images_per_s,
        best_epoch=best.epoch,
        accuracy=best.accuracy,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        class_weights=config.class_weights,
        precision=trainer.updater.precision,
    )
    return TrainOutcome(model, report)


@dataclass(frozen=True)
class FineTuned:
    """A model with weights of another, ready to train, and what a user should know about it."""

    model: Detector
    notes: tuple[str, ...]


def settings_for(config: TrainConfig, trained: Detector) -> TrainConfig:
    """The settings of a fine-tuning: those that ``trained`` was published with, where none are given.

    A pruned model is fused: without batch norms it learns by the steps of quantization-aware training.

    Raises:
        TrainingError: they name a model of another family.
    """
    own = trained.spec
    related = get_spec(config.model).family == own.family
    if related and not trained.deploy:
        return config
    if not related and "model" in config.model_fields_set:
        fix = "leave the model away: the weights tell it"
        raise TrainingError(f"the weights are none of {config.model}", found=own.name, fix=fix)
    given = {name: getattr(config, name) for name in config.model_fields_set}
    steps = {name: getattr(QatConfig(), name) for name in _STEPS} if trained.deploy else {}
    return TrainConfig.model_validate({**steps, "model": own.name, **given})


_STEPS = (
    "optimizer", "learning_rate", "rate_batch", "momentum", "weight_decay", "warmup_steps", "warmup_epochs",
    "warmup_shape", "warmup_bias_learning_rate", "max_grad_norm", "ema_decay", "ema_ramp_steps", "scale", "hsv",
)  # fmt: skip
"""What the steps of a training hang on."""


def doubtful_settings(model: Detector, config: TrainConfig, images: int) -> tuple[str, ...]:
    """What a user should know of settings that mean nothing to this model, or to a training of so few updates.

    Args:
        images: of the train split.
    """
    usual = {name: field.default for name, field in TrainConfig.model_fields.items()}
    unused = [name for name in objective_of(model, config).unused if getattr(config, name) != usual[name]]
    notes = [f"{model.spec.name} has no use for {', '.join(unused)}"] if unused else []
    all_of_them = f"as many as there are epochs ({config.epochs}) or more"
    if config.flat_epochs >= config.epochs:
        notes.append(f"flat_epochs is {all_of_them}: after the warm-up, the learning rate is at its least")
    if config.mosaic_off_epochs >= config.epochs and (config.mosaic or config.mixup):
        notes.append(f"mosaic_off_epochs is {all_of_them}: no image is made of several")
    if config.mixup and config.mixup_scale is not None and not config.mosaic:
        notes.append("mixup has no effect: with mixup_scale only mosaics are blended, and mosaic is 0")
    return (*notes, *short_training(config, images))


def short_training(config: LoopConfig, images: int) -> tuple[str, ...]:
    """What a user should know of a training that ends before its warm-up does."""
    updates = len(updates_of_epoch(images, config)) * config.epochs
    warmup = warmup_steps(updates, config)
    if warmup < updates or not warmup:
        return ()
    name = "warmup_steps" if config.warmup_epochs is None else "warmup_epochs"
    reached = rates_at(updates - 1, updates, config).learning_rate
    return (
        f"the warm-up ({warmup} updates) is as long as the training ({updates}) or longer: the learning rate comes to "
        f"{reached:.2g} of {peak_rate(config):.2g}; fewer {name}, or more epochs, let the model learn more",
    )


def fine_tuned(trained: Detector, num_classes: int, config: TrainConfig | None = None) -> FineTuned:
    """Build the same model for ``num_classes`` and take over every entry of ``trained`` that has its name and shape.

    Settings that name another model with the same entries, such as one with another activation, get that.

    The class predictions keep their fresh weights when the number of classes differs; nothing is lost otherwise. The
    fresh weights of a detector's class predictions are constants, so the result does not depend on any seed.

    Raises:
        TrainingError: ``trained`` is fused (and not pruned), of a family without loss, of another model than the
            settings name, or pruned for another number of classes.
    """
    demand_trainable(trained)
    if trained.deploy and num_classes != trained.spec.num_classes:
        raise TrainingError(
            "a pruned model keeps its classes", fix="train the whole model on the new classes, then prune it",
            found=f"{trained.spec.num_classes} in the checkpoint, {num_classes} in the data set",
        )  # fmt: skip
    spec = replace(trained.spec, num_classes=num_classes)
    if config is not None and "model" in config.model_fields_set and config.model != trained.spec.name:
        spec = _like(trained, config.model, num_classes)
    with seeded(0):  # of what it draws nothing stays
        model = build(spec, deploy=trained.deploy)
    own = model.state_dict()
    kept = {name: value for name, value in trained.state_dict().items() if own[name].shape == value.shape}
    model.load_state_dict({**own, **kept})
    if len(kept) == len(own):
        return FineTuned(model, ())
    note = (
        f"the class predictions start afresh: {trained.spec.num_classes} classes in the checkpoint, "
        f"{num_classes} in the data set"
    )
    return FineTuned(model, (note,))


def _like(trained: Detector, name: str, num_classes: int) -> Spec:
    """The spec of another model with the same entries, for images prepared and boxes counted as for ``trained``."""
    kept = {"preprocessing": trained.spec.preprocessing, "thresholds": trained.spec.thresholds}
    spec: Spec = replace(get_spec(name, trained.spec.num_classes), **kept)
    own, other = (
        {entry: value.shape for entry, value in model.state_dict().items()} for model in (trained, outline(spec, False))
    )
    if own != other:
        raise TrainingError(
            f"the weights are none of {name}",
            found=f"{trained.spec.name}, which differs in {len(own.items() ^ other.items())} entries",
            fix="leave the model away: the weights tell it",
        )
    return replace(spec, num_classes=num_classes)
