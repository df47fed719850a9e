"""Training a detector on labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from repq.api.arguments import Size, arguments
from repq.api.fitting import splits_to_train_on
from repq.api.model import Model, settings_of
from repq.api.opening import build_model, load, of_weights
from repq.api.running import Options
from repq.api.sizes import as_metadata
from repq.errors import RepqError
from repq.log import Log, quiet
from repq.machine.torch_settings import usual_torch
from repq.progress import Progress, silent
from repq.recipe import Config, EvalConfig, TrainConfig

if TYPE_CHECKING:
    from repq.data import DetectionDataset


@usual_torch()
def train_model(
    data: str | Path | DetectionDataset,
    *,
    imgsz: Size = 640,
    model: Model | str | Path | None = None,
    teacher: Model | str | Path | None = None,
    splits: tuple[str, str] = ("train", "val"),
    state: str | Path | None = None,
    device: str = "cpu",
    seed: int = 0,
    config: TrainConfig | None = None,
    progress: Progress = silent,
    log: Log = quiet,
    **settings: Any,
) -> Model:
    """Train a detector and keep the averaged weights of the best evaluation.

    Args:
        data: a data.yaml (YOLO) or a COCO .json with both ``splits``.
        imgsz: a number or (height, width) in pixels.
        model: a name such as ``yolov6s``, or a float checkpoint to fine-tune, of any classes: its handle or file.
            Default: what the settings say as ``weights`` or ``model``.
        teacher: a trained float model of any family and size, of the same classes by name, or its file, to imitate as
            ``distill`` says, or by its defaults.
        state: file that lets a stopped training go on.
        config, settings: a `repq.TrainConfig`, or its fields: ``epochs``, ``batch``, ``learning_rate`` …

    Returns:
        A handle of the weights, not fused; ``report`` is a `repq.TrainReport`.

    Raises:
        RepqError: the data, the model or the teacher are not usable, or two models are given to start from.
        TrainingError: the loss is not finite.
    """
    from repq.api.quantizing import fused
    from repq.data import class_places
    from repq.machine.torch_device import resolve_device
    from repq.quant import Weights
    from repq.reparam.repopt import load_scales
    from repq.train import doubtful_settings, fine_tuned, settings_for, train

    asked, device = arguments("training", imgsz=imgsz, seed=seed), resolve_device(device)
    size, seed = asked.imgsz or (640, 640), asked.seed
    start = load(model) if _is_file(model) else model if isinstance(model, Model) else None
    named = {"model": model, **settings} if start is None and model is not None else settings
    if teacher is not None:
        named = {**named, "distill": _imitating(teacher, named.get("distill", getattr(config, "distill", None)))}
    chosen = settings_of(TrainConfig, config, named, "training")
    if chosen.weights is not None:
        if start is not None:
            fix = "give either model or weights"
            raise RepqError("there are two models to start from", found=f"{start.label}, {chosen.weights}", fix=fix)
        start = load(chosen.weights)
    if start is not None:
        chosen = settings_for(chosen, start.floats("be trained").model)
        if start.path is not None or start.report is not None:  # `build_model` gives fresh weights
            chosen = chosen.model_copy(update={"weights": Path(start.label)})
    taught = teacher if isinstance(teacher, Model) else None
    if taught is None and chosen.distill is not None:
        taught = load(chosen.distill.teacher, engine="torch", imgsz=size)
    names = None if start is None else start.names
    train_set, val_set = splits_to_train_on(data, splits, start=names, log=log, progress=progress)
    if start is None:
        detector = build_model(chosen.model, train_set.num_classes, seed=seed).floats("be trained").model
    else:
        tuned = fine_tuned(start.floats("be trained").model, train_set.num_classes, chosen)
        for note in tuned.notes:
            log(note)
        detector = tuned.model
    for note in doubtful_settings(detector, chosen, len(train_set)):
        log(note)
    outcome = train(
        detector, train_set, val_set, size, chosen, device=device, seed=seed,
        state_path=None if state is None else Path(state),
        eval_config=EvalConfig(batch=chosen.batch),
        scales=load_scales(chosen.rep_scales) if chosen.rep_scales else None,
        teacher=None if taught is None else fused(taught.floats("be a teacher")).model,
        teacher_classes=None if taught is None else class_places(train_set.names, taught.names, "the teacher"),
        progress=progress,
    )  # fmt: skip
    trained = Weights(outcome.model, train_set.names, metadata=as_metadata(size))
    made = of_weights(outcome.model.spec.name, trained, Options(device=device, progress=progress, log=log))
    return replace(made, report=outcome.report)


def _is_file(model: Model | str | Path | None) -> TypeGuard[str | Path]:
    """Whether a file is meant: names of models have no suffix."""
    return isinstance(model, Path) or (isinstance(model, str) and Path(model).suffix != "")


def _imitating(teacher: Model | str | Path, distill: Any) -> Any:
    """What ``distill`` says, with this teacher."""
    given = distill.model_dump(exclude_unset=True) if isinstance(distill, Config) else distill or {}
    named = Path(teacher.label) if isinstance(teacher, Model) else teacher
    return {**given, "teacher": named} if isinstance(given, Mapping) else distill
