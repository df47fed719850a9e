"""Evaluation as a stage."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repq.api.measuring import accuracy_of
from repq.api.model import Model
from repq.api.opening import load
from repq.machine.cpu import cpu_cores
from repq.recipe import EvalConfig
from repq.results import Accuracies, Accuracy
from repq.stages.build import built
from repq.stages.context import Context
from repq.stages.stage import Job, Stage
from repq.torchrun import is_alone, processes_here

if TYPE_CHECKING:
    from repq.data import DetectionDataset


def evaluate_model(
    model: Path, context: Context, *, engine: Any = None, threads: int | None = None
) -> tuple[Accuracy, Model]:
    """COCO AP of a model of any form, by all of torchrun's processes together; every one gets it.

    Processes of one machine share its cores where an engine would take all.

    Raises:
        RepqError: the model or the data cannot be used, or they disagree on the classes or the size; or another process
            has other data, or ended.
    """
    if threads is None and processes_here() > 1 and (model.is_dir() or model.suffix == ".onnx"):
        threads = max(1, cpu_cores() // processes_here())
    with context.shared() as (own, _):
        imgsz = own.imgsz
        with _failing_together():
            dataset = own.val_set()
            opened = load(model, engine=engine, imgsz=imgsz, device=own.device, threads=threads, graph=own.graph)
        opened = opened.on(concurrent=True)
        _demand_same(dataset, model, imgsz, own.eval_config)
        return accuracy_of(opened, dataset, imgsz, own.eval_config, own.progress, own.log), opened


def _failing_together() -> AbstractContextManager[None]:
    """`repq.distributed.failing_together`; who is alone need not load torch, which some engines do without."""
    if is_alone():
        return nullcontext()
    from repq.distributed import failing_together

    return failing_together()


def _demand_same(dataset: DetectionDataset, model: Path, imgsz: tuple[int, int], config: EvalConfig) -> None:
    """Check that all processes have the same; engines in folders are built by each host."""
    if not is_alone():
        from repq.distributed import demand_same_data, demand_same_settings

        demand_same_data([dataset])
        demand_same_settings({"model": model if model.is_file() else None, "imgsz": imgsz, "eval": config})


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
