"""The algebra of structural re-parameterization: every branch is one kernel and one bias, and branches add up.

All functions are pure and work in float64, so that rounding happens once, when the result is stored.

Sources: RepVGG (arXiv 2101.03697, section 3.3), QARepVGG (arXiv 2212.01593, section 3), RepOptimizer
(arXiv 2205.15242, section 3.1, linear blocks with scales).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn


class Affine(NamedTuple):
    """A convolution: ``weight`` (out, in / groups, k, k) and ``bias`` (out), both float64."""

    weight: Tensor
    bias: Tensor


def conv_affine(conv: nn.Conv2d) -> Affine:
    """The kernel and bias of a convolution; a missing bias is zero."""
    weight = conv.weight.detach().double()
    bias = conv.bias.detach().double() if conv.bias is not None else weight.new_zeros(weight.shape[0])
    return Affine(weight, bias)


def scaled(branch: Affine, scale: Tensor) -> Affine:
    """Multiply every output channel: W'[o] = s[o] W[o], b'[o] = s[o] b[o]. ``scale`` has one entry per channel."""
    factor = scale.detach().double().flatten()
    return Affine(branch.weight * factor[:, None, None, None], branch.bias * factor)


def after_batch_norm(branch: Affine, bn: nn.BatchNorm2d) -> Affine:
    """Fold a following batch norm: with s = gamma / sqrt(var + eps), W' = s W and b' = s (b - mean) + beta."""
    mean, variance = bn.running_mean, bn.running_var
    assert mean is not None, "a detector's batch norms track their statistics"
    assert variance is not None, "a detector's batch norms track their statistics"
    scale = bn.weight.detach().double() / torch.sqrt(variance.double() + bn.eps)
    weight, bias = scaled(Affine(branch.weight, branch.bias - mean.double()), scale)
    return Affine(weight, bias + bn.bias.detach().double())


def widened(branch: Affine, size: int) -> Affine:
    """Put a small odd kernel into the centre of a ``size`` x ``size`` one (1x1 to 3x3); the outputs stay equal."""
    margin = (size - branch.weight.shape[-1]) // 2
    return Affine(nn.functional.pad(branch.weight, (margin,) * 4), branch.bias)


def identity_affine(channels: int, groups: int, device: torch.device) -> Affine:
    """The 1x1 convolution that returns its input: W[o, o mod (channels / groups)] = 1."""
    per_group = channels // groups
    weight = torch.zeros(channels, per_group, 1, 1, dtype=torch.float64, device=device)
    outputs = torch.arange(channels, device=device)
    weight[outputs, outputs % per_group] = 1.0
    return Affine(weight, weight.new_zeros(channels))


def average_affine(channels: int, groups: int, size: int, device: torch.device) -> Affine:
    """The convolution that averages ``size`` x ``size`` pixels of its own channel, padding included."""
    weight, bias = identity_affine(channels, groups, device)
    return Affine(weight.expand(-1, -1, size, size) / size**2, bias)


def total(*branches: Affine) -> Affine:
    """Parallel branches with equal stride and padding add up: W = sum W_i, b = sum b_i; small kernels are widened."""
    size = max(branch.weight.shape[-1] for branch in branches)
    wide = [widened(branch, size) for branch in branches]
    return Affine(
        torch.stack([branch.weight for branch in wide]).sum(0), torch.stack([branch.bias for branch in wide]).sum(0)
    )


def conv_and_norm(layer: str, conv: nn.Conv2d, bn: nn.BatchNorm2d) -> Fold:
    """The fold of ``bn(conv(x))``."""
    return Fold(layer, (conv.weight,), after_batch_norm(conv_affine(conv), bn), (bn,))


class Fold(NamedTuple):
    """A convolution that a block becomes.

    Attributes:
        layer: its path below the block, in the fused form.
        kernels: the kernels of the branches before folding, as trained.
        affine: what it computes.
        norms: the batch norms that went into it.
    """

    layer: str
    kernels: tuple[Tensor, ...]
    affine: Affine
    norms: tuple[nn.BatchNorm2d, ...] = ()


@runtime_checkable
class Foldable(Protocol):
    """A block of a trained model that fusing turns into plain convolutions."""

    def folds(self) -> Iterable[Fold]:
        """The convolutions that it becomes."""
        ...


@dataclass(frozen=True, eq=False)
class BranchScales:
    """The scales of one block, one factor per output channel: each of shape (C,), of any sign, finite.

    Attributes:
        conv: of the 3x3 branch (``s`` in the RepOptimizer paper).
        point: of the 1x1 branch (``t``).
        identity: of the bypass; None for a block without one.
    """

    conv: Tensor
    point: Tensor
    identity: Tensor | None = None

    @property
    def channels(self) -> int:
        return self.conv.numel()

    def named(self) -> dict[str, Tensor]:
        """The scales by the names that files give them."""
        found = {"scale_conv": self.conv, "scale_1x1": self.point, "scale_identity": self.identity}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def problem(self) -> str | None:
        """What makes these scales unusable, if anything."""
        for name, value in self.named().items():
            if value.ndim != 1 or not value.numel() or not value.is_floating_point():
                shape = tuple(value.shape)
                return f"{name} is {value.dtype} of shape {shape}, not one floating-point number per channel"
            if value.numel() != self.channels:
                return f"{name} has {value.numel()} channels, scale_conv {self.channels}"
            if not torch.isfinite(value).all():
                return f"{name} has values that are not finite"
        return None


@runtime_checkable
class Searched(Protocol):
    """A block with trained scales on its branches: what RepOptimizer's hyper-search trains."""

    def branch_scales(self) -> BranchScales:
        """Its scales, where they are."""
        ...


@runtime_checkable
class Plain(Protocol):
    """A block of one kernel that RepOptimizer trains as if it had branches.

    Protocols that are looked for hold methods alone: from Python 3.12 on, `isinstance` no longer asks ``__getattr__``,
    by which a module finds its submodules.
    """

    def branched_conv(self) -> nn.Conv2d:
        """The convolution whose kernel it is, ``conv`` of the block."""
        ...
