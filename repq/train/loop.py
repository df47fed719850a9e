"""Training a detector on labels: the parts, joined, and the best weights kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from repq.data import DetectionDataset
from repq.distributed import joined_processes, told_by_first
from repq.model import Detector
from repq.progress import Progress, silent
from repq.recipe import EvalConfig, TrainConfig
from repq.reparam.repopt import RepScales, reinitialize
from repq.results import TrainReport
from repq.train.board import Board
from repq.train.distill import Teacher
from repq.train.job import TrainJob
from repq.train.trainer import Trainer, handed_back, moved
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
    board: Board | None = None,
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
        teacher: the detector that ``config.distill`` names.
        board: where to show scalars and a batch while training.

    Raises:
        TrainingError: nothing to train on; labels, size, scales or teacher that do not fit the model; a loss that is
            not finite; a state of another training; or another process is gone.
        CheckpointError: the scales do not fit the model.
        DataError: an image can no longer be read.
    """
    job = TrainJob(model, train_set, val_set, imgsz, config, seed, eval_config, scales, teacher)
    with joined_processes(device) as (processes, own_device):
        job.check(processes.count)
        identity = told_by_first(job.identity)
        if scales is not None and config.weights is None:
            reinitialize(model, scales, seed)
        model = moved(model, own_device).train()
        imitated = None
        if teacher is not None and config.distill is not None:
            imitated = Teacher(moved(teacher, own_device), model, config.distill)
        trainer = Trainer(
            Updater(model, config, own_device, scales=scales, teacher=imitated), job, identity,
            state_path=state_path, board=board, eval_interval=config.eval_interval, patience=config.patience,
            warm_up_epochs=config.atss_epochs,
        )  # fmt: skip
        trainer.run(progress)
        return _outcome(trainer)


def _outcome(trainer: Trainer) -> TrainOutcome:
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
    )
    return TrainOutcome(model, report)
