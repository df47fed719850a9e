"""One of several processes of a training: ``distributed_worker.py FOLDER [RANK THAT DIES]``, started by a test."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from small_training import QUICK, SIZE, noisy_oracle, settled, tiny_model

from repq import roll_call
from repq.data import DetectionDataset, ImageCache, load_dataset
from repq.distributed import evaluate_together
from repq.errors import TrainingError
from repq.identity import hash_tensors
from repq.recipe import EvalConfig
from repq.train import Processes, Updater, joined_processes, train
from repq.train.loader import training_batches


def dies_in_second_epoch(items: Iterable, /, *, total: int | None = None, label: str = "") -> Iterator:
    for item in items:
        if "2/" in label and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
            os._exit(3)
        yield item


def fewer_images_than_processes(
    folder: Path, few: DetectionDataset, processes: Processes, device: torch.device
) -> None:
    """Of the two batches of an epoch, the last has one image for two processes; so has the set that is evaluated on."""
    config = QUICK.model_copy(update={"batch": 2, "epochs": 1})
    cache = ImageCache(few.records, SIZE, 1 << 24)
    updater = Updater(settled(tiny_model()), config, device)
    updater.add_gradients(list(training_batches(cache, SIZE, config, seed=0, epoch=0, processes=processes))[1:])
    gradients = [parameter.grad for parameter in updater.parameters]
    outcome = train(tiny_model(seed=processes.rank), few, few.subset(few.records[:1]), SIZE, config)
    weights = hash_tensors(outcome.model.state_dict())
    torch.save((gradients, weights, outcome.report.accuracy.ap), folder / f"few{processes.rank}.pt")


def main(folder: Path, dying_rank: int) -> None:
    torch.set_num_threads(1)
    roll_call.MOMENT, roll_call.LINGER = 0.5, 0.2
    train_set, val_set = (load_dataset(folder / "set" / "data.yaml", split) for split in ("train", "val"))
    with joined_processes("cpu") as (processes, device):
        if dying_rank < 0:
            cache = ImageCache(train_set.records, SIZE, 1 << 24)
            updater = Updater(settled(tiny_model()), QUICK, device)
            batch = next(training_batches(cache, SIZE, QUICK, seed=0, epoch=0, processes=processes))
            parts = updater.add_gradients([batch])
            gradients = [parameter.grad for parameter in updater.parameters]
            torch.save((len(batch.images), parts, gradients), folder / f"gradients{processes.rank}.pt")
            accuracy = evaluate_together(noisy_oracle(val_set), val_set, SIZE, EvalConfig(batch=2))
            (folder / f"accuracy{processes.rank}.json").write_text(accuracy.model_dump_json())
            fewer_images_than_processes(folder, train_set.subset(train_set.records[:3]), processes, device)
        # Different weights: the first process's count.
        outcome = train(
            tiny_model(seed=processes.rank),
            train_set,
            val_set,
            SIZE,
            QUICK,
            state_path=folder / "state.safetensors",
            **({"progress": dies_in_second_epoch} if processes.rank == dying_rank else {}),
        )
        (folder / f"weights{processes.rank}.txt").write_text(hash_tensors(outcome.model.state_dict()))
        (folder / f"report{processes.rank}.json").write_text(outcome.report.model_dump_json())


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), int(sys.argv[2]))
    except TrainingError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
