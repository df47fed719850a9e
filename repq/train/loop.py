"""The training loop: epochs of updates, an average of the weights, evaluation, and a state to resume from."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repq.data import DetectionDataset, ImageCache
from repq.errors import TrainingError
from repq.model import Detector
from repq.progress import Progress, silent
from repq.recipe import EvalConfig, TrainConfig
from repq.reparam.repopt import RepScales, reinitialize
from repq.results import Accuracy, EpochRow, TrainReport
from repq.train.accumulation import batches_per_update, update_sizes
from repq.train.board import Board
from repq.train.distill import Teacher
from repq.train.distributed import (
    copy_from_first,
    current_processes,
    evaluate_together,
    joined_processes,
    told_by_first,
)
from repq.train.ema import MovingAverage
from repq.train.job import TrainJob
from repq.train.loader import TrainBatch, largest_size, steps_per_epoch, training_batches
from repq.train.schedule import rates_at
from repq.train.state import (
    Best,
    Position,
    load_state,
    optimizer_tensors,
    require_same_settings,
    restore_optimizer,
    save_state,
)
from repq.train.update import Updater

CUDA_CHECK_UPDATES = 50  # reading a loss waits for the device, so CUDA losses are looked at in bundles


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

    Processes that ``torchrun`` started train together (see `repq.train.distributed`): all of them make this call with
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
        trainer = _Trainer(job, own_device, state_path, board)
        trainer.resume()
        while not trainer.is_done:
            trainer.run_epoch(trainer.position.epochs_done, progress)
            trainer.save()
        return trainer.outcome()


def _moved(model: Detector, device: torch.device) -> Detector:
    # Backward passes in channels_last are faster on CUDA; on CPUs they gained nothing or crashed (torch 2.13).
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    return model.to(device=device, memory_format=layout)  # type: ignore[call-overload]


class _Trainer:
    """What changes from update to update."""

    def __init__(self, job: TrainJob, device: torch.device, state_path: Path | None, board: Board | None) -> None:
        config = job.config
        self.job, self.config, self.device, self.state_path = job, config, device, state_path
        self.processes = current_processes()
        self.board = board if self.processes.is_first else None
        # The first process's, as change times of images differ between machines.
        self.position = Position(settings=told_by_first(job.settings))
        if job.scales is not None and config.weights is None:
            reinitialize(job.model, job.scales, job.seed)
        self.model = _moved(job.model, device).train()
        self.stride = self.model.spec.strides[-1]
        largest = largest_size(job.imgsz, config, self.stride)
        self.cache = ImageCache(job.train_set.records, largest, config.cache_mib << 20)

        batches = steps_per_epoch(len(self.cache), config.batch)
        per_update = batches_per_update(config.batch, config.nominal_batch, batches * config.epochs)
        self.update_sizes = update_sizes(batches, per_update)
        teacher = None
        if job.teacher is not None and config.distill is not None:
            teacher = Teacher(_moved(job.teacher, device), self.model, config.distill)
        self.updater = Updater(self.model, config, device, scales=job.scales, teacher=teacher)
        self.average = MovingAverage(self.model, config.ema_decay, config.ema_ramp_steps)
        self.best: dict[str, Tensor] = {}

    @property
    def is_done(self) -> bool:
        """Whether all epochs are done, or the last evaluation was the last one to wait for."""
        rows, best, patience = self.position.epochs, self.position.best, self.config.patience
        if len(rows) >= self.config.epochs:
            return True
        if patience is None or best is None or rows[-1].ap is None:
            return False
        return rows[-1].epoch - best.epoch >= patience

    # --- one epoch ---------------------------------------------------------------------------------------------------

    def run_epoch(self, epoch: int, progress: Progress) -> None:
        """Train one epoch, evaluate when it is time, and note the row."""
        started = time.perf_counter()
        losses: list[dict[str, Tensor]] = []
        check_every = CUDA_CHECK_UPDATES if self.device.type == "cuda" else 1
        batches = self.batches(epoch, progress)
        for number, size in enumerate(self.update_sizes):
            update = epoch * len(self.update_sizes) + number
            losses.append(
                self.updater.update(
                    islice(batches, size),
                    rates_at(update, self.total_updates, self.config),
                    warm_up=epoch < self.config.atss_epochs,
                    progress=update / self.total_updates,
                )
            )
            self.average.update(self.model)
            if len(losses) % check_every == 0:
                self.require_finite(epoch, losses, check_every)
        self.require_finite(epoch, losses, check_every)
        means = {name: float(torch.stack([loss[name] for loss in losses]).mean()) for name in losses[0]}
        seconds = time.perf_counter() - started
        rate = rates_at(update, self.total_updates, self.config).learning_rate
        accuracy = self.evaluate_average() if self.is_evaluated(epoch) else None
        row = EpochRow(epoch=epoch + 1, learning_rate=rate, losses=means, seconds=seconds)
        if accuracy is not None:
            row = row.model_copy(update={"ap": accuracy.ap, "ap50": accuracy.ap50})
            self.keep_best(epoch + 1, accuracy)
        self.position = self.position.model_copy(update={"epochs": (*self.position.epochs, row)})
        if self.board is not None:
            self.board.show_row(row)

    def batches(self, epoch: int, progress: Progress) -> Iterator[TrainBatch]:
        """This process's batches of an epoch; the board gets the first of the run."""
        source = training_batches(
            self.cache, self.job.imgsz, self.config, seed=self.job.seed, epoch=epoch, stride=self.stride,
            processes=self.processes,
        )  # fmt: skip
        label = f"train {epoch + 1}/{self.config.epochs}"
        for number, batch in enumerate(progress(source, total=sum(self.update_sizes), label=label)):
            if self.board is not None and number == epoch == 0:
                self.board.show_batch(batch, epoch + 1)
            yield batch

    @property
    def total_updates(self) -> int:
        return len(self.update_sizes) * self.config.epochs

    def require_finite(self, epoch: int, losses: list[dict[str, Tensor]], last: int) -> None:
        """Stop at the first of the ``last`` losses that is not finite."""
        for number, loss in list(enumerate(losses))[-last:]:
            broken = [name for name, value in loss.items() if not torch.isfinite(value)]
            if broken:
                kept = f"the state after epoch {epoch} is in {self.state_path}; " if self.state_path and epoch else ""
                step = epoch * len(self.update_sizes) + number + 1
                raise TrainingError(
                    f"the loss is not finite at step {step} (epoch {epoch + 1})",
                    found=", ".join(f"{name} = {float(loss[name])}" for name in broken),
                    fix=f"{kept}try a lower learning_rate, more warmup_steps or max_grad_norm",
                )

    # --- evaluation --------------------------------------------------------------------------------------------------

    def is_evaluated(self, epoch: int) -> bool:
        return (epoch + 1) % self.config.eval_interval == 0 or epoch + 1 == self.config.epochs

    def evaluate_average(self) -> Accuracy:
        copy_from_first(self.average.model)  # statistics of batch norms differ between processes

        def predict(images: NDArray[np.float32]) -> NDArray[np.float32]:
            with torch.inference_mode():
                pixels = torch.from_numpy(images).to(self.device, memory_format=self.updater.layout)
                return self.average.model(pixels).cpu().numpy()

        return evaluate_together(predict, self.job.val_set, self.job.imgsz, self.job.eval_config)

    def keep_best(self, epoch: int, accuracy: Accuracy) -> None:
        best = self.position.best
        if best is None or accuracy.ap >= best.accuracy.ap:
            self.best = {name: value.clone() for name, value in self.average.model.state_dict().items()}
            self.position = self.position.model_copy(update={"best": Best(epoch=epoch, accuracy=accuracy)})

    def outcome(self) -> TrainOutcome:
        best, rows = self.position.best, self.position.epochs
        assert best is not None, "the last epoch is evaluated"
        self.model.load_state_dict(self.best)
        model = _moved(self.model, torch.device("cpu")).eval()
        seconds = sum(row.seconds for row in rows)
        report = TrainReport(
            model=model.spec.name,
            epochs=rows,
            images=len(self.cache),
            images_per_s=len(self.cache) * len(rows) / max(seconds, 1e-9),
            best_epoch=best.epoch,
            accuracy=best.accuracy,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
        )
        return TrainOutcome(model, report)

    # --- state -------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the state, in the first process."""
        if self.state_path is None or not self.processes.is_first:
            return
        scale = {name: float(value) for name, value in self.updater.scaler.state_dict().items()}
        position = self.position.model_copy(
            update={"average_updates": self.average.updates, "loss_scale": scale},
        )
        tensors = {
            "model": self.model.state_dict(),
            "average": self.average.model.state_dict(),
            "best": self.best,
            "optimizer": optimizer_tensors(self.updater.optimizer),
            "random": {"torch": torch.get_rng_state()},
        }
        save_state(self.state_path, position, tensors)

    def resume(self) -> None:
        """Go on from the saved state, if there is one; from what the first process found."""
        copy_from_first(self.model)
        path = self.state_path
        loaded = told_by_first(lambda: load_state(path) if path is not None and path.exists() else None)
        if path is None or loaded is None:
            return
        position, tensors = loaded
        require_same_settings(path, position, self.position.settings)
        try:
            self.model.load_state_dict(tensors["model"])
            self.average.model.load_state_dict(tensors["average"])
            restore_optimizer(self.updater.optimizer, tensors.get("optimizer", {}))
            torch.set_rng_state(tensors["random"]["torch"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise TrainingError(
                f"cannot resume from {path}", found=str(error), fix="remove the file to train from the start"
            ) from None
        if position.loss_scale:
            self.updater.scaler.load_state_dict(dict(position.loss_scale))
        self.average.updates = position.average_updates
        self.best = {name: value.to(self.device) for name, value in tensors.get("best", {}).items()}
        self.position = position
