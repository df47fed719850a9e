"""Diagnosis of a checkpoint as a stage."""

from __future__ import annotations

from pathlib import Path

from repq.api.fitting import look_for_overlap
from repq.api.quantizing import LABELLED, CalibrationImages, ap_on, fused, open_float
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
    max_drop: float,
    device: str = "cpu",
    progress: Progress = silent,
    log: Log = quiet,
) -> Diagnosis:
    """Say which way to INT8 a float checkpoint needs.

    Of the images drawn, the last third judges by SNR, and up to 128 labelled ones that calibrated nothing by AP.

    Args:
        max_drop: AP that may be lost.
        val_split: where accuracy is reported later, to warn of images that are in both.

    Raises:
        RepqError: the checkpoint or the data is not usable, or there are fewer than two images.
    """
    from repq.data import calibration_set
    from repq.quant import on_device_of
    from repq.quant.diagnosis import diagnose

    dataset = read_data(data, split, log)
    records = calibration_set(dataset, config.calibration)
    start = fused(open_float(weights, log, imgsz), device)
    model = start.model
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
    calibrating = {record.path for record in records[:shown]}
    held_out = dataset.subset([record for record in dataset.records if record.path not in calibrating][:LABELLED])
    ap = ap_on(start, held_out, imgsz, eval_config, progress) if held_out.objects else None
    return diagnose(model, calibration, tuple(on_device_of(model, judging)), config, progress, ap=ap, max_drop=max_drop)
