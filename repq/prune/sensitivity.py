"""What pruning each group alone costs: how far the answers are from the whole model's, and ratios that follow."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from repq.errors import RepqError
from repq.layers import LayerId
from repq.model import Detector, TrainOutput
from repq.model.detector import layers_of
from repq.progress import Progress, silent
from repq.prune.choosing import Group, without
from repq.prune.cutting import Kept, Means, Pruner
from repq.quant.similarity import Outputs
from repq.quant.tape import record
from repq.recipe import ImitationConfig
from repq.train.distill import Teacher


@dataclass(frozen=True)
class Harm:
    """What a group costs when its first ``pieces[i]`` pieces are gone: ``losses[i]``, 0 or more."""

    pieces: tuple[int, ...]
    losses: tuple[float, ...]


@torch.no_grad()
def group_harms(
    pruner: Pruner,
    groups: Sequence[Group],
    images: Iterable[Tensor],
    means: Means,
    *,
    levels: int,
    config: ImitationConfig,
    progress: Progress = silent,
) -> list[Harm]:
    """The imitation loss against the whole model with some channels of one group gone, and no others.

    A batch's forward pass is recorded once, and replayed from the readers of the group on.

    Args:
        images: network input (B, 3, H, W).
        means: as for `Pruner.masked`.
        config: how much the parts of the answers count; projectors, which would have to learn first, do not.
        levels: so many numbers of pieces are tried of each group, evenly spaced.

    Raises:
        RepqError: there are no images.
    """
    model = copy.deepcopy(pruner.model)
    teacher = Teacher(copy.deepcopy(model), model, config.model_copy(update={"projector_weight": 0.0}))
    maps = len(model.spec.strides)
    tried = [_levels(len(group.steps), levels) for group in groups]
    sums = [np.zeros(len(pieces)) for pieces in tried]
    readers = [pruner.readers(group.units) for group in groups]
    modules, content = dict(layers_of(model)), 0.0

    def forward(pixels: Tensor) -> Outputs:
        answer = model.answer(model.features(pixels))
        return (*answer.features, answer.scores, answer.distances, *(() if answer.raw is None else (answer.raw,)))

    for pixels in images:
        tape = record(forward, pixels, modules, sorted({layer for found in readers for layer in found}))
        size, taught = (pixels.shape[2], pixels.shape[3]), _answer(tape.outputs, maps)
        for number, group in progress(list(enumerate(groups)), label="pruning sweep"):
            for place, pieces in enumerate(tried[number]):
                with _muted(pruner, model, readers[number], without(pruner, [(group, pieces)]), means):
                    own = _answer(tape.replay(readers[number]), maps)
                loss = teacher.loss(own, taught, size, 0.0)
                sums[number][place] += max(0.0, float(loss.total_sum))  # below 0 by rounding alone
        content += float(loss.target_score) if groups else 1.0
    if not content:
        raise RepqError("there is nothing to measure the groups on", found="no images", fix="give at least one image")
    return [Harm(pieces, tuple((total / content).tolist())) for pieces, total in zip(tried, sums, strict=True)]


def weighed(
    groups: Sequence[Group], harms: Sequence[Harm], share: Callable[[Kept], float], pruner: Pruner
) -> list[Group]:
    """The groups with scores that compare across them: what a piece costs, over the multiply-adds that it saves."""
    whole, found = share(without(pruner, [])), []
    for group, harm in zip(groups, harms, strict=True):
        pieces = np.arange(len(group.steps) + 1)
        saved = np.array([whole - share(without(pruner, [(group, int(count))])) for count in pieces])
        lost = np.interp(pieces, (0, *harm.pieces), (0.0, *harm.losses))
        each = np.maximum(np.diff(lost), 0) / np.maximum(np.diff(saved), 1e-12)
        found.append(replace(group, scores=tuple(np.maximum.accumulate(each).tolist())))
    return found


def _levels(pieces: int, count: int) -> tuple[int, ...]:
    return tuple(sorted({round(pieces * level / count) for level in range(1, count + 1)} - {0}))


def _answer(outputs: Outputs, maps: int) -> TrainOutput:
    return TrainOutput(outputs[:maps], *outputs[maps:])


@contextmanager
def _muted(pruner: Pruner, model: Detector, readers: Iterable[LayerId], kept: Kept, means: Means) -> Iterator[None]:
    modules = [(layer, model.get_submodule(layer)) for layer in readers]
    saved = [[value.detach().clone() for value in module.parameters()] for _, module in modules]
    for layer, module in modules:
        pruner.mute(layer, module, kept, means.get(layer))
    try:
        yield
    finally:
        with torch.no_grad():
            for (_, module), values in zip(modules, saved, strict=True):
                for parameter, value in zip(module.parameters(), values, strict=True):
                    parameter.copy_(value)
