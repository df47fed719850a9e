"""Diagnosis of a checkpoint as a stage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from repq.api.fitting import look_for_overlap
from repq.api.measuring import ap_of
from repq.api.opening import of_weights
from repq.api.quantizing import ap_on, calibration_images, fused, open_float
from repq.api.running import Options
from repq.errors import DataError
from repq.log import Log, quiet
from repq.preprocessing import PRESETS
from repq.progress import Progress, silent
from repq.recipe import EvalConfig, GraphConfig, PtqConfig
from repq.results import Diagnosis, PresetTrial
from repq.stages.data import read_data

if TYPE_CHECKING:
    from repq.data import DetectionDataset
    from repq.quant import Weights

LABELLED = 128
"""Labelled images that ways are judged on by AP, at most."""

PREPARED = 32
"""Labelled images that presets are tried on, at most."""


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
    graph: GraphConfig = GraphConfig(),
    device: str = "cpu",
    progress: Progress = silent,
    log: Log = quiet,
) -> Diagnosis:
    """Say which way to INT8 a float checkpoint needs, and with labels whether its preprocessing fits.

    Of the images drawn, the last third judges by SNR, and up to 128 labelled ones that calibrated nothing by AP.

    Args:
        max_drop: AP that may be lost.
        graph: what the file of ``weights`` does not say of itself.
        val_split: where accuracy is reported later, to warn of images that are in both.

    Raises:
        RepqError: the checkpoint or the data is not usable, or there are fewer than two images.
    """
    from repq.data import calibration_set
    from repq.quant import on_device_of
    from repq.quant.diagnosis import diagnose

    dataset = read_data(data, split, log, progress)
    records = calibration_set(dataset, config.calibration)
    start = fused(open_float(weights, log, imgsz, graph), device)
    model = start.model
    if len(records) < 2:
        raise DataError("a diagnosis needs images to judge on", found=f"{len(records)} image", fix="give at least two")
    look_for_overlap(records, data, val_split, log)
    shown = len(records) - max(1, len(records) // 3)
    images = calibration_images(model, imgsz, config, eval_config, progress)
    calibration, judging = images(records[:shown]), images(records[shown:])
    calibrating = {record.path for record in records[:shown]}
    held_out = dataset.subset([record for record in dataset.records if record.path not in calibrating][:LABELLED])
    ap = ap_on(start, held_out, imgsz, eval_config, progress) if held_out.objects else None
    tried = held_out.subset([record for record in held_out.records if len(record.labels)][:PREPARED])
    presets = _presets(start, tried, imgsz, eval_config, device, progress) if tried.objects else ()
    found = diagnose(
        model, calibration, tuple(on_device_of(model, judging)), config, progress, ap=ap, max_drop=max_drop
    )
    return found.model_copy(update={"presets": presets, "labelled": len(tried) if presets else 0})


def _presets(
    weights: Weights, dataset: DetectionDataset, imgsz: tuple[int, int], config: EvalConfig, device: str,
    progress: Progress,
) -> tuple[PresetTrial, ...]:  # fmt: skip
    """AP of the float model with every preset, and with its own preprocessing if that is none of them."""
    model = of_weights("the model", weights, Options(device=device))
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
