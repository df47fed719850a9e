"""Evaluation as a stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from repq.api.measuring import accuracy_of
from repq.api.model import Model
from repq.api.opening import load
from repq.results import Accuracies, Accuracy
from repq.stages.build import built
from repq.stages.context import Context
from repq.stages.stage import Job, Stage


def evaluate_model(
    model: Path, context: Context, *, engine: Any = None, threads: int | None = None
) -> tuple[Accuracy, Model]:
    """COCO AP of a model of any form.

    Raises:
        RepqError: the model or the data cannot be used, or they disagree on the classes or the size.
    """
    dataset, imgsz = context.val_set(), context.imgsz
    opened = load(model, engine=engine, imgsz=imgsz, device=context.device, threads=threads, graph=context.graph)
    opened = opened.on(concurrent=True)
    return accuracy_of(opened, dataset, imgsz, context.eval_config, context.progress, context.log), opened


def _evaluate(job: Job) -> Accuracies:
    """AP of every engine; what the check has measured on the whole split, in one pass, is not measured again."""
    context, checked = job.context, job.artifacts["check"].result(Accuracies, "accuracies.json")
    dataset, config = context.val_set(), context.eval_config
    whole = {name: found for name, found in checked.models.items() if found.images == len(dataset)}
    known = whole if config.tta is None else {}
    found = {}
    for name, folder in built(job).items():
        if name not in known:
            opened = load(folder).on(concurrent=True)
            known[name] = accuracy_of(opened, dataset, context.imgsz, config, job.progress)
        found[name] = known[name]
        job.log(f"  {name}: AP {found[name].ap:.4f}, AP50 {found[name].ap50:.4f}")
    return Accuracies(models=found)


STAGE = Stage(
    "eval", _evaluate, uses=("imgsz", "eval"), reads=("build/*", "check/accuracies.json"), splits=("val",),
    result=Accuracies, on_machine=True, augmented=True,
)  # fmt: skip
