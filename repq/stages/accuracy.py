"""Evaluation and agreement as stages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repq.errors import DataError, RepqError, ToleranceError
from repq.log import Log, quiet
from repq.predictor import Predictor, open_model
from repq.progress import Progress, silent
from repq.recipe import (
    CheckConfig,
    EngineName,
    EvalConfig,
)
from repq.results import (
    Accuracy,
    CheckReport,
)
from repq.stages.data import read_data

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
    return accuracy_of(predictor, dataset, imgsz, config, progress), predictor


def accuracy_of(
    predictor: Predictor,
    dataset: DetectionDataset,
    imgsz: tuple[int, int],
    config: EvalConfig,
    progress: Progress = silent,
) -> Accuracy:
    """COCO AP of an opened model, with the work of a service inside or without."""
    from repq.evaluate import coco_accuracy, detect_images, evaluate
    from repq.service import service_of

    demand_fit(predictor, dataset, imgsz)
    if predictor.plain:
        return evaluate(predictor.infer, dataset, imgsz, config, progress, predictor.layout)
    service = service_of(predictor, imgsz, config)
    return coco_accuracy(detect_images(service.detect, dataset, config.batch, progress, label="evaluating"), dataset)


def demand_fit(predictor: Predictor, dataset: DetectionDataset, imgsz: tuple[int, int]) -> None:
    demand_size(predictor, imgsz)
    if predictor.names is not None and len(predictor.names) != len(dataset.names):
        raise DataError(
            f"{predictor.label} was trained for {len(predictor.names)} classes",
            found=f"{len(dataset.names)} classes in the data set",
            fix="give the data set that the model was trained for",
        )


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


def check_models(
    models: Sequence[Path],
    data: Path,
    split: str,
    imgsz: tuple[int, int],
    config: CheckConfig,
    eval_config: EvalConfig,
    *,
    engines: Sequence[EngineName],
    device: str = "cpu",
    progress: Progress = silent,
    log: Log = quiet,
) -> CheckReport:
    """Compare models with the first one; alone, it is compared with the engines built from it.

    Raises:
        RepqError: a model or the data cannot be used.
    """
    from repq.bench import Candidate, compare

    dataset = read_data(data, split, log)
    if config.images is not None:
        dataset = dataset.subset(dataset.records[: config.images])
    reference_path, *others = models
    if not others and (reference_path.is_dir() or reference_path.suffix == ".onnx"):
        raise RepqError(
            f"{reference_path} has nothing to be compared with",
            fix="give the checkpoint that it was exported from as the first MODEL",
        )
    reference = open_model(reference_path, device=device)
    if others:
        candidates = [
            open_model(path, engine=engine)
            for path in others
            for engine in (engines if path.suffix == ".onnx" else (None,))
        ]
    else:
        candidates = [open_model(reference_path, engine=engine, imgsz=imgsz) for engine in engines]
    for predictor in (reference, *candidates):
        demand_plain(predictor)
        demand_fit(predictor, dataset, imgsz)
    rows = [Candidate(_title(predictor), predictor.infer, *_layer_counts(predictor)) for predictor in candidates]
    return compare(reference.infer, rows, dataset, imgsz, config, eval_config, progress, reference.layout)


def demand_agreement(report: CheckReport) -> None:
    """Fail if the check did.

    Raises:
        ToleranceError: an engine's AP or SNR is outside the bounds.
    """
    if report.passed:
        return
    worst = max(report.engines, key=lambda row: abs(row.ap_gap))
    bound = "" if report.min_snr_db is None else f" or an SNR below {report.min_snr_db} dB"
    raise ToleranceError(
        "the engines do not compute what the reference computes",
        found=f"{worst.engine}: AP gap {worst.ap_gap:+.4f}, SNR {worst.snr_db}; allowed: {report.max_ap_gap}{bound}",
        fix="run `repq describe` on the engine and look for layers in another precision than planned",
    )


def _title(predictor: Predictor) -> str:
    return predictor.engine if predictor.engine in predictor.label else f"{predictor.label} ({predictor.engine})"


def _layer_counts(predictor: Predictor) -> tuple[int, int]:
    if predictor.description is None:
        return 0, 0
    int8 = predictor.description.precision_counts().get("int8", 0)
    return int8, len(predictor.description.layers) - int8
