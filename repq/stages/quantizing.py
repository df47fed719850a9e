"""Post-training quantization as a stage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from repq.checkpoints import open_float
from repq.log import Log, quiet
from repq.predictor import from_torch, resolve_device
from repq.progress import Progress, silent
from repq.recipe import EvalConfig, PtqConfig
from repq.results import PtqReport
from repq.stages.accuracy import accuracy_of
from repq.stages.data import read_data

if TYPE_CHECKING:
    from repq.data import DetectionDataset, ImageRecord
    from repq.model import Detector
    from repq.quant import QuantizedModel


def ptq_checkpoint(
    weights: Path,
    out: Path,
    config: PtqConfig,
    *,
    data: Path,
    train_split: str = "train",
    val_split: str = "val",
    imgsz: tuple[int, int],
    eval_config: EvalConfig,
    plan: Path | None = None,
    device: str = "cpu",
    progress: Progress = silent,
    log: Log = quiet,
) -> PtqReport:
    """Quantize a checkpoint after training (fused on the way if it is not), evaluate before and after, write it.

    Args:
        plan: a plan file, whose float layers are added to ``config.keep_float``.

    Raises:
        RepqError: the checkpoint, the data, the plan or a selector is not usable, or an activation is not finite.
    """
    from repq.model import layer_ids
    from repq.quant import save_quantized
    from repq.quant.plan_file import read_plan
    from repq.quant.sensitivity import image_hashes, overlap_note

    fused, names = _open_fused(weights, device, log)
    if plan is not None:
        kept = read_plan(plan, layer_ids(fused), fused.spec.name).float_
        config = config.model_copy(update={"keep_float": (*config.keep_float, *kept)})
    train_set, val_set = read_data(data, train_split, log), read_data(data, val_split, log)
    records = _calibration_images(train_set, config, log)
    sizes = {record.path.stat().st_size for record in records}
    alike = [record for record in val_set.records if record.path.stat().st_size in sizes]  # others cannot be equal
    overlap = overlap_note(image_hashes(records), image_hashes(alike))
    if overlap is not None:
        log(overlap)
    outcome = _calibrate(fused, records, imgsz, config, eval_config, progress, log)
    before = accuracy_of(from_torch(weights.name, fused, device=device), val_set, imgsz, eval_config, progress)
    after = accuracy_of(from_torch(weights.name, outcome.model, device=device), val_set, imgsz, eval_config, progress)
    save_quantized(out, outcome.model, config, names=names)
    return PtqReport(
        model=fused.spec.name,
        method=config.calibration.method,
        scheme=config.scheme,
        images=len(records),
        layers=outcome.layers,
        int8_macs_share=outcome.int8_macs_share,
        accuracy_float=before,
        accuracy_quantized=after,
    )


def calibrated(
    weights: Path,
    config: PtqConfig,
    train_set: DetectionDataset,
    imgsz: tuple[int, int],
    eval_config: EvalConfig,
    device: str,
    progress: Progress = silent,
    log: Log = quiet,
) -> QuantizedModel:
    """Open, fuse and calibrate a float checkpoint."""
    fused, _ = _open_fused(weights, device, log)
    records = _calibration_images(train_set, config, log)
    return _calibrate(fused, records, imgsz, config, eval_config, progress, log)


def _open_fused(weights: Path, device: str, log: Log) -> tuple[Detector, tuple[str, ...] | None]:
    from repq.reparam import fuse

    opened = open_float(weights, log)
    return fuse(opened.model).to(resolve_device(device)), opened.names


def _calibration_images(train_set: DetectionDataset, config: PtqConfig, log: Log) -> list[ImageRecord]:
    from repq.data import calibration_set

    wanted = config.calibration
    records = calibration_set(train_set, wanted)
    if len(records) < wanted.images and wanted.manifest is None:
        log(f"calibrating on all {len(records)} images of {train_set.split!r}: {wanted.images} were asked for")
    return records


def _calibrate(
    fused: Detector,
    records: list[ImageRecord],
    imgsz: tuple[int, int],
    config: PtqConfig,
    eval_config: EvalConfig,
    progress: Progress,
    log: Log,
) -> QuantizedModel:
    from repq.data import batches
    from repq.quant import quantize

    loaded = batches(records, imgsz, config.calibration.batch, eval_config.letterbox)
    steps = -(-len(records) // config.calibration.batch)
    outcome = quantize(fused, (batch.images for batch in progress(loaded, total=steps, label="calibrate")), config)
    for note in outcome.notes:
        log(note)
    return outcome
