"""Evaluation and agreement as stages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from repq.api.measuring import accuracy_of, agreement, demand_plain
from repq.api.model import Model
from repq.api.opening import load
from repq.errors import RepqError, ToleranceError
from repq.log import Log, quiet
from repq.progress import Progress, silent
from repq.recipe import CheckConfig, EngineName, EvalConfig
from repq.results import Accuracy, CheckReport
from repq.stages.data import read_data

__all__ = ["accuracy_of", "check_models", "demand_agreement", "demand_plain", "evaluate_model"]


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
) -> tuple[Accuracy, Model]:
    """COCO AP of a model of any form.

    Raises:
        RepqError: the model or the data cannot be used, or they disagree on the classes or the size.
    """
    dataset = read_data(data, split, log)
    opened = load(model, engine=engine, imgsz=imgsz, device=device, threads=threads)
    return accuracy_of(opened, dataset, imgsz, config, progress), opened


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
    dataset = read_data(data, split, log)
    reference_path, *others = models
    if not others and (reference_path.is_dir() or reference_path.suffix == ".onnx"):
        raise RepqError(
            f"{reference_path} has nothing to be compared with",
            fix="give the checkpoint that it was exported from as the first MODEL",
        )
    reference = load(reference_path, device=device)
    if others:
        candidates = [
            load(path, engine=engine) for path in others for engine in (engines if path.suffix == ".onnx" else (None,))
        ]
    else:
        candidates = [load(reference_path, engine=engine, imgsz=imgsz) for engine in engines]
    return agreement(reference, candidates, dataset, imgsz, config, eval_config, progress)


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
