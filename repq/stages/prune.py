"""Structured pruning: from weights to smaller weights, and what that cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repq.api.fitting import fitted
from repq.api.images import with_sizes
from repq.api.measuring import accuracy_of
from repq.api.opening import of_weights, save_weights
from repq.api.quantizing import fused, open_float
from repq.api.running import Options, resolve_device
from repq.errors import RepqError
from repq.log import Log, quiet
from repq.progress import Progress, silent
from repq.recipe import EvalConfig, GraphConfig, PruneConfig
from repq.results import Accuracy, EpochRow, PrunedGroup, PruneReport
from repq.stages.data import labelled, read_data

if TYPE_CHECKING:
    from torch import Tensor

    from repq.data import DetectionDataset
    from repq.model import Detector


def prune_checkpoint(
    weights: Path,
    out: Path,
    config: PruneConfig,
    *,
    data: Path | None = None,
    splits: tuple[str, str] = ("train", "val"),
    imgsz: tuple[int, int] = (640, 640),
    eval_config: EvalConfig = EvalConfig(),
    graph: GraphConfig = GraphConfig(),
    device: str = "cpu",
    seed: int = 0,
    evaluate: bool = True,
    progress: Progress = silent,
    log: Log = quiet,
) -> PruneReport:
    """Prune a float checkpoint or graph (it is fused first), let it recover by imitation of itself, and write it.

    Args:
        out: .safetensors, or .onnx for a graph of size ``imgsz``.
        data: images to rank channels by, to train on and to evaluate by; without it only weights are looked at.

    Raises:
        CheckpointError: the weights are quantized.
        RepqError: the target cannot be reached, or what ranks channels needs data or labels that are not there.
    """
    from repq.model import count_macs
    from repq.prune.choosing import choose, groups_of, share_of_macs
    from repq.prune.cutting import Means, Pruner
    from repq.prune.sensitivity import Harm, group_harms, weighed
    from repq.quant.qat import train_quantized
    from repq.quant.qat.imitation import ImitationWeights

    resolve_device(device)
    trained = open_float(weights, log, imgsz, graph)
    opened = fused(trained)
    train_set = val_set = None
    if data is not None:
        train_set = fitted(with_sizes(read_data(data, splits[0], log)), opened.names, weights.name, log)
        val_set = labelled(data, splits[1], log) if evaluate else None
        val_set = None if val_set is None else fitted(val_set, opened.names, weights.name, log)
    pruner = Pruner(opened.model)
    groups = groups_of(pruner.channels, _scores(pruner, trained.model, train_set, imgsz, config), config)
    means: Means = {}
    if train_set is not None and config.compensate:
        means = pruner.means(_pixels(opened.model, train_set, imgsz, config.images))
    harms: list[Harm] = []
    share = share_of_macs(pruner, imgsz)
    if config.scope == "sensitivity":
        if train_set is None:
            raise RepqError("a sweep looks at images", found="no --data", fix="give --data, or --scope global")
        harms = group_harms(
            pruner, groups, _pixels(opened.model, train_set, imgsz, config.sweep_images), means,
            levels=config.sweep_levels, weights=ImitationWeights.from_config(config.recovery), progress=progress,
        )  # fmt: skip
        groups = weighed(groups, harms, share, pruner)
    kept = choose(pruner, groups, config, share, config.target_macs)
    smaller = pruner.cut(kept, means)

    def accuracy(model: Detector, title: str) -> Accuracy | None:
        if val_set is None:
            return None
        handle = of_weights(title, replace(opened, model=model), Options(device=device))
        found = accuracy_of(handle, val_set, imgsz, eval_config, progress)
        log(f"{title}: AP {found.ap:.4f}")
        return found

    before, pruned = accuracy(opened.model, "whole"), accuracy(smaller, "pruned")
    recovered: Accuracy | None = None
    epochs: tuple[EpochRow, ...] = ()
    if config.recovery.epochs and train_set is not None:
        outcome = train_quantized(
            smaller, opened.model, train_set, val_set or train_set, imgsz, config.recovery, device=device, seed=seed,
            eval_config=eval_config, progress=progress,
        )  # fmt: skip
        smaller, epochs = outcome.model, outcome.epochs
        recovered = accuracy(smaller, "recovered")
    save_weights(out, replace(opened, model=smaller), imgsz)
    counts = [sum(count_macs(model, imgsz).values()) for model in (opened.model, smaller)]
    sizes = [sum(value.numel() for value in model.parameters()) for model in (opened.model, smaller)]
    return PruneReport(
        model=opened.model.spec.name,
        importance=config.importance,
        groups=tuple(
            PrunedGroup(layers=tuple(group.layers), before=len(group.units), after=int(kept[group.units].sum()))
            for group in groups
        ),
        fixed=sum(int((units == 0).sum()) for units in pruner.channels.outputs.values()),
        macs_before=counts[0],
        macs_after=counts[1],
        parameters_before=sizes[0],
        parameters_after=sizes[1],
        accuracy_before=before,
        accuracy_pruned=pruned,
        accuracy_recovered=recovered,
        epochs=epochs,
    )


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
    from repq.train.boxes import anchor_grid
    from repq.train.objective import objective_of

    objective, strides = objective_of(model), model.spec.strides
    grid = anchor_grid([(imgsz[0] // s, imgsz[1] // s) for s in strides], strides, torch.device("cpu"))
    for pixels, rows in _looked_at(model, dataset, imgsz, images):
        found = objective.loss(model.answer(model.features(pixels)), pad_objects(rows), grid)
        yield found.total_sum / found.target_score.clamp(min=1)
