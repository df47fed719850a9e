"""One of two processes that are started with unequal settings: ``other_settings_worker.py FOLDER``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from small_training import QUICK, SIZE, tiny_model

from repq.data import load_dataset
from repq.distributed import joined_processes
from repq.errors import TrainingError
from repq.quant import quantize
from repq.quant.qat import train_quantized
from repq.recipe import CalibrationConfig, EvalConfig, PtqConfig, QatConfig, SensitivityConfig
from repq.reparam import fuse
from repq.stages import Context, evaluate_model, ptq_checkpoint
from repq.stages.sensitivity import measure_sensitivity
from repq.train import train

PTQ = PtqConfig(auto=False, calibration=CalibrationConfig(images=2, bins=128))
EVAL = EvalConfig(batch=4)


def cases(folder: Path, rank: int) -> dict[str, Callable[[], object]]:
    """By what differs between the processes."""
    weights, data, mine = folder / "w0.safetensors", folder / "set" / "data.yaml", folder / str(rank)
    sets = load_dataset(data, "train"), load_dataset(data, "val")
    usual, large = Context(SIZE, data, EVAL), Context((64, 64 + 32 * rank), data, EVAL)
    strict = Context(SIZE, data, EVAL.model_copy(update={"confidence": 0.1 + 0.1 * rank}))
    longer = QUICK.model_copy(update={"epochs": QUICK.epochs + rank})
    faster = QatConfig(learning_rate=1e-4 * (1 + rank), batch=4, workers=0)
    teacher = fuse(tiny_model().eval())
    student = quantize(teacher, [torch.rand(2, 3, *SIZE) * 255], PTQ).model
    other = PTQ.model_copy(update={"scheme": ("symmetric", "asymmetric")[rank]})
    more = SensitivityConfig(images=2 + rank, ap=())
    return {
        "seed": lambda: train(tiny_model(), *sets, SIZE, QUICK, seed=rank),
        "epochs": lambda: train(tiny_model(), *sets, SIZE, longer),
        "learning_rate": lambda: train_quantized(student, teacher, *sets, SIZE, faster),
        "eval.confidence": lambda: evaluate_model(weights, strict),
        "imgsz": lambda: evaluate_model(weights, large),
        "model.sha256": lambda: evaluate_model(folder / f"w{rank}.safetensors", usual),
        "ptq.scheme": lambda: ptq_checkpoint(weights, mine / "int8.safetensors", other, usual),
        "images": lambda: measure_sensitivity(weights, mine / "sensitivity", more, None, PTQ, usual),
    }


def main(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    (folder / str(rank)).mkdir()
    with joined_processes("cpu"):
        for name, call in cases(folder, rank).items():
            try:
                call()
            except TrainingError as error:
                (folder / str(rank) / f"{name}.txt").write_text(f"{error} {error.found}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
