"""Quantization-aware training as a stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from repq.checkpoints import open_float
from repq.errors import QuantizationError
from repq.log import Log, quiet
from repq.predictor import from_torch, resolve_device
from repq.progress import Progress, silent
from repq.recipe import CalibrationConfig, CorrectionConfig, EvalConfig, PtqConfig, QatConfig
from repq.results import Accuracy, QatReport
from repq.stages.data import demand_same_order, fitted, read_data
from repq.stages.evaluate import demand_fit
from repq.stages.ptq import calibrated
from repq.stages.stage import Job, Section, Stage

if TYPE_CHECKING:
    from repq.data import DetectionDataset
    from repq.layers import QuantPlan
    from repq.model import Detector
    from repq.quant import QuantizedCheckpoint


@dataclass(frozen=True)
class QatSource:
    """What training starts from, and what it imitates.

    Attributes:
        weights: a checkpoint that `ptq_checkpoint` wrote, or a float one, which is calibrated first.
        teacher: a float checkpoint; by default the float weights of ``weights``.
        scheme: of a calibration; a quantized checkpoint has its own.
        keep_float, plan: layers that stay in float, besides those that a quantized checkpoint keeps in float.
        calibration: of float weights.
    """

    weights: Path
    teacher: Path | None = None
    scheme: Literal["symmetric", "asymmetric"] | None = None
    keep_float: tuple[str, ...] = ()
    plan: Path | None = None
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)


@dataclass(frozen=True)
class _Start:
    model: Detector
    teacher: Detector
    plan: QuantPlan
    ptq: PtqConfig
    names: tuple[str, ...] | None
    teacher_names: tuple[str, ...] | None
    maxima: Mapping[str, float]


def qat_checkpoint(
    source: QatSource,
    out: Path,
    state: Path,
    config: QatConfig,
    *,
    data: Path,
    splits: tuple[str, str] = ("train", "val"),
    imgsz: tuple[int, int],
    eval_config: EvalConfig,
    device: str = "cpu",
    seed: int = 0,
    progress: Progress = silent,
    log: Log = quiet,
) -> QatReport:
    """Train a quantized model, alone or as one of torchrun's processes, evaluate before and after, and write it.

    Args:
        state: file that lets a killed training continue; it is removed when the checkpoint is written.

    Raises:
        RepqError: the checkpoints, the data, the plan or a selector are not usable, or the loss is not finite.
    """
    from repq.data import demand_objects, warn_of_overlap
    from repq.quant import save_quantized
    from repq.quant.qat import train_quantized
    from repq.train import Board, joined_processes

    resolve_device(device)
    with joined_processes(device) as (processes, own_device):
        if not processes.is_first:
            progress, log = silent, quiet
        train_set, val_set = (read_data(data, split, log) for split in splits)
        demand_objects(val_set)
        if processes.is_first:
            warn_of_overlap(train_set.records, val_set.records, log, "are trained on")
        start = _start(source, train_set, imgsz, eval_config, str(own_device), progress, log)
        train_set, val_set = (fitted(part, start.names, source.weights.name, log) for part in (train_set, val_set))
        demand_same_order(val_set, start.teacher_names, "the teacher")

        def accuracy(model: Detector, title: str) -> Accuracy:
            found = _accuracy_together(model, val_set, imgsz, eval_config, str(own_device), start.names)
            log(f"{title}: AP {found.ap:.4f}")
            return found

        before = accuracy(start.teacher, "float"), accuracy(start.model, "calibrated")
        board = Board(out.with_name(f"{out.name}.board")) if config.tensorboard and processes.is_first else None
        try:
            outcome = train_quantized(
                start.model, start.teacher, train_set, val_set, imgsz, config, device=str(own_device), seed=seed,
                state_path=state, eval_config=eval_config, board=board, progress=progress,
            )  # fmt: skip
        finally:
            if board is not None:
                board.close()
        after = accuracy(outcome.model, "trained")
        if processes.is_first:
            save_quantized(out, outcome.model.cpu(), start.ptq, names=start.names, maxima=start.maxima)
            state.unlink(missing_ok=True)
    return QatReport(
        model=start.model.spec.name,
        scheme=start.ptq.scheme,
        scales=config.scales,
        epochs=outcome.epochs,
        images=outcome.images,
        images_per_s=outcome.images_per_s,
        int8_layers=start.plan.int8,
        float_layers=start.plan.float_,
        changes=outcome.scales,
        accuracy_float=before[0],
        accuracy_calibrated=before[1],
        accuracy_trained=after,
    )


def _start(
    source: QatSource,
    train_set: DetectionDataset,
    imgsz: tuple[int, int],
    eval_config: EvalConfig,
    device: str,
    progress: Progress,
    log: Log,
) -> _Start:
    from repq.model import layer_ids, load_checkpoint
    from repq.quant import holds_quantization, restore_quantized
    from repq.quant.plan_file import read_plan
    from repq.reparam import fuse

    checkpoint = load_checkpoint(source.weights)
    restored = restore_quantized(checkpoint) if holds_quantization(checkpoint) else None
    fused = fuse(checkpoint.model)
    layers = layer_ids(fused)
    kept = source.keep_float
    if source.plan is not None:
        kept += read_plan(source.plan, layers, fused.spec.name).float_
    taught = checkpoint if source.teacher is None else open_float(source.teacher, log)
    teacher = fused if source.teacher is None else fuse(taught.model)
    if restored is not None:
        model, ptq = _partly_float(restored, kept, source)
        if source.teacher is None and ptq.correct != CorrectionConfig(images=ptq.correct.images):
            log(f"the weights of {source.weights.name} were corrected for INT8; the float checkpoint teaches better")
    else:
        for note in checkpoint.notes:
            log(f"{source.weights.name}: {note}")
        ptq = PtqConfig(scheme=source.scheme or "symmetric", keep_float=kept, calibration=source.calibration)
        found = calibrated(source.weights, ptq, train_set, imgsz, eval_config, device, progress, log)
        model = found.model
    maxima = restored.maxima if restored is not None else {}
    return _Start(model, teacher, _plan_of(model), ptq, checkpoint.names, taught.names, maxima)


def _partly_float(
    restored: QuantizedCheckpoint, kept: tuple[str, ...], source: QatSource
) -> tuple[Detector, PtqConfig]:
    """The model of a quantized checkpoint, with more layers in float if ``kept`` names some.

    Raises:
        QuantizationError: another scheme than the checkpoint's is asked for.
        SelectorError: a selector matches no layer.
    """
    from repq.layers import QuantPlan
    from repq.model import layer_ids
    from repq.quant import apply_scales, insert_quantizers, scale_table

    if source.scheme not in (None, restored.config.scheme):
        raise QuantizationError(
            f"{source.weights} is quantized already",
            found=f"the {restored.config.scheme} scheme, {source.scheme} was asked for",
            fix="leave --scheme away, or start from the float checkpoint",
        )
    if not kept:
        return restored.model, restored.config
    fused = restored.checkpoint.model
    wanted = QuantPlan.keeping_float(layer_ids(fused), (*restored.plan.float_, *kept))
    model = insert_quantizers(fused, wanted, restored.config).eval()
    table = scale_table(restored.model)
    apply_scales(model, {layer: table[layer] for layer in wanted.int8})
    return model, restored.config.model_copy(update={"keep_float": (*restored.config.keep_float, *kept)})


def _plan_of(model: Detector) -> QuantPlan:
    from repq.layers import QuantPlan
    from repq.model import layer_ids
    from repq.quant import quantized_layers

    quantized = quantized_layers(model)
    return QuantPlan(tuple(quantized), tuple(layer for layer in layer_ids(model) if layer not in quantized))


def _accuracy_together(
    model: Detector,
    dataset: DetectionDataset,
    imgsz: tuple[int, int],
    config: EvalConfig,
    device: str,
    names: tuple[str, ...] | None,
) -> Accuracy:
    from repq.distributed import evaluate_together

    predictor = from_torch(model.spec.name, model, device=device, names=names)
    dataset = demand_fit(predictor, dataset, imgsz)
    return evaluate_together(predictor.infer, dataset, imgsz, config)


def _qat(job: Job) -> QatReport:
    recipe = job.recipe
    return qat_checkpoint(
        QatSource(job.artifacts["ptq"] / "quantized.safetensors", job.fused), job.payload / "quantized.safetensors",
        job.resume / "state", job.section("qat", QatConfig), data=job.data,
        splits=(recipe.data.train, recipe.data.val), imgsz=recipe.imgsz, eval_config=recipe.eval,
        device=recipe.device, seed=recipe.seed, progress=job.progress, log=job.log,
    )  # fmt: skip


STAGE = Stage(
    "qat", _qat, {"qat": Section(QatConfig, optional=True)}, ("imgsz", "eval", "device"),
    reads=("ptq/quantized.safetensors", "fuse/fused.safetensors"), splits=("train", "val"), result=QatReport,
    ignored=("*.board/*",),
)  # fmt: skip
