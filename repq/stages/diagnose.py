"""Diagnosis of a checkpoint as a stage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from repq.api.fitting import look_for_overlap
from repq.api.measuring import ap_of
from repq.api.opening import of_weights
from repq.api.quantizing import ap_on, calibration_images, fused, kept_float
from repq.api.running import Options
from repq.errors import DataError
from repq.preprocessing import PRESETS
from repq.recipe import PtqConfig
from repq.results import Diagnosis, PresetTrial
from repq.stages.context import Context

if TYPE_CHECKING:
    from repq.data import DetectionDataset
    from repq.quant import Weights

LABELLED = 128
"""Labelled images that ways are judged on by AP, at most."""

PREPARED = 32
"""Labelled images that presets are tried on, at most."""


def diagnose_checkpoint(weights: Path, config: PtqConfig, context: Context, *, max_drop: float) -> Diagnosis:
    """Say which way to INT8 a float checkpoint needs, and with labels whether its preprocessing fits.

    Of the images drawn, the last third judges by SNR, and up to 128 labelled ones that calibrated nothing by AP.

    Args:
        max_drop: AP that may be lost.

    Raises:
        RepqError: the checkpoint or the data is not usable, or there are fewer than two images.
    """
    from repq.data import calibration_set
    from repq.quant import on_device_of
    from repq.quant.diagnosis import diagnose

    imgsz, eval_config, progress = context.imgsz, context.eval_config, context.progress
    dataset = context.train_set()
    records = calibration_set(dataset, config.calibration)
    start = fused(context.open_float(weights), context.device)
    model = start.model
    if len(records) < 2:
        raise DataError("a diagnosis needs images to judge on", found=f"{len(records)} image", fix="give at least two")
    look_for_overlap(records, context.data_path, context.val_split, context.log)
    config = config.model_copy(update={"keep_float": kept_float(model, config, context.log)})
    shown = len(records) - max(1, len(records) // 3)
    images = calibration_images(model, imgsz, config, eval_config, progress)
    calibration, judging = images(records[:shown]), images(records[shown:])
    calibrating = {record.path for record in records[:shown]}
    held_out = dataset.subset([record for record in dataset.records if record.path not in calibrating][:LABELLED])
    ap = ap_on(start, held_out, imgsz, eval_config, progress) if held_out.objects else None
    tried = held_out.subset([record for record in held_out.records if len(record.labels)][:PREPARED])
    presets = _presets(start, tried, context) if tried.objects else ()
    found = diagnose(
        model, calibration, tuple(on_device_of(model, judging)), config, progress, ap=ap, max_drop=max_drop
    )
    return found.model_copy(update={"presets": presets, "labelled": len(tried) if presets else 0})


def _presets(weights: Weights, dataset: DetectionDataset, context: Context) -> tuple[PresetTrial, ...]:
    """AP of the float model with every preset, and with its own preprocessing if that is none of them."""
    model = of_weights("the model", weights, Options(device=context.device))
    imgsz, config, progress = context.imgsz, context.eval_config, context.progress
    forms = {entry.name: entry.preprocessing for entry in PRESETS}
    if model.preprocessing not in forms.values():
        forms["its own"] = model.preprocessing
    return tuple(
        PresetTrial(
            name=name,
            ap=ap_of(replace(model, preprocessing=form), dataset, imgsz, config, progress),
            taken=form == model.preprocessing,
        )
        for name, form in forms.items()
    )
