"""Equalization: move range from where it hurts to where it does not, without changing what the model computes.

Before::

    x -> Conv(W1, b1) -> ReLU -> Conv(W2, b2)

After, with one positive factor per channel between the two::

    x -> Conv(W1 / s, b1 / s) -> ReLU -> Conv(W2 s, b2)

Equal because ``relu(a / s) = relu(a) / s`` for ``s > 0`` (Nagel et al., "Data-free quantization through weight
equalization and bias correction", 2019, section 4.1). No activation between the two does as well; SiLU, Hardswish and
everything else that is not positively homogeneous does not.

The paper balances the ranges of W1 and W2, for one scale per weight tensor. Here weights have one scale per output
channel, so the range of a row of W1 costs nothing; what costs is that all channels of the activation between share one
scale, and all input channels in a row of W2. So the activation's range ``a_c`` stands where the paper has W1's:
``s_c = sqrt(a_c / r_c)`` with ``r_c = max |W2[:, c]|``, which makes both ranges ``sqrt(a_c r_c)`` (as SmoothQuant,
Xiao et al. 2023, equation 4 with alpha = 1/2), all divided by their geometric mean so that nothing drifts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repq.layers import LayerId
from repq.model import Detector
from repq.model.detector import layers_of
from repq.model.weighted import Layer, Matrix, along, input_axis, is_layer, other_axes, output_axis
from repq.quant.calibration.observation import ChannelRange, channel_ranges
from repq.quant.convolution import is_depthwise
from repq.quant.tape import Operation, record_small

LARGEST_FACTOR = 64.0
"""A channel that was almost silent on the calibration images may not be on others."""


@dataclass(frozen=True)
class Chains:
    """Pairs of layers that can be equalized, and for all other layers why they have no partner before them."""

    pairs: tuple[tuple[LayerId, LayerId], ...]
    refused: dict[LayerId, str]

    def summary(self) -> str:
        """How many layers can be equalized, and the reasons against the others."""
        reasons = Counter(self.refused.values()).most_common()
        return f"{len(self.pairs)} layers are equalized with the one before them; not so: " + ", ".join(
            f"{count} ({reason})" for reason, count in reasons
        )


def find_chains(model: Detector) -> Chains:
    """Find, by running a small image through the model, which layer alone reads another one's output.

    Only a ReLU that nobody else reads may lie between the two.
    """
    modules = dict(layers_of(model))
    tape = record_small(model)
    producers = {number: done for done in tape.operations for number in done.outputs}
    readers = Counter(number for done in tape.operations for number in done.inputs) + Counter(tape.results)
    pairs, refused = [], {}
    for step in tape.operations:
        if step.layer is None:
            continue
        found = _partner(step, producers, readers)
        if isinstance(found, Operation) and found.layer is not None:
            reason = _obstacle(modules[found.layer], modules[step.layer])
            if reason is None:
                pairs.append((found.layer, step.layer))
            else:
                refused[step.layer] = reason
        else:
            refused[step.layer] = str(found)
    return Chains(tuple(pairs), refused)


def _obstacle(first: Layer, second: Layer) -> str | None:
    """What stands against equalizing two layers that follow one another; None: nothing."""
    if isinstance(first, Matrix) or isinstance(second, Matrix):
        return None if isinstance(first, Matrix) and isinstance(second, Matrix) else "a product of maps lies before it"
    plain = isinstance(first, nn.Conv2d) and (second.groups == 1 or is_depthwise(second))
    return None if plain else "a grouped or a transposed convolution"


def _partner(step: Operation, producers: dict[int, Operation], readers: Counter[int]) -> Operation | str:
    """The layer whose output only this layer reads, or why there is none."""
    number = step.inputs[0]
    while True:
        before = producers.get(number)
        if before is None:
            return "it reads the image"
        if readers[number] > 1:
            return "others read its input too"
        if before.layer is not None:
            return before
        name = str(before.run)
        if not name.startswith("aten.relu."):
            return f"{name.removeprefix('aten.').split('.')[0]} lies before it"
        number = before.inputs[0]


def equalize(model: Detector, chains: Chains, batches: Iterable[Tensor]) -> None:
    """Equalize all pairs, in place and in the order of the model.

    Args:
        batches: network inputs (B, 3, H, W), on which the ranges of the activations are taken.
    """
    equalize_ranges(model, chains, channel_ranges(model, {after for _, after in chains.pairs}, batches))


def equalize_ranges(model: Detector, chains: Chains, ranges: Mapping[LayerId, ChannelRange]) -> None:
    """Equalize all pairs, in place and in the order of the model, by ranges of at least their second layers' inputs."""
    seen = {after: ranges[after].magnitudes() for _, after in chains.pairs}
    with torch.no_grad():
        for before, after in chains.pairs:
            first, second = model.get_submodule(before), model.get_submodule(after)
            assert is_layer(first) and is_layer(second)
            weights = input_magnitudes(second)
            factors = _factors(seen[after].to(weights.device), weights)
            first.weight /= along(factors, output_axis(first), first.weight.ndim)
            if first.bias is not None:
                first.bias /= factors
            second.weight *= along(factors, _input_axis(second), second.weight.ndim)


def input_magnitudes(layer: Layer) -> Tensor:
    """The largest magnitude among the weights that each input channel meets, (C,)."""
    return layer.weight.detach().abs().amax(other_axes(layer.weight.ndim, _input_axis(layer)))


def _input_axis(layer: Layer) -> int:
    """The axis of the weight along which input channels lie."""
    return 0 if is_depthwise(layer) else input_axis(layer)


def _factors(activations: Tensor, weights: Tensor) -> Tensor:
    """``sqrt(a / r)`` over its geometric mean; 1 for channels that are dead on either side."""
    alive = (activations > 0) & (weights > 0)
    if not alive.any():
        return torch.ones_like(weights)
    logarithms = torch.where(alive, (activations / weights).clamp(1e-30, 1e30).log() / 2, 0)
    centred = logarithms - logarithms[alive].mean()
    return torch.where(alive, centred.exp().clamp(1 / LARGEST_FACTOR, LARGEST_FACTOR), 1)
