"""Evaluation as a stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from repq.api.measuring import accuracy_of
from repq.api.model import Model
from repq.api.opening import load
from repq.log import Log, quiet
from repq.progress import Progress, silent
from repq.recipe import EvalConfig, GraphConfig
from repq.results import Accuracies, Accuracy
from repq.stages.build import built
from repq.stages.data import read_data
from repq.stages.stage import Job, Stage


def evaluate_model(
    model: Path,
    data: Path,
    split: str,
    imgsz: tuple[int, int],
    config: EvalConfig,
    *,
    engine: Any = None,
    graph: GraphConfig = GraphConfig(),
    device: str = "cpu",
    threads: int | None = None,
    progress: Progress = silent,
    log: Log = quiet,
) -> tuple[Accuracy, Model]:
    """COCO AP of a model of any form.

    Raises:
        RepqError: the model or the data cannot be used, or they disagree on the classes or the size.
    """
    dataset = read_data(data, split, log, progress)
    opened = load(model, engine=engine, imgsz=imgsz, device=device, threads=threads, graph=graph).on(concurrent=True)
    return accuracy_of(opened, dataset, imgsz, config, progress, log), opened


def _evaluate(job: Job) -> Accuracies:
    """AP of every engine; what the check has measured on the whole split, in one pass, is not measured again."""
    recipe, checked = job.recipe, job.artifacts["check"].result(Accuracies, "accuracies.json")
    dataset = read_data(job.data, recipe.data.val, job.log, job.progress)
    whole = {name: found for name, found in checked.models.items() if found.images == len(dataset)}
    known = whole if recipe.eval.tta is None else {}
    found = {}
    for name, folder in built(job).items():
        if name not in known:
            opened = load(folder).on(concurrent=True)
            known[name] = accuracy_of(opened, dataset, recipe.imgsz, recipe.eval, job.progress)
        found[name] = known[name]
        job.log(f"  {name}: AP {found[name].ap:.4f}, AP50 {found[name].ap50:.4f}")
    return Accuracies(models=found)


STAGE = Stage(
    "eval", _evaluate, uses=("imgsz", "eval"), reads=("build/*", "check/accuracies.json"), splits=("val",),
    result=Accuracies, on_machine=True, augmented=True,
)  # fmt: skip
