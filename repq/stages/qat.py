"""Quantization-aware training as a stage."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from repq.api.fitting import fitted
from repq.api.images import with_sizes
from repq.api.measuring import demand_fit
from repq.api.opening import of_weights, save_weights
from repq.api.quantizing import corrected, fused, open_float, partly_float, planned, quantized
from repq.api.running import Options
from repq.errors import DataError, QuantizationError
from repq.log import Log, quiet
from repq.machine.load import OtherLoad
from repq.machine.torch_device import resolve_device
from repq.progress import Progress, silent
from repq.recipe import EvalConfig, GraphConfig, PtqConfig, QatConfig
from repq.results import Accuracy, QatReport
from repq.stages.data import labelled, read_data
from repq.stages.stage import Job, Section, Stage

if TYPE_CHECKING:
    from repq.data import DetectionDataset
    from repq.model import Detector
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
        graph: what the file of ``weights`` does not say of itself.
    """

    weights: Path
    ptq: PtqConfig = field(default_factory=lambda: PtqConfig(auto=False))
    scheme: Literal["symmetric", "asymmetric"] | None = None
    plan: Path | None = None
    graph: GraphConfig = GraphConfig()


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
    evaluate: bool = True,
    progress: Progress = silent,
    log: Log = quiet,
) -> QatReport:
    """Train a quantized model, alone or as one of torchrun's processes, evaluate before and after, write the better.

    Args:
        data: a data set, or a folder or list file of images, by which nothing is evaluated.
        state: file that lets a killed training continue; it is removed when the checkpoint is written.

    Raises:
        RepqError: the checkpoints, the data, the plan or a selector are not usable, or the loss is not finite.
    """
    from repq.data import class_places, demand_objects, warn_of_overlap
    from repq.distributed import detect_together
    from repq.evaluate import resampled_accuracy
    from repq.quant.qat import train_quantized
    from repq.train import Board, epoch_line, joined_processes

    resolve_device(device)
    with joined_processes(device) as (processes, own_device):
        if not processes.is_first:
            progress, log = silent, quiet
        train_set = with_sizes(read_data(data, splits[0], log, progress))
        val_set = labelled(data, splits[1], log, progress) if evaluate else None
        _demand_labels(config, train_set, val_set)
        if val_set is not None:
            demand_objects(val_set)
        if processes.is_first and val_set is not None:
            warn_of_overlap(train_set.records, val_set.records, log, "are trained on")
        start, plain, taught = _start(source, config, train_set, imgsz, eval_config, str(own_device), progress, log)
        train_set = fitted(train_set, start.names, source.weights.name, log)
        classes = class_places(start.names or train_set.names, taught.names, "the teacher")
        if val_set is not None:
            val_set = fitted(val_set, start.names, source.weights.name, log)
        teacher = taught.model
        own_float = teacher if teacher.spec == plain.model.spec else plain.model

        def accuracy(model: Detector, title: str) -> Accuracy | None:
            if val_set is None:
                return None
            opened = of_weights(model.spec.name, replace(start, model=model), Options(device=str(own_device)))
            demand_fit(opened, val_set, imgsz)
            form = opened.layout, opened.preprocessing
            found = resampled_accuracy(detect_together(opened.infer, val_set, imgsz, eval_config, *form), val_set)
            log(f"{title}: AP {found.ap:.4f}")
            return found

        before = accuracy(own_float, "float"), accuracy(start.model, "calibrated")
        board = Board(out.with_name(f"{out.name}.board")) if config.tensorboard and processes.is_first else None
        others = OtherLoad()

        def after_epoch(trainer: Trainer) -> None:
            log(epoch_line(trainer.position.epochs[-1], config.epochs))
            if note := others.note_once(processes.count, own_device.type):
                log(note)

        try:
            outcome = train_quantized(
                start.model, teacher, train_set, train_set if val_set is None else val_set, imgsz, config,
                groups=start.groups, teacher_classes=classes, device=str(own_device), seed=seed, state_path=state,
                eval_config=eval_config, board=board, progress=progress,
                after_epoch=after_epoch,
            )  # fmt: skip
        finally:
            if board is not None:
                board.close()
        after = accuracy(outcome.model, "trained")
        gained = after is None or before[1] is None or after.ap >= before[1].ap
        if not gained:
            log("training cost AP: the calibrated weights are kept; try a lower learning rate (--set learning_rate=…)")
        if processes.is_first:
            save_weights(out, replace(start, model=outcome.model) if gained else start, imgsz)
            state.unlink(missing_ok=True)
    plan = start.plan
    assert start.config is not None
    return QatReport(
        model=start.model.spec.name,
        scheme=start.config.scheme,
        scales=config.scales,
        epochs=outcome.epochs,
        images=outcome.images,
        images_per_s=outcome.images_per_s,
        int8_layers=plan.int8,
        float_layers=plan.float_,
        changes=outcome.scales if gained else (),
        accuracy_float=before[0],
        accuracy_calibrated=before[1],
        accuracy_trained=after,
        kept="trained" if gained else "calibrated",
    )


def _demand_labels(config: QatConfig, train_set: DetectionDataset, val_set: DetectionDataset | None) -> None:
    if config.task_weight and not train_set.objects:
        raise DataError("there are no labels to learn from", fix="give a labelled data set, or no --task-weight")
    if config.eval_interval is not None and val_set is None:
        raise DataError("AP cannot be measured on the way", found="no labels, or --no-eval",
                        fix="leave eval_interval away, or give a labelled data set")  # fmt: skip


def _start(
    source: QatSource,
    config: QatConfig,
    train_set: DetectionDataset,
    imgsz: tuple[int, int],
    eval_config: EvalConfig,
    device: str,
    progress: Progress,
    log: Log,
) -> tuple[Weights, Weights, Weights]:
    """The quantized weights to train, the same in float, and the teacher.

    Raises:
        QuantizationError: another scheme than the checkpoint's is asked for.
        SelectorError: a selector matches no layer.
    """
    from repq.export import float_copy
    from repq.quant import load_weights
    from repq.quant.plan_file import read_plan

    listed = None if source.plan is None else read_plan(source.plan)
    taught = None if config.teacher is None else open_float(config.teacher, log, imgsz, source.graph)
    opened = load_weights(source.weights, imgsz, source.graph)
    opened.model.spec.check_size(*imgsz)
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
            fused(opened, device), train_set, ptq, imgsz=imgsz, eval_config=eval_config, with_maxima=False,
            progress=progress, log=log,
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
    recipe, config = job.recipe, job.section("qat", QatConfig)
    if config.teacher is None:
        config = config.model_copy(update={"teacher": job.fused})
    return qat_checkpoint(
        QatSource(job.artifacts["ptq"] / "quantized.safetensors"), job.payload / "quantized.safetensors",
        job.resume / "state", config, data=job.data,
        splits=(recipe.data.train, recipe.data.val), imgsz=recipe.imgsz, eval_config=recipe.eval,
        device=recipe.device, seed=recipe.seed, progress=job.progress, log=job.log,
    )  # fmt: skip


STAGE = Stage(
    "qat", _qat, {"qat": Section(QatConfig, optional=True)}, ("imgsz", "eval", "device"),
    reads=("ptq/quantized.safetensors", "fuse/fused.safetensors"), splits=("train", "val"), result=QatReport,
    ignored=("*.board/*",),
)  # fmt: skip
