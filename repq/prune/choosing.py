"""Which units go: their importance, groups of alike units, and how many of each."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from repq.amounts import percent
from repq.errors import RepqError
from repq.layers import LayerId
from repq.model import Detector, count_macs
from repq.model.detector import convolutions_of
from repq.prune.channels import FIXED, Channels
from repq.prune.cutting import Kept, Pruner
from repq.recipe import PruneConfig
from repq.reparam.fuse import folded_blocks

Scores = Mapping[LayerId, NDArray[np.float64]]
"""The importance of every output channel of a layer."""

_LATENCY_STEPS = 32  # of the search: what is measured is not finer


@dataclass(frozen=True, eq=False)
class Group:
    """Units that have the same number of channels in the same layers.

    Attributes:
        units: least important first.
        layers: how many channels of each layer a unit holds.
        steps: the sizes of the pieces that may go, one after the other: what is left divides by ``round``.
        scores: importance of each piece, rising.
    """

    units: NDArray[np.int64]
    layers: Mapping[LayerId, int]
    steps: tuple[int, ...]
    scores: tuple[float, ...]


# --- importance ------------------------------------------------------------------------------------------------------


def weight_scores(model: Detector, power: int) -> Scores:
    """The L1 or L2 norm of the weights of each output channel, over the mean of its layer."""
    found = {}
    for layer, module in convolutions_of(model):
        found[layer] = _relative(_of_outputs(module, module.weight.detach().abs() ** power) ** (1 / power))
    return found


def norm_scores(model: Detector) -> Scores:
    """The scale of the batch norms behind each output channel, over the mean of its layer: of branches the sum.

    A layer without batch norm (predictions, squeeze and excitation) has none (Liu et al., "Network Slimming",
    1708.06519, section 3).

    Args:
        model: before fusing, with batch norms.

    Raises:
        RepqError: it has none.
    """
    found: dict[LayerId, NDArray[np.float64]] = {}
    for block in () if model.deploy else folded_blocks(model):
        if block.norms:
            scales = torch.stack([norm.weight.detach().abs() for norm in block.norms])
            found[LayerId(block.layer)] = _relative(scales.sum(0))
    if not found:
        raise RepqError(
            "importance by bn looks at batch norms", found=f"{model.spec.name} without any: it is fused, or a graph",
            fix="prune the checkpoint from before fusing, or choose another importance",
        )  # fmt: skip
    return found


def activation_scores(model: Detector, images: Iterable[Tensor]) -> Scores:
    """The root mean square of each output channel on images, over the mean of its layer."""
    sums: dict[LayerId, Tensor] = {}

    def hook(layer: LayerId) -> Callable[..., None]:
        def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            sums[layer] = sums.get(layer, 0) + output.square().mean((2, 3)).sum(0)

        return look

    hooks = [module.register_forward_hook(hook(layer)) for layer, module in convolutions_of(model)]
    with torch.no_grad():
        for batch in images:
            model(batch)
    for handle in hooks:
        handle.remove()
    return {layer: _relative(value.sqrt()) for layer, value in sums.items()}


def taylor_scores(model: Detector, losses: Iterable[Tensor]) -> Scores:
    """The first-order change of the loss without each output channel, summed over batches.

    It is ``|sum of weight times gradient|`` (Molchanov et al., 1906.10771, section 3.1).

    Args:
        losses: one of each batch, computed from ``model`` while its weights need gradients.
    """
    found: dict[LayerId, NDArray[np.float64]] = {}
    for loss in losses:
        model.zero_grad(set_to_none=True)
        loss.backward()
        for layer, module in convolutions_of(model):
            if module.weight.grad is not None:
                change = _of_outputs(module, module.weight.detach() * module.weight.grad)
                if module.bias is not None and module.bias.grad is not None:
                    change = change + module.bias.detach() * module.bias.grad
                found[layer] = found.get(layer, 0) + change.abs().double().numpy()
    model.zero_grad(set_to_none=True)
    return found


def _of_outputs(module: nn.Conv2d | nn.ConvTranspose2d, values: Tensor) -> Tensor:
    """The sums of a weight-shaped tensor over each output channel."""
    if not isinstance(module, nn.ConvTranspose2d):
        return values.flatten(1).sum(1)
    own = values.unflatten(0, (module.groups, -1)).sum((1, 3, 4))  # (groups, outputs of one)
    return own.flatten()


def _relative(values: Tensor) -> NDArray[np.float64]:
    return np.asarray(values.double() / values.double().mean().clamp(min=1e-30))


def unit_scores(channels: Channels, scores: Scores, *, add: bool = False) -> NDArray[np.float64]:
    """The importance of every unit: the mean over its channels, or with ``add`` the sum; that of the fixed one is 0."""
    total, count = np.zeros(channels.count), np.zeros(channels.count)
    for layer, units in channels.outputs.items():
        if layer in scores:
            np.add.at(total, units, scores[layer])
            np.add.at(count, units, 1)
    found: NDArray[np.float64] = total if add else total / np.maximum(count, 1)
    found[FIXED] = 0
    return found


# --- groups ----------------------------------------------------------------------------------------------------------


def groups_of(channels: Channels, scores: NDArray[np.float64], config: PruneConfig) -> list[Group]:
    """The groups, which partition the units that are not fixed; those too small to be pruned have no steps."""
    members: dict[int, Counter[LayerId]] = defaultdict(Counter)
    for layer, units in channels.outputs.items():
        for unit, count in zip(*np.unique(units, return_counts=True), strict=True):
            if unit != FIXED:
                members[int(unit)][layer] = int(count)
    alike: dict[frozenset[tuple[LayerId, int]], list[int]] = defaultdict(list)
    for unit, counts in members.items():
        alike[frozenset(counts.items())].append(unit)
    return [_group(np.array(units), dict(sorted(counts)), scores, config) for counts, units in alike.items()]


def _group(
    units: NDArray[np.int64], layers: Mapping[LayerId, int], scores: NDArray[np.float64], config: PruneConfig
) -> Group:
    units = units[np.argsort(scores[units], kind="stable")]
    step = math.lcm(*(config.round // math.gcd(config.round, count) for count in layers.values()))
    least = max(step, math.ceil(len(units) * (1 - config.max_ratio) / step) * step)
    kept, steps = len(units), []
    while (after := (kept - 1) // step * step) >= least:
        steps.append(kept - after)
        kept = after
    ends = np.cumsum(steps)
    means = [float(scores[units[end - size : end]].mean()) for end, size in zip(ends, steps, strict=True)]
    return Group(units, layers, tuple(steps), tuple(np.maximum.accumulate(means).tolist()) if means else ())


# --- how many --------------------------------------------------------------------------------------------------------


def choose(
    pruner: Pruner, groups: Sequence[Group], config: PruneConfig, cost: Callable[[Kept], float], most: float
) -> Kept:
    """For every unit whether it stays: as few go as the target asks for.

    Args:
        cost: of what is kept, such as `share_of_macs`; with ``config.ratio`` it is not asked.
        most: the target: what the cost may be.

    Raises:
        RepqError: the target cannot be reached.
    """
    ordered = _ordered(groups, config)
    counts = np.cumsum([0, *(group.steps[piece] for group, piece in ordered)])

    def kept(pieces: int) -> Kept:
        gone = Counter(id(group) for group, _ in ordered[:pieces])
        return without(pruner, [(group, gone[id(group)]) for group in groups])

    @cache  # a measured one takes long, and would be another the next time
    def left(pieces: int) -> float:
        return cost(kept(pieces))

    def reached(pieces: int) -> bool:
        if config.ratio is not None:
            return bool(counts[pieces] >= config.ratio * sum(len(group.units) for group in groups))
        return left(pieces) <= most

    if not ordered or not reached(len(ordered)):
        channels = counts[-1] / max(1, sum(len(group.units) for group in groups))
        least = "" if config.ratio is not None else f", which leaves {left(len(ordered)):.3g} of at most {most:.3g}"
        raise RepqError(
            "so much cannot be pruned", found=f"at most {percent(channels)} of the channels{least}",
            fix="ask for less, or let more of a group go (max_ratio), or a smaller --round",
        )  # fmt: skip
    stride = 1 if config.latency is None else max(1, len(ordered) // _LATENCY_STEPS)
    low, high = 0, -(-len(ordered) // stride)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(min(middle * stride, len(ordered))) else (middle + 1, high)
    return kept(min(low * stride, len(ordered)))


def without(pruner: Pruner, gone: Iterable[tuple[Group, int]]) -> Kept:
    """For every unit whether it stays when groups lose so many of their pieces, the least important first."""
    stays = np.ones(pruner.channels.count, bool)
    for group, pieces in gone:
        stays[group.units[: sum(group.steps[:pieces])]] = False
    return stays


def _ordered(groups: Sequence[Group], config: PruneConfig) -> list[tuple[Group, int]]:
    """The pieces of all groups in the order in which they go."""
    pieces = [(group, number) for group in groups for number in range(len(group.steps))]

    def place(entry: tuple[Group, int]) -> float:
        group, number = entry
        return group.scores[number] if config.scope != "layer" else sum(group.steps[: number + 1]) / len(group.units)

    return sorted(pieces, key=place)


def share_of_macs(pruner: Pruner, imgsz: tuple[int, int]) -> Callable[[Kept], float]:
    """The share of the multiply-adds that is left, computed from the widths."""
    counts = count_macs(pruner.model, imgsz)
    own = {layer: (m.in_channels, m.out_channels, m.groups) for layer, m in convolutions_of(pruner.model)}
    each = {layer: counts[layer] * groups / (inputs * outputs) for layer, (inputs, outputs, groups) in own.items()}
    total = sum(counts.values())
    fixed = total - sum(counts[layer] for layer in own)  # of matrices, whose channels stay

    def share(kept: Kept) -> float:
        widths = {**own, **pruner.widths(kept)}
        return (fixed + sum(each[layer] * i * o / g for layer, (i, o, g) in widths.items())) / total

    return share
