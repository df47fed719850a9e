"""Diagnosis of a checkpoint as a stage."""

from __future__ import annotations

from pathlib import Path

from repq.api.fitting import look_for_overlap
from repq.api.quantizing import CalibrationImages, fused, open_float
from repq.errors import DataError
from repq.log import Log, quiet
from repq.progress import Progress, silent
from repq.recipe import EvalConfig, PtqConfig
from repq.results import Diagnosis
from repq.stages.data import read_data


def diagnose_checkpoint(
    weights: Path,
    config: PtqConfig,
    *,
    data: Path,
    split: str = "train",
    val_split: str | None = "val",
    imgsz: tuple[int, int],
    eval_config: EvalConfig,
    device: str = "cpu",
    progress: Progress = silent,
    log: Log = quiet,
) -> Diagnosis:
    """Say which way to INT8 a float checkpoint needs; of the images drawn, the last third judges.

    Args:
        val_split: where accuracy is reported later, to warn of images that are in both.

    Raises:
        RepqError: the checkpoint or the data is not usable, or there are fewer than two images.
    """
    from repq.data import calibration_set
    from repq.quant import on_device_of
    from repq.quant.diagnosis import diagnose

    records = calibration_set(read_data(data, split, log), config.calibration)
    model = fused(open_float(weights, log, imgsz), device).model
    if len(records) < 2:
        raise DataError("a diagnosis needs images to judge on", found=f"{len(records)} image", fix="give at least two")
    look_for_overlap(records, data, val_split, log)
    shown = len(records) - max(1, len(records) // 3)
    calibration, judging = (
        CalibrationImages(
            chosen, imgsz, config.calibration.batch, eval_config.letterbox, model.spec.preprocessing, progress
        )
        for chosen in (records[:shown], records[shown:])
    )
    return diagnose(model, calibration, tuple(on_device_of(model, judging)), config, progress)
