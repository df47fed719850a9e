"""Quantization-aware training as a stage."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from repq.api.fitting import fitted
from repq.api.images import with_sizes
from repq.api.measuring import demand_fit
from repq.api.opening import of_weights, save_weights
from repq.api.quantizing import corrected, fused, partly_float, planned, quantized
from repq.api.running import Options
from repq.errors import DataError, QuantizationError
from repq.machine.load import OtherLoad
from repq.machine.torch_device import resolve_device
from repq.recipe import PtqConfig, QatConfig
from repq.results import Accuracy, QatReport
from repq.stages.context import Context
from repq.stages.stage import Job, Section, Stage

if TYPE_CHECKING:
    from repq.data import DetectionDataset
    from repq.quant import Weights
    from repq.train.trainer import Trainer


@dataclass(frozen=True)
class QatSource:
    """What training starts from, and what it imitates.

    Attributes:
        weights: a checkpoint that `ptq_checkpoint` wrote, or a float one, which is calibrated first.
        ptq: how float weights are calibrated; a quantized checkpoint has its own settings.
        scheme: of that calibration, if somebody chose it.
        plan: its layers stay in float, and those of ``ptq.keep_float``, besides those of a quantized checkpoint.
    """

    weights: Path
    ptq: PtqConfig = field(default_factory=lambda: PtqConfig(auto=False))
    scheme: Literal["symmetric", "asymmetric"] | None = None
    plan: Path | None = None


def qat_checkpoint(
    source: QatSource,
    out: Path,
    state: Path,
    config: QatConfig,
    context: Context,
    *,
    evaluate: bool = True,
) -> QatReport:
    """Train a quantized model, alone or as one of torchrun's processes, evaluate before and after, write the better.

    Args:
        state: file that lets a killed training continue; it is removed when the checkpoint is written.

    Raises:
        RepqError: the checkpoints, the data, the plan or a selector are not usable, or the loss is not finite.
    """
    from repq.data import class_places
    from repq.quant.qat import train_quantized
    from repq.train import epoch_line, joined_processes, open_board, short_training

    resolve_device(context.device)
    with joined_processes(context.device) as (processes, device):
        context = context.of_process(str(device), is_first=processes.is_first)
        log, others = context.log, OtherLoad()
        train_set, val_set = _splits(config, context, evaluate=evaluate, warn=processes.is_first)
        start, plain, taught = _start(source, config, train_set, context)
        train_set = fitted(train_set, start.names, source.weights.name, log)
        val_set = None if val_set is None else fitted(val_set, start.names, source.weights.name, log)
        for note in short_training(config, len(train_set)):
            log(note)
        own_float = taught.model if taught.model.spec == plain.model.spec else plain.model
        before = tuple(
            _accuracy(replace(start, model=model), val_set, context, title)
            for model, title in ((own_float, "float"), (start.model, "calibrated"))
        )

        def after_epoch(trainer: Trainer) -> None:
            log(epoch_line(trainer.position.epochs[-1], config.epochs))
            if note := others.note_once(processes.count, device.type):
                log(note)

        with open_board(out.with_name(f"{out.name}.board"), config.tensorboard and processes.is_first) as board:
            outcome = train_quantized(
                start.model, taught.model, train_set, train_set if val_set is None else val_set, context.imgsz, config,
                groups=start.groups, device=context.device, seed=context.seed, state_path=state,
                teacher_classes=class_places(start.names or train_set.names, taught.names, "the teacher"),
                eval_config=context.eval_config, board=board, progress=context.progress, after_epoch=after_epoch,
            )  # fmt: skip
        trained = replace(start, model=outcome.model)
        after = _accuracy(trained, val_set, context, "trained")
        gained = after is None or before[1] is None or after.ap >= before[1].ap
        if not gained:
            log("training cost AP: the calibrated weights are kept; try a lower learning rate (--set learning_rate=…)")
        if processes.is_first:
            save_weights(out, trained if gained else start, context.imgsz)
            state.unlink(missing_ok=True)
    assert start.config is not None
    return QatReport(
        model=start.model.spec.name,
        scheme=start.config.scheme,
        scales=config.scales,
        epochs=outcome.epochs,
        images=outcome.images,
        images_per_s=outcome.images_per_s,
        int8_layers=start.plan.int8,
        float_layers=start.plan.float_,
        changes=outcome.scales if gained else (),
        accuracy_float=before[0],
        accuracy_calibrated=before[1],
        accuracy_trained=after,
        kept="trained" if gained else "calibrated",
    )


def _splits(
    config: QatConfig, context: Context, *, evaluate: bool, warn: bool
) -> tuple[DetectionDataset, DetectionDataset | None]:
    """What is learned from, and what is evaluated on, if anything is.

    Raises:
        DataError: they cannot be used, or AP is to be measured on the way and cannot be.
    """
    from repq.data import demand_objects, warn_of_overlap

    train_set = with_sizes(context.train_set())
    val_set = context.labelled_val_set() if evaluate else None
    if config.eval_interval is not None and val_set is None:
        raise DataError("AP cannot be measured on the way", found="no labels, or --no-eval",
                        fix="leave eval_interval away, or give a labelled data set")  # fmt: skip
    if val_set is not None:
        demand_objects(val_set)
        if warn:
            warn_of_overlap(train_set.records, val_set.records, context.log, "are trained on")
    return train_set, val_set


def _accuracy(weights: Weights, val_set: DetectionDataset | None, context: Context, title: str) -> Accuracy | None:
    """AP by all processes together; None: nothing is evaluated."""
    from repq.distributed import detect_together
    from repq.evaluate import resampled_accuracy

    if val_set is None:
        return None
    opened = of_weights(weights.model.spec.name, weights, Options(device=context.device))
    demand_fit(opened, val_set, context.imgsz)
    form = opened.layout, opened.preprocessing
    detections = detect_together(opened.infer, val_set, context.imgsz, context.eval_config, *form)
    found = resampled_accuracy(detections, val_set)
    context.log(f"{title}: AP {found.ap:.4f}")
    return found


def _start(
    source: QatSource, config: QatConfig, train_set: DetectionDataset, context: Context
) -> tuple[Weights, Weights, Weights]:
    """The quantized weights to train, the same in float, and the teacher.

    Raises:
        DataError, TrainingError: labels count, but there are none, or the model has no loss on them.
        QuantizationError: another scheme than the checkpoint's is asked for.
        SelectorError: a selector matches no layer.
    """
    from repq.export import float_copy
    from repq.quant import load_weights
    from repq.quant.plan_file import read_plan
    from repq.quant.qat import demand_labels

    listed = None if source.plan is None else read_plan(source.plan)
    imgsz, log = context.imgsz, context.log
    taught = None if config.teacher is None else context.open_float(config.teacher)
    opened = load_weights(source.weights, imgsz, context.graph)
    opened.model.spec.check_size(*imgsz)
    demand_labels(opened.model, train_set, config)
    plain = replace(opened, model=float_copy(opened.model)) if opened.quantized else fused(opened)
    kept = source.ptq.keep_float
    if listed is not None:
        kept += planned(listed, plain.model)
    teacher = plain if taught is None else fused(taught)
    ptq = opened.config
    if ptq is None:
        for note in opened.notes:
            log(f"{source.weights.name}: {note}")
        scheme = source.scheme or source.ptq.scheme
        ptq = source.ptq.model_copy(update={"scheme": scheme, "keep_float": kept, "auto": False})
        made = quantized(
            fused(opened, context.device), train_set, ptq, imgsz=imgsz, eval_config=context.eval_config,
            with_maxima=False, progress=context.progress, log=log,
        )  # fmt: skip
        return made.weights, plain, teacher
    if source.scheme not in (None, ptq.scheme):
        raise QuantizationError(
            f"{source.weights} is quantized already",
            found=f"the {ptq.scheme} scheme, {source.scheme} was asked for",
            fix="leave --scheme away, or start from the float checkpoint",
        )
    if config.teacher is None and corrected(ptq):
        log(f"the weights of {source.weights.name} were corrected for INT8; the float checkpoint teaches better")
    return partly_float(opened, kept), plain, teacher


def _qat(job: Job) -> QatReport:
    config = job.section("qat", QatConfig)
    if config.teacher is None:
        config = config.model_copy(update={"teacher": job.fused})
    source = QatSource(job.artifacts["ptq"] / "quantized.safetensors")
    return qat_checkpoint(source, job.payload / "quantized.safetensors", job.resume / "state", config, job.context)


STAGE = Stage(
    "qat", _qat, {"qat": Section(QatConfig, optional=True)}, ("imgsz", "eval", "device"),
    reads=("ptq/quantized.safetensors", "fuse/fused.safetensors"), splits=("train", "val"), result=QatReport,
    ignored=("*.board/*",),
)  # fmt: skip
