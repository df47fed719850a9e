"""Training as a stage: with the labels alone, or RepOptimizer's two trainings, of which ``search`` is the first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from repq.api.fitting import splits_to_train_on
from repq.api.quantizing import open_float
from repq.api.running import resolve_device
from repq.api.sizes import as_metadata
from repq.errors import RecipeError
from repq.files import write_text
from repq.log import Log, quiet
from repq.progress import Progress, silent
from repq.recipe import EvalConfig, TrainConfig
from repq.results import TrainReport
from repq.stages.stage import Job, Section, Stage

if TYPE_CHECKING:
    from repq.model import Detector
    from repq.quant import Weights
    from repq.recipe import Recipe

WEIGHTS, SCALES, BOARD = "weights.safetensors", "scales.safetensors", "board"
REPORT = "train.json"


def train_detector(
    out: Path,
    state: Path,
    config: TrainConfig,
    *,
    data: Path,
    splits: tuple[str, str] = ("train", "val"),
    imgsz: tuple[int, int],
    eval_config: EvalConfig,
    device: str = "cpu",
    seed: int = 0,
    progress: Progress = silent,
    log: Log = quiet,
) -> TrainReport:
    """Train a detector, alone or as one of torchrun's processes, of which the first writes.

    The folder ``out`` gets the averaged weights of the best evaluation (``weights.safetensors``), the report
    (``train.json``) and, from a hyper-search model, RepOptimizer's scales (``scales.safetensors``).

    Args:
        state: file that lets a killed training continue; remove it to start again.

    Raises:
        RepqError: the data, the initial weights, the scales or the teacher are not usable, or the loss is not finite.
    """
    from repq.model import save_checkpoint
    from repq.reparam.repopt import extract_scales, has_scales, load_scales, save_scales
    from repq.train import Board, joined_processes, train

    resolve_device(device)
    with joined_processes(device) as (processes, own_device):
        if not processes.is_first:
            progress, log = silent, quiet
        initial = open_float(config.weights, log) if config.weights else None
        teacher = open_float(config.distill.teacher, log) if config.distill else None
        train_set, val_set = splits_to_train_on(
            data, splits, start=initial.names if initial else None, teacher=teacher.names if teacher else None, log=log
        )
        model = _initial_model(config, initial, train_set.num_classes, seed, log)
        model.spec.check_size(*imgsz)
        board = Board(out / BOARD) if config.tensorboard and processes.is_first else None
        try:
            outcome = train(
                model, train_set, val_set, imgsz, config,
                device=str(own_device), seed=seed, state_path=state, eval_config=eval_config,
                scales=load_scales(config.rep_scales) if config.rep_scales else None,
                teacher=teacher.model if teacher else None,
                board=board, progress=progress,
            )  # fmt: skip
        finally:
            if board is not None:
                board.close()
        if processes.is_first:
            save_checkpoint(out / WEIGHTS, outcome.model, names=train_set.names, metadata=as_metadata(imgsz))
            if has_scales(outcome.model):
                save_scales(out / SCALES, extract_scales(outcome.model))
            write_text(out / REPORT, outcome.report.model_dump_json(indent=1))
    return outcome.report


def _initial_model(config: TrainConfig, initial: Weights | None, num_classes: int, seed: int, log: Log) -> Detector:
    import torch

    from repq.model import build
    from repq.train import fine_tuned

    if initial is None:
        torch.manual_seed(seed)
        return build(config.model, num_classes)
    result = fine_tuned(initial.model, num_classes)
    for note in result.notes:
        log(note)
    return result.model


def _train(job: Job, config: TrainConfig) -> TrainReport:
    recipe = job.recipe
    report = train_detector(
        job.payload, job.resume / "state", config, data=job.data, splits=(recipe.data.train, recipe.data.val),
        imgsz=recipe.imgsz, eval_config=recipe.eval, device=recipe.device, seed=recipe.seed, progress=job.progress,
        log=job.log,
    )  # fmt: skip
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

            searched = job.section("search", TrainConfig).model
            raise RecipeError(
                "search found no scales", found=f"search.model is {searched}",
                fix=f"search with {search_and_target(get_spec(searched))[0]}",
            )  # fmt: skip
        config = config.model_copy(update={"rep_scales": scales})
    return _train(job, config)


def _one_origin(recipe: Recipe) -> None:
    if (recipe.weights is None) == (recipe.train is None):
        raise ValueError("give either weights (a checkpoint) or train (train.weights fine-tunes), not both")
    if recipe.search is not None and (recipe.train is None or recipe.train.rep_scales is not None):
        raise ValueError("search finds the scales for train: it needs train, without train.rep_scales")


SEARCH, STAGE = (
    Stage(
        name, run, {name: Section(TrainConfig, optional=True)}, ("imgsz", "eval", "device"),
        reads=(f"search/{SCALES}",), splits=("train", "val"), result=TrainReport,
        files={REPORT: TrainReport}, ignored=(f"{BOARD}/*",), check=_one_origin,
    )
    for name, run in (("search", _search), ("train", _target))
)  # fmt: skip
