"""Training as a stage: with the labels alone, or RepOptimizer's two trainings, of which ``search`` is the first."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from repq.api.fitting import splits_to_train_on
from repq.api.quantizing import fused, open_float
from repq.api.sizes import as_metadata
from repq.errors import RecipeError, RepqError
from repq.files import write_text
from repq.log import Log
from repq.machine.load import OtherLoad
from repq.machine.precision import with_precision
from repq.machine.torch_device import resolve_device
from repq.recipe import DeployConfig, TrainConfig
from repq.results import Curves, TrainReport
from repq.stages.context import Context
from repq.stages.stage import Job, Section, Stage

if TYPE_CHECKING:
    from repq.data import DetectionDataset
    from repq.model import Detector
    from repq.quant import Weights
    from repq.recipe import Recipe
    from repq.train import Trainer

WEIGHTS, LAST, SCALES, BOARD = "weights.safetensors", "last.safetensors", "scales.safetensors", "board"
EPOCHS = "results.csv"
REPORT = "train.json"


def train_detector(
    out: Path,
    state: Path,
    config: TrainConfig,
    context: Context,
    *,
    deploy: DeployConfig = DeployConfig(),
) -> TrainReport:
    """Train a detector, alone or as one of torchrun's processes, of which the first writes.

    The folder ``out`` gets, at every evaluation, the averaged weights (``last.safetensors``) and those of the best one
    (``weights.safetensors``); after every epoch its row (``results.csv``); at the end the report (``train.json``),
    precision over recall and the confusion of classes (``pr_curve.svg``, ``confusion.svg``) and, from a hyper-search
    model, RepOptimizer's scales (``scales.safetensors``).

    Args:
        state: file that lets a killed training continue; remove it to start again.
        deploy: thresholds of its use that the weights are to say.

    Raises:
        RepqError: the data, the initial weights, the scales or the teacher are not usable, or the loss is not finite.
    """
    from repq.data import class_places
    from repq.model import save_checkpoint
    from repq.reparam.repopt import extract_scales, has_scales, load_scales, save_scales
    from repq.train import doubtful_settings, joined_processes, open_board, settings_for, train

    imgsz, config = context.imgsz, with_precision(config, resolve_device(context.device))
    with joined_processes(context.device) as (processes, device):
        context = context.of_process(str(device), is_first=processes.is_first)
        log, others = context.log, OtherLoad()
        initial = open_float(config.weights, log) if config.weights else None
        config = config if initial is None else settings_for(config, initial.model)
        teacher = fused(open_float(config.distill.teacher, log, imgsz)) if config.distill else None
        start = initial.names if initial else None
        splits = context.train_split, context.val_split
        train_set, val_set = splits_to_train_on(
            context.data_path, splits, start=start, log=log, progress=context.progress
        )
        model = _initial_model(config, initial, train_set.num_classes, context.seed, log)
        model.spec.check_size(*imgsz)
        for note in doubtful_settings(model, config, len(train_set)):
            log(note)
        thresholds = model.spec.thresholds.changed(deploy.model_dump(), "the weights", log)
        model.spec = replace(model.spec, thresholds=thresholds)

        def after_epoch(trainer: Trainer) -> None:
            _note_epoch(trainer, out, train_set.names, imgsz, log)
            if note := others.note_once(processes.count, device.type):
                log(note)

        with open_board(out / BOARD, config.tensorboard and processes.is_first) as board:
            outcome = train(
                model, train_set, val_set, imgsz, config,
                device=context.device, seed=context.seed, state_path=state, eval_config=context.eval_config,
                scales=load_scales(config.rep_scales) if config.rep_scales else None,
                teacher=teacher.model if teacher else None,
                teacher_classes=class_places(train_set.names, teacher.names, "the teacher") if teacher else None,
                board=board, after_epoch=after_epoch, progress=context.progress,
            )  # fmt: skip
        report = outcome.report
        if processes.is_first:
            save_checkpoint(out / WEIGHTS, outcome.model, names=train_set.names, metadata=as_metadata(imgsz))
            if has_scales(outcome.model):
                save_scales(out / SCALES, extract_scales(outcome.model))
            curves = _curves(outcome.model, val_set, context)
            report = report.model_copy(update={"curves": curves})
            write_text(out / REPORT, report.model_dump_json(indent=1))
            _draw(report, out, log)
    return report


def _note_epoch(trainer: Trainer, out: Path, names: tuple[str, ...], imgsz: tuple[int, int], log: Log) -> None:
    """A line and a row of an epoch; where it was evaluated, its weights, and the best so far."""
    from repq.model import save_checkpoint
    from repq.train import epoch_line, epochs_csv
    from repq.train.trainer import handed_back

    rows, best = trainer.position.epochs, trainer.position.best
    log(epoch_line(rows[-1], trainer.config.epochs))
    write_text(out / EPOCHS, epochs_csv(rows))
    if rows[-1].ap is not None:
        model = handed_back(copy.deepcopy(trainer.average.model))
        save_checkpoint(out / LAST, model, names=names, metadata=as_metadata(imgsz))
        if best is not None and best.epoch == rows[-1].epoch:
            save_checkpoint(out / WEIGHTS, model, names=names, metadata=as_metadata(imgsz))


def _curves(model: Detector, dataset: DetectionDataset, context: Context) -> Curves:
    from repq.api.opening import of_weights
    from repq.api.running import Options
    from repq.evaluate import detect_all, detection_curves
    from repq.quant import Weights

    device = context.device
    opened = of_weights("trained", Weights(copy.deepcopy(model).to(device)), Options(device=device))
    found = detect_all(
        opened.infer, dataset, context.imgsz, context.eval_config, context.progress, label="curves",
        layout=opened.layout, preprocessing=opened.preprocessing,
    )  # fmt: skip
    return detection_curves(found, dataset)


def _draw(report: TrainReport, out: Path, log: Log) -> None:
    from repq.report.render import write_figure
    from repq.report.sections.training import curve_figures

    try:
        for figure in curve_figures(report.curves):
            write_figure(figure, out)
    except RepqError as error:  # what was trained is written all the same
        log(str(error))


def _initial_model(config: TrainConfig, initial: Weights | None, num_classes: int, seed: int, log: Log) -> Detector:
    from repq.machine.torch_random import seeded
    from repq.model import build
    from repq.train import fine_tuned

    if initial is None:
        with seeded(seed):
            return build(config.model, num_classes)
    result = fine_tuned(initial.model, num_classes, config)
    for note in result.notes:
        log(note)
    return result.model


def _train(job: Job, config: TrainConfig) -> TrainReport:
    report = train_detector(job.payload, job.resume / "state", config, job.context)
    job.log(f"  best epoch {report.best_epoch}: AP {report.accuracy.ap:.4f}, AP50 {report.accuracy.ap50:.4f}")
    return report


def _search(job: Job) -> TrainReport:
    return _train(job, job.section("search", TrainConfig))


def _target(job: Job) -> TrainReport:
    config = job.section("train", TrainConfig)
    if "search" in job.artifacts:
        scales = job.artifacts["search"] / SCALES
        if not scales.is_file():
            from repq.model import get_spec, search_and_target

            searched = job.artifacts["search"].result(TrainReport, REPORT).model
            raise RecipeError(
                "search found no scales", found=f"search.model is {searched}",
                fix=f"search with {search_and_target(get_spec(searched))[0]}",
            )  # fmt: skip
        config = config.model_copy(update={"rep_scales": scales})
    return _train(job, config)


def _with_precision(recipe: Recipe) -> Recipe:
    given = {name: getattr(recipe, name) for name in ("search", "train")}
    changes = {name: with_precision(config, recipe.device) for name, config in given.items() if config is not None}
    changed: Recipe = recipe.model_copy(update=changes)
    return changed


def _one_origin(recipe: Recipe) -> None:
    if (recipe.weights is None) == (recipe.train is None):
        raise ValueError("give either weights (a checkpoint) or train (train.weights fine-tunes), not both")
    if recipe.search is not None and (recipe.train is None or recipe.train.rep_scales is not None):
        raise ValueError("search finds the scales for train: it needs train, without train.rep_scales")


SEARCH, STAGE = (
    Stage(
        name, run, {name: Section(TrainConfig, optional=True)}, ("imgsz", "eval", "device"),
        reads=(f"search/{SCALES}", f"search/{REPORT}"), splits=("train", "val"), result=TrainReport,
        files={REPORT: TrainReport}, ignored=(f"{BOARD}/*", LAST, EPOCHS, "*.svg"), settled=_with_precision,
        check=_one_origin,
    )
    for name, run in (("search", _search), ("train", _target))
)  # fmt: skip
