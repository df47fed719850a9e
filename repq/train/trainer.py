"""The loop over epochs, whatever the loss: updates, an average of the weights, evaluation, a state to resume from."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable
from contextlib import closing, nullcontext
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repq.data import DetectionDataset, ImageCache
from repq.distributed import copy_from_first, current_processes, demand_same_data, evaluate_together, told_by_first
from repq.errors import TrainingError
from repq.identity import Identity
from repq.memory import keep_freed_memory
from repq.model import Detector
from repq.progress import Progress, silent
from repq.recipe import EvalConfig, LoopConfig
from repq.results import Accuracy, EpochRow
from repq.train.board import Board
from repq.train.loader import TrainBatch, largest_size, loading_threads, steps_per_epoch, training_batches
from repq.train.optimizer import MovingAverage, Rates, batches_per_update, rates_at, update_sizes
from repq.train.precision import restore_scaler, scaler_state
from repq.train.rendering import renderer_of
from repq.train.state import (
    Best,
    Position,
    load_state,
    optimizer_tensors,
    require_same_identity,
    restore_optimizer,
    save_state,
    sole_writer,
)
from repq.train.update import LAYOUT, Stepper

CUDA_CHECK_UPDATES = 50  # reading a loss waits for the device, so CUDA losses are looked at in bundles


def moved(model: Detector, device: torch.device) -> Detector:
    """The model on the device, in the layout of the training, in place."""
    return model.to(device=device, memory_format=LAYOUT)  # type: ignore[call-overload]


def handed_back(model: Detector) -> Detector:
    """The model on the CPU, in torch's default layout, for use; in place."""
    return model.to(device="cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]


def updates_of_epoch(images: int, config: LoopConfig) -> list[int]:
    """The batches of each update of an epoch."""
    batches = steps_per_epoch(images, config.batch)
    return update_sizes(batches, batches_per_update(config.batch, config.nominal_batch, batches * config.epochs))


class Job(Protocol):
    """What a trainer trains on, and how."""

    @property
    def train_set(self) -> DetectionDataset: ...
    @property
    def val_set(self) -> DetectionDataset: ...
    @property
    def imgsz(self) -> tuple[int, int]: ...
    @property
    def config(self) -> LoopConfig: ...
    @property
    def seed(self) -> int: ...
    @property
    def eval_config(self) -> EvalConfig: ...


class Trainer:
    """What changes from update to update, whatever the loss.

    Args:
        updater: holds the model, in place on its device.
        identity: what the trained weights depend on; a saved state must have the same.
        eval_interval: epochs between evaluations, the last epoch is one; None for none.
        after_epoch: is called with this trainer after every epoch, in the first process, before the state is saved.
        patience: stop when the AP has been below its best for so many epochs.
        warm_up_epochs: the first epochs, in which ATSS assigns.
    """

    def __init__(
        self,
        updater: Stepper,
        job: Job,
        identity: Identity,
        *,
        state_path: Path | None = None,
        board: Board | None = None,
        after_epoch: Callable[[Trainer], None] | None = None,
        eval_interval: int | None = None,
        patience: int | None = None,
        warm_up_epochs: int = 0,
    ) -> None:
        config = job.config
        self.updater, self.job, self.config, self.state_path = updater, job, config, state_path
        self.eval_interval, self.patience, self.warm_up_epochs = eval_interval, patience, warm_up_epochs
        self.processes = current_processes()
        self.after_epoch = after_epoch if self.processes.is_first else None
        self.board = board if self.processes.is_first else None
        self.position = Position(identity=identity.values())
        self.model, self.device = updater.model, updater.device
        self.stride = self.model.spec.strides[-1]
        largest = largest_size(job.imgsz, config, self.stride)
        form = self.model.spec.preprocessing
        self.cache = ImageCache(job.train_set.records, largest, config.cache_mib << 20, stretch=form.stretch)
        threads = loading_threads(config, self.device.type)
        self.renderer = renderer_of(config.loader, self.cache, form.pad, self.device, threads)

        self.update_sizes = updates_of_epoch(len(self.cache), config)
        self.average = MovingAverage(self.model, config.ema_decay, config.ema_ramp_steps)
        self.best: dict[str, Tensor] = {}

    def run(self, progress: Progress = silent) -> None:
        """Train to the end, from the saved state if there is one, and save after every epoch."""
        demand_same_data((self.job.train_set, self.job.val_set))
        if self.device.type == "cpu":
            keep_freed_memory()
        path = self.state_path if self.processes.is_first else None
        with sole_writer(path) if path is not None else nullcontext():
            self.resume()
            while not self.is_done:
                self.run_epoch(self.position.epochs_done, progress)
                if self.after_epoch is not None:
                    self.after_epoch(self)
                self.save()

    @property
    def images_per_s(self) -> float:
        """Training speed, evaluations left out."""
        rows = self.position.epochs
        return len(self.cache) * len(rows) / max(sum(row.seconds for row in rows), 1e-9)

    @property
    def is_done(self) -> bool:
        """Whether all epochs are done, or the last evaluation was the last one to wait for."""
        rows, best, patience = self.position.epochs, self.position.best, self.patience
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
        with closing(self.batches(epoch, progress)) as batches:
            for number, size in enumerate(self.update_sizes):
                update = epoch * len(self.update_sizes) + number
                rates = rates_at(update, self.total_updates, self.config)
                losses.append(self.update(islice(batches, size), rates, epoch, update))
                self.average.update(self.model)
                if len(losses) % check_every == 0:
                    self.require_finite(epoch, losses, check_every)
        self.require_finite(epoch, losses, check_every)
        self.require_finite_weights(epoch)
        means = {name: float(torch.stack([loss[name] for loss in losses]).mean()) for name in losses[0]}
        seconds = time.perf_counter() - started
        accuracy = self.evaluate_average() if self.is_evaluated(epoch) else None
        row = EpochRow(epoch=epoch + 1, learning_rate=rates.learning_rate, losses=means, seconds=seconds)
        if self.updater.teacher is not None:
            row = row.model_copy(update={"teacher_seconds": self.updater.teacher.clock.read()})
        if accuracy is not None:
            row = row.model_copy(update={"ap": accuracy.ap, "ap50": accuracy.ap50})
            self.keep_best(epoch + 1, accuracy)
        self.position = self.position.model_copy(update={"epochs": (*self.position.epochs, row)})
        if self.board is not None:
            self.board.show_row(row)

    def update(self, batches: Iterable[TrainBatch], rates: Rates, epoch: int, number: int) -> dict[str, Tensor]:
        try:
            return self.updater.update(
                batches, rates, warm_up=epoch < self.warm_up_epochs, progress=number / self.total_updates
            )
        except RuntimeError as error:
            if "without overflow" not in str(error):  # a rate or a decay that 32 bits do not hold
                raise
            raise self.diverged(f"step {number + 1} cannot be computed", epoch, str(error)) from None

    def batches(self, epoch: int, progress: Progress) -> Generator[TrainBatch]:
        """This process's batches of an epoch; the board gets the first of the run."""
        source = training_batches(
            self.cache, self.job.imgsz, self.config, seed=self.job.seed, epoch=epoch, stride=self.stride,
            preprocessing=self.model.spec.preprocessing, processes=self.processes, device=self.device.type,
            renderer=self.renderer,
        )  # fmt: skip
        label = f"train {epoch + 1}/{self.config.epochs}"
        with closing(source):  # its threads end with it, also when the training is stopped
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
                step = epoch * len(self.update_sizes) + number + 1
                found = ", ".join(f"{name} = {float(loss[name])}" for name in broken)
                raise self.diverged(f"the loss is not finite at step {step}", epoch, found)

    def require_finite_weights(self, epoch: int) -> None:
        """Stop when the last updates broke the averaged weights, which no loss has shown yet."""
        values = {name: value for name, value in self.average.model.state_dict().items() if value.is_floating_point()}
        finite = torch.stack([value.isfinite().all() for value in values.values()]).tolist()
        broken = [name for name, whole in zip(values, finite, strict=True) if not whole]
        if broken:
            found = f"{len(broken)} of {len(finite)} tensors, the first is {broken[0]}"
            raise self.diverged("the weights are not finite", epoch, found)

    def diverged(self, what: str, epoch: int, found: str) -> TrainingError:
        kept = f"the state after epoch {epoch} is in {self.state_path}; " if self.state_path and epoch else ""
        fix = (
            f"{kept}try a lower learning_rate, more warmup_steps, max_grad_norm, a smaller weight_decay or loss weight"
        )
        return TrainingError(f"{what} (epoch {epoch + 1})", found=found, fix=fix)

    # --- evaluation --------------------------------------------------------------------------------------------------

    def is_evaluated(self, epoch: int) -> bool:
        if self.eval_interval is None:
            return False
        return (epoch + 1) % self.eval_interval == 0 or epoch + 1 == self.config.epochs

    def evaluate_average(self) -> Accuracy:
        copy_from_first(self.average.model)  # statistics of batch norms differ between processes

        def predict(images: NDArray[np.float32]) -> NDArray[np.float32]:
            with torch.inference_mode():
                pixels = torch.from_numpy(images).to(self.device, memory_format=LAYOUT)
                found = self.average.model(pixels).cpu().numpy()
            if not np.isfinite(found).all():
                raise self.diverged("the model's output is not finite", self.position.epochs_done, "nan or infinity")
            return found

        job, spec = self.job, self.model.spec
        return evaluate_together(predict, job.val_set, job.imgsz, job.eval_config, spec.layout, spec.preprocessing)

    def keep_best(self, epoch: int, accuracy: Accuracy) -> None:
        best = self.position.best
        if best is None or accuracy.ap >= best.accuracy.ap:
            self.best = {name: value.clone() for name, value in self.average.model.state_dict().items()}
            self.position = self.position.model_copy(update={"best": Best(epoch=epoch, accuracy=accuracy)})

    # --- state -------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the state, in the first process."""
        if self.state_path is None or not self.processes.is_first:
            return
        scale = scaler_state(self.updater.scaler)
        position = self.position.model_copy(
            update={"average_updates": self.average.updates, "loss_scale": scale},
        )
        tensors = {
            "model": self.model.state_dict(),
            "average": self.average.model.state_dict(),
            "best": self.best,
            "optimizer": optimizer_tensors(self.updater.optimizer),
        }
        if self.updater.projectors:
            tensors["projectors"] = self.updater.projectors.state_dict()
        save_state(self.state_path, position, tensors)

    def resume(self) -> None:
        """Go on from the saved state, if there is one; from what the first process found."""
        copy_from_first(self.model)
        path = self.state_path
        loaded = told_by_first(lambda: load_state(path) if path is not None and path.exists() else None)
        if path is None or loaded is None:
            return
        position, tensors = loaded
        require_same_identity(path, position.identity, self.position.identity)
        try:
            self.model.load_state_dict(tensors["model"])
            self.average.model.load_state_dict(tensors["average"])
            if self.updater.projectors:
                self.updater.projectors.load_state_dict(tensors["projectors"])
            restore_optimizer(self.updater.optimizer, tensors.get("optimizer", {}))
        except (KeyError, RuntimeError, ValueError) as error:
            raise TrainingError(
                f"cannot resume from {path}", found=str(error), fix="remove the file to train from the start"
            ) from None
        restore_scaler(self.updater.scaler, position.loss_scale)
        self.average.updates = position.average_updates
        self.best = {name: value.to(self.device) for name, value in tensors.get("best", {}).items()}
        self.position = position
