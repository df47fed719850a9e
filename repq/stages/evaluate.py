"""Evaluation as a stage, and whether a model fits a data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from repq.errors import RepqError
from repq.log import Log, quiet
from repq.predictor import Predictor, open_model
from repq.progress import Progress, silent
from repq.recipe import EvalConfig
from repq.results import Accuracies, Accuracy, CheckReport
from repq.stages.build import built
from repq.stages.data import fitted, read_data
from repq.stages.stage import Job, Stage

if TYPE_CHECKING:
    from repq.data import DetectionDataset


def evaluate_model(
    model: Path,
    data: Path,
    split: str,
    imgsz: tuple[int, int],
    config: EvalConfig,
    *,
    engine: Any = None,
    device: str = "cpu",
    threads: int | None = None,
    progress: Progress = silent,
    log: Log = quiet,
) -> tuple[Accuracy, Predictor]:
    """COCO AP of a model of any form.

    Raises:
        RepqError: the model or the data cannot be used, or they disagree on the classes or the size.
    """
    dataset = read_data(data, split, log)
    predictor = open_model(model, engine=engine, imgsz=imgsz, device=device, threads=threads)
    return accuracy_of(predictor, dataset, imgsz, config, progress, log), predictor


def accuracy_of(
    predictor: Predictor,
    dataset: DetectionDataset,
    imgsz: tuple[int, int],
    config: EvalConfig,
    progress: Progress = silent,
    log: Log = quiet,
) -> Accuracy:
    """COCO AP of an opened model, with the work of a service inside or without.

    Raises:
        RepqError: the model does not fit the data set, or there is not one labelled object.
    """
    from repq.data import demand_objects
    from repq.evaluate import coco_accuracy, detect_images, evaluate
    from repq.service import service_of

    dataset = demand_fit(predictor, dataset, imgsz, log)
    demand_objects(dataset)
    if predictor.plain:
        return evaluate(predictor.infer, dataset, imgsz, config, progress)
    service = service_of(predictor, imgsz, config)
    return coco_accuracy(detect_images(service.detect, dataset, config.batch, progress, label="evaluating"), dataset)


def demand_fit(
    predictor: Predictor, dataset: DetectionDataset, imgsz: tuple[int, int], log: Log = quiet
) -> DetectionDataset:
    """Check that a model takes images of this size; return the data set with the model's classes in their order.

    Raises:
        RepqError: another size or other classes.
    """
    demand_size(predictor, imgsz)
    return fitted(dataset, predictor.names, predictor.label, log)


def demand_plain(predictor: Predictor) -> None:
    """Refuse a graph that does the work of a service itself, where its detections are to be compared.

    Raises:
        RepqError: it has preprocessing or suppression inside.
    """
    if not predictor.plain:
        inside = "suppression" if predictor.nms is not None else "preprocessing"
        raise RepqError(
            f"the detections of {predictor.label} cannot be compared",
            found=f"{inside} inside the graph",
            fix="compare the graph exported without it; `repq eval` gives the AP of either",
        )


def demand_size(predictor: Predictor, imgsz: tuple[int, int]) -> None:
    if predictor.imgsz is not None and predictor.imgsz != imgsz:
        raise RepqError(
            f"{predictor.label} takes images of {predictor.imgsz[0]}x{predictor.imgsz[1]}",
            found=f"--imgsz {imgsz[0]}x{imgsz[1]}",
            fix="give the model's own size, or export it again for this one",
        )


def _evaluate(job: Job) -> Accuracies:
    """AP of every engine; those that the check has run on the whole split are not run again."""
    recipe, check = job.recipe, job.artifacts["check"].result(CheckReport)
    dataset = read_data(job.data, recipe.data.val, job.log)
    known = {row.model: row.accuracy for row in check.engines if row.accuracy.images == len(dataset)}
    found = {}
    for name, folder in built(job).items():
        if name not in known:
            predictor = open_model(folder)
            known[name] = accuracy_of(predictor, dataset, recipe.imgsz, recipe.eval, job.progress)
        found[name] = known[name]
        job.log(f"  {name}: AP {found[name].ap:.4f}, AP50 {found[name].ap50:.4f}")
    return Accuracies(models=found)


STAGE = Stage(
    "eval", _evaluate, uses=("imgsz", "eval"), reads=("build/*", "check/check.json"), splits=("val",),
    result=Accuracies, on_machine=True, wanted=lambda recipe: True,
)  # fmt: skip
