"""Pruning of opened weights: from a model to a smaller one, and what that cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from repq.amounts import percent
from repq.api.measuring import accuracy_of
from repq.api.opening import of_weights
from repq.api.quantizing import fused, open_float
from repq.api.running import Options
from repq.errors import RepqError
from repq.log import Log, quiet
from repq.machine.cpu import cpu_cores
from repq.machine.load import OtherLoad
from repq.machine.torch_device import resolve_device
from repq.progress import Progress, silent
from repq.recipe import BenchConfig, EngineName, EvalConfig, PruneConfig, RecoveryConfig
from repq.results import Accuracy, EpochRow, PrunedGroup, PruneReport, SweptGroup

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import Tensor

    from repq.data import DetectionDataset
    from repq.model import Detector
    from repq.prune.choosing import Group
    from repq.prune.cutting import Kept, Means, Pruner
    from repq.prune.sensitivity import Harm
    from repq.quant import Weights


@dataclass(frozen=True, eq=False)
class _Smaller:
    """What is left of a model: without channels of ``groups``, or with the zeros that a recovery has to keep."""

    model: Detector
    groups: tuple[PrunedGroup, ...] = ()
    fixed: int = 0


def pruned(
    trained: Weights,
    config: PruneConfig,
    *,
    train_set: DetectionDataset | None,
    val_set: DetectionDataset | None,
    imgsz: tuple[int, int],
    eval_config: EvalConfig = EvalConfig(),
    device: str = "cpu",
    seed: int = 0,
    state: Path | None = None,
    progress: Progress = silent,
    log: Log = quiet,
) -> tuple[Weights, PruneReport]:
    """Float weights without the channels, or the single weights, that are worth least, fused, after recovery.

    Args:
        train_set: images to rank channels by, and to recover on; None: only weights are looked at.
        val_set: labelled images to measure AP on; None: it is not measured.
        state: file that lets a killed recovery continue.

    Raises:
        RepqError: the target cannot be reached, or what ranks channels needs data or labels that are not there.
    """
    from repq.model import count_macs
    from repq.prune.zeroing import share_of_zeros, without_smallest
    from repq.quant.qat import train_quantized
    from repq.train import epoch_line

    resolve_device(device)
    opened, recovery = fused(trained), config.recovery
    teacher, classes = _teacher(opened, recovery, train_set, imgsz, log)
    config = _settled(config, opened.model, train_set)
    if config.unstructured is None:
        left = _narrowed(trained.model, opened.model, config, train_set, imgsz, progress, log)
    else:
        left = _Smaller(without_smallest(opened.model, config.unstructured))
        recovery = recovery.model_copy(update={"keep_zeros": True})
    smaller = left.model

    def accuracy(model: Detector, title: str) -> Accuracy | None:
        if val_set is None:
            return None
        handle = of_weights(title, replace(opened, model=model), Options(device=device))
        found = accuracy_of(handle, val_set, imgsz, eval_config, progress)
        log(f"{title}: AP {found.ap:.4f}")
        return found

    before, after = accuracy(opened.model, "whole"), accuracy(smaller, "pruned")
    recovered: Accuracy | None = None
    epochs: tuple[EpochRow, ...] = ()
    if recovery.epochs:
        assert train_set is not None  # `_teacher` has looked
        outcome = train_quantized(
            smaller, teacher, train_set, val_set or train_set, imgsz, recovery, device=device, seed=seed,
            teacher_classes=classes, state_path=state, eval_config=eval_config, progress=progress,
            after_epoch=lambda trainer: log(epoch_line(trainer.position.epochs[-1], recovery.epochs)),
        )  # fmt: skip
        smaller, epochs = outcome.model, outcome.epochs
        recovered = accuracy(smaller, "recovered")
    counts = [sum(count_macs(model, imgsz).values()) for model in (opened.model, smaller)]
    sizes = [sum(value.numel() for value in model.parameters()) for model in (opened.model, smaller)]
    report = PruneReport(
        model=opened.model.spec.name,
        importance=config.importance,
        scope=config.scope,
        groups=left.groups,
        fixed=left.fixed,
        macs_before=counts[0],
        macs_after=counts[1],
        parameters_before=sizes[0],
        parameters_after=sizes[1],
        zeros=None if config.unstructured is None else share_of_zeros(smaller),
        accuracy_before=before,
        accuracy_pruned=after,
        accuracy_recovered=recovered,
        epochs=epochs,
    )
    return replace(opened, model=smaller), report


def _teacher(
    whole: Weights, config: RecoveryConfig, train_set: DetectionDataset | None, imgsz: tuple[int, int], log: Log
) -> tuple[Detector, tuple[int, ...] | None]:
    """What a recovery imitates, and where each class of the model is among its own; looked at before anything is done.

    Raises:
        RepqError: there are no images or labels to learn from, or another teacher does not fit.
    """
    from repq.data import class_places
    from repq.quant.qat import demand_labels

    if not config.epochs:
        return whole.model, None
    if train_set is None:
        raise RepqError("a recovery learns from images", found="no --data", fix="give --data, or 0 epochs of recovery")
    demand_labels(whole.model, train_set, config)
    told = whole if config.teacher is None else fused(open_float(config.teacher, log, imgsz))
    return told.model, class_places(whole.names or train_set.names, told.names, "the teacher")


def _settled(config: PruneConfig, model: Detector, train_set: DetectionDataset | None) -> PruneConfig:
    """What ``auto`` means where there are these images: the best that they allow. Single weights go by their size.

    AP before recovery in ``benchmarks/results/2026-11-26-pruning.md``: norms over all layers leave the least, Taylor
    with a sweep the most.
    """
    from repq.train.objective import has_loss

    if config.unstructured is not None:
        return config.model_copy(update={"importance": "l1", "scope": "global"})
    labelled = train_set is not None and train_set.objects > 0 and has_loss(model)
    importance = "taylor" if labelled else "l2"
    scope = "layer" if train_set is None else "sensitivity"
    chosen = {"importance": importance, "scope": scope}
    return config.model_copy(update={name: value for name, value in chosen.items() if getattr(config, name) == "auto"})


def _narrowed(
    trained: Detector,
    whole: Detector,
    config: PruneConfig,
    train_set: DetectionDataset | None,
    imgsz: tuple[int, int],
    progress: Progress,
    log: Log,
) -> _Smaller:
    """``whole``, which is ``trained`` in its fused form, without the channels that are worth least."""
    from repq.prune.choosing import choose, groups_of, share_of_macs
    from repq.prune.cutting import Pruner
    from repq.prune.sensitivity import group_harms, weighed

    pruner = Pruner(whole)
    groups = groups_of(pruner.channels, _scores(pruner, trained, train_set, imgsz, config), config)
    means: Means = {}
    if train_set is not None and config.compensate:
        means = pruner.means(_pixels(whole, train_set, imgsz, config.images))
    harms: list[Harm] = []
    share = share_of_macs(pruner, imgsz)
    if config.scope == "sensitivity":
        if train_set is None:
            raise RepqError("a sweep looks at images", found="no --data", fix="give --data, or --scope global")
        harms = group_harms(
            pruner, groups, _pixels(whole, train_set, imgsz, config.sweep_images), means,
            levels=config.sweep_levels, config=config.recovery if config.recovery.imitates else RecoveryConfig(),
            progress=progress,
        )  # fmt: skip
        groups = weighed(groups, harms, share, pruner)
    cost, most = share, config.target_macs
    if config.latency is not None:
        cost, most = _latency(pruner, means, config.latency, config, imgsz, log)
    kept = choose(pruner, groups, config, cost, most)
    rows = [
        PrunedGroup(
            layers=tuple(group.layers),
            before=len(group.units),
            after=int(kept[group.units].sum()),
            sweep=() if harm is None else _swept(pruner, group, harm, share),
        )
        for group, harm in zip_longest(groups, harms)
    ]
    fixed = sum(int((units == 0).sum()) for units in pruner.channels.outputs.values())
    return _Smaller(pruner.cut(kept, means), tuple(rows), fixed)


def _swept(pruner: Pruner, group: Group, harm: Harm, share: Callable[[Kept], float]) -> tuple[SweptGroup, ...]:
    """What the sweep found of a group."""
    from repq.prune.choosing import without

    def level(pieces: int, loss: float) -> SweptGroup:
        left = len(group.units) - sum(group.steps[:pieces])
        return SweptGroup(left=left, loss=loss, macs_saved=1 - share(without(pruner, [(group, pieces)])))

    return tuple(map(level, harm.pieces, harm.losses))


def _latency(
    pruner: Pruner, means: Means, engine: EngineName, config: PruneConfig, imgsz: tuple[int, int], log: Log
) -> tuple[Callable[[Kept], float], float]:
    """Latency as a share of the whole model's, both taking turns in one runtime, and what it may be."""
    from repq.bench.plans import time_graphs
    from repq.export import export_float

    bench = BenchConfig(threads=(cpu_cores(),))
    whole = export_float(pruner.model, imgsz)

    def medians(*graphs: ModelProto) -> list[float]:
        others = OtherLoad()
        times = time_graphs(engine, graphs, imgsz, bench, label="latency")
        if (load := others.so_far(max(bench.threads))).crowded:
            log(f"other processes kept {load.others:.1f} cores busy meanwhile: this latency is not to be trusted")
        return list(map(median, times))

    def cost(kept: Kept) -> float:
        before, after = medians(whole, export_float(pruner.cut(kept, means), imgsz))
        log(f"{engine}: {after:.3g} ms, {percent(after / before)} of the whole model's {before:.3g} ms")
        return after / before

    if config.latency_ratio is not None:
        return cost, config.latency_ratio
    assert config.max_ms is not None  # the settings have one of both
    (own,) = medians(whole)
    return cost, config.max_ms / own


def _pixels(model: Detector, dataset: DetectionDataset, imgsz: tuple[int, int], images: int) -> Iterator[Tensor]:
    """Network input of the first images."""
    return (pixels for pixels, _ in _looked_at(model, dataset, imgsz, images))


def _scores(
    pruner: Any, trained: Detector, dataset: DetectionDataset | None, imgsz: tuple[int, int], config: PruneConfig
) -> Any:
    """The importance of every unit."""
    from repq.prune.choosing import activation_scores, norm_scores, taylor_scores, unit_scores, weight_scores

    model, kind = pruner.model, config.importance
    if kind in ("l1", "l2"):
        return unit_scores(pruner.channels, weight_scores(model, int(kind[1])))
    if kind == "bn":
        return unit_scores(pruner.channels, norm_scores(trained))
    if dataset is None:
        raise RepqError(f"importance by {kind} looks at images", found="no --data", fix="give --data, or l1 or l2")
    if kind == "activation":
        found = activation_scores(model, _pixels(model, dataset, imgsz, config.images))
        return unit_scores(pruner.channels, found)
    if not dataset.objects:
        raise RepqError("importance by taylor needs labels", fix="give a labelled data set, or another importance")
    return unit_scores(pruner.channels, taylor_scores(model, _losses(model, dataset, imgsz, config.images)), add=True)


def _looked_at(
    model: Detector, dataset: DetectionDataset, imgsz: tuple[int, int], images: int
) -> Iterator[tuple[Tensor, list[Any]]]:
    """Network input, and the objects of each image: class, x1, y1, x2, y2 in its pixels."""
    import numpy as np
    import torch

    from repq.data import batches, pixel_boxes

    records = dataset.records[:images]
    for batch in batches(records, imgsz, 8, preprocessing=model.spec.preprocessing):
        rows = []
        for index, transform in zip(batch.indices, batch.transforms, strict=True):
            record = records[index]
            boxes = transform.to_input(pixel_boxes(record.labels, record.width, record.height))
            rows.append(np.column_stack([record.labels[:, 0], boxes]).astype(np.float32))
        yield torch.from_numpy(batch.images), rows


def _losses(model: Detector, dataset: DetectionDataset, imgsz: tuple[int, int], images: int) -> Iterator[Tensor]:
    import torch

    from repq.train.assigner import pad_objects
    from repq.train.boxes import grid_of
    from repq.train.objective import objective_of

    objective, grid = objective_of(model), grid_of(imgsz, model.spec.strides, torch.device("cpu"))
    for pixels, rows in _looked_at(model, dataset, imgsz, images):
        found = objective.loss(model.answer(model.features(pixels)), pad_objects(rows), grid)
        yield found.total_sum / found.target_score.clamp(min=1)
