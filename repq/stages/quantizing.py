"""Post-training quantization as a stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from repq.checkpoints import open_float
from repq.log import Log, quiet
from repq.predictor import from_torch, resolve_device
from repq.progress import Progress, silent
from repq.recipe import CorrectionConfig, EvalConfig, LetterboxConfig, PtqConfig
from repq.results import Accuracy, PtqReport, QdqCount
from repq.stages.accuracy import accuracy_of
from repq.stages.data import read_data

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from onnx import ModelProto
    from torch import nn

    from repq.data import DetectionDataset, ImageRecord
    from repq.layers import LayerId
    from repq.model import Detector
    from repq.quant import QuantizedModel
    from repq.scales import ScaleTable


_LABELLED = 128
"""Images of the train split that the AP of trials is measured on."""


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
    from repq.quant import apply_scales, extra_macs_share, save_quantized, scale_table
    from repq.quant.plan_file import read_plan

    fused, names = open_fused(weights, device, log)
    if plan is not None:
        kept = read_plan(plan, layer_ids(fused), fused.spec.name).float_
        config = config.model_copy(update={"keep_float": (*config.keep_float, *kept)})
    train_set, val_set = read_data(data, train_split, log), read_data(data, val_split, log)
    records = _calibration_images(train_set, config, log)
    warn_of_overlap(records, val_set.records, log)
    graph = _float_graph(fused, imgsz, config)
    groups = _groups(graph, fused, config)
    outcome = _quantize(fused, train_set, records, imgsz, config, eval_config, device, progress, log, groups)
    maxima = {} if graph is None else _maxima(graph, records, imgsz, eval_config, progress)

    def accuracy(model: Detector) -> Accuracy:
        return accuracy_of(from_torch(weights.name, model, device=device), val_set, imgsz, eval_config, progress)

    before, after, own, counts = accuracy(fused), accuracy(outcome.model), None, None
    # Corrections fit the scales that they were made with: without those scales there is nothing to compare.
    if outcome.own_scales is not None and not _corrected(outcome.config):
        assert graph is not None
        counts = _counts(graph, outcome.own_scales)
        shared = scale_table(outcome.model)
        apply_scales(outcome.model, outcome.own_scales)
        own = accuracy(outcome.model)
        apply_scales(outcome.model, shared)
    save_quantized(out, outcome.model, outcome.config, names=names, maxima=maxima)
    return PtqReport(
        model=fused.spec.name,
        method=outcome.config.calibration.method,
        scheme=config.scheme,
        images=outcome.images,
        layers=outcome.layers,
        int8_macs_share=outcome.int8_macs_share,
        accuracy_float=before,
        accuracy_quantized=after,
        accuracy_own_scales=own,
        qdq_own_scales=counts,
        share_scales=config.share_scales,
        shared_groups=outcome.shared_groups,
        settings=outcome.config.model_dump(mode="json"),
        trials=outcome.trials,
        extra_macs_share=extra_macs_share(outcome.layers),
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
    fused, _ = open_fused(weights, device, log)
    records = _calibration_images(train_set, config, log)
    groups = _groups(_float_graph(fused, imgsz, config) if config.share_scales != "none" else None, fused, config)
    return _quantize(fused, train_set, records, imgsz, config, eval_config, device, progress, log, groups)


def warn_of_overlap(deciding: Sequence[ImageRecord], evaluation: Sequence[ImageRecord], log: Log) -> None:
    """Warn of images that settings are chosen on and accuracy is reported on."""
    from repq.quant.sensitivity import image_hashes, overlap_note

    sizes = {record.path.stat().st_size for record in deciding}
    alike = [record for record in evaluation if record.path.stat().st_size in sizes]  # others cannot be equal
    overlap = overlap_note(image_hashes(deciding), image_hashes(alike))
    if overlap is not None:
        log(overlap)


def open_fused(weights: Path, device: str, log: Log) -> tuple[Detector, tuple[str, ...] | None]:
    """Open a float checkpoint and fuse it; also return the class names that it holds."""
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


@dataclass(frozen=True)
class CalibrationImages:
    """Network inputs, loaded anew each time they are gone through: only a batch is in memory."""

    records: Sequence[ImageRecord]
    imgsz: tuple[int, int]
    batch: int
    letterbox: LetterboxConfig
    progress: Progress

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        from repq.data import batches

        loaded = batches(self.records, self.imgsz, self.batch, self.letterbox)
        for batch in self.progress(loaded, total=-(-len(self.records) // self.batch), label="calibrate"):
            yield batch.images


def _quantize(
    fused: Detector,
    train_set: DetectionDataset,
    records: list[ImageRecord],
    imgsz: tuple[int, int],
    config: PtqConfig,
    eval_config: EvalConfig,
    device: str,
    progress: Progress,
    log: Log,
    groups: tuple[tuple[LayerId, ...], ...] = (),
) -> QuantizedModel:
    from repq.quant import on_device_of, quantize, quantize_at_best, quantize_in_steps

    def images(chosen: Sequence[ImageRecord]) -> CalibrationImages:
        return CalibrationImages(chosen, imgsz, config.calibration.batch, eval_config.letterbox, progress)

    def ap_on_train(model: nn.Module) -> float:
        predictor = from_torch("trial", cast("Detector", model), device=device)
        labelled = train_set.subset(train_set.records[:_LABELLED])
        return accuracy_of(predictor, labelled, imgsz, eval_config, progress).ap

    if config.auto:
        shown = len(records) - len(records) // 4
        held_out = tuple(on_device_of(fused, images(records[shown:])))
        outcome = quantize_at_best(
            fused, images(records[:shown]), held_out, config, ap_on_train=ap_on_train, progress=progress,
            groups=groups,
        )  # fmt: skip
    elif _corrected(config):
        outcome = quantize_in_steps(fused, images(records), config, progress, groups=groups)
    else:
        outcome = quantize(fused, images(records), config, groups=groups)
    for note in outcome.notes:
        log(note)
    return outcome


def _corrected(config: PtqConfig) -> bool:
    return config.correct != CorrectionConfig(images=config.correct.images)


def _float_graph(fused: Detector, imgsz: tuple[int, int], config: PtqConfig) -> ModelProto | None:
    """The graph in which scales are shared and FP16 may overflow; both concern TensorRT, which is symmetric."""
    from repq.export import export_float

    return export_float(fused, imgsz) if config.scheme == "symmetric" or config.share_scales != "none" else None


def _groups(graph: ModelProto | None, fused: Detector, config: PtqConfig) -> tuple[tuple[LayerId, ...], ...]:
    """The INT8 layers whose inputs must share a scale."""
    from repq.graph import layer_groups
    from repq.layers import QuantPlan
    from repq.model import layer_ids

    if graph is None or config.share_scales == "none":
        return ()
    return layer_groups(graph, QuantPlan.keeping_float(layer_ids(fused), config.keep_float).int8)


def _maxima(
    graph: ModelProto, records: list[ImageRecord], imgsz: tuple[int, int], eval_config: EvalConfig, progress: Progress
) -> dict[str, float]:
    """Largest magnitude of each tensor of the float graph on the calibration images, by anchor."""
    from repq.data import batches
    from repq.graph import anchor_maxima, tensor_maxima

    loaded = batches(records, imgsz, 1, eval_config.letterbox)
    images = (batch.images for batch in progress(loaded, total=len(records), label="maxima"))
    return anchor_maxima(graph, tensor_maxima(graph, images))


def _counts(graph: ModelProto, scales: ScaleTable) -> QdqCount:
    """Q, DQ and predicted extra kernels of the graph with these scales."""
    from repq.graph import count_qdq, insert_qdq, propagate_qdq

    return count_qdq(propagate_qdq(insert_qdq(graph, scales)))
