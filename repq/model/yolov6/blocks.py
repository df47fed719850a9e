"""The 3x3 blocks that YOLOv6 repeats, each as trained (branches) and as deployed (one convolution with bias).

With ``deploy=True`` a block holds only what its fused form needs. All map (B, C_in, H, W) to
(B, C_out, ceil(H / stride), ceil(W / stride)).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repq.model.algebra import (
    Affine,
    BranchScales,
    Fold,
    after_batch_norm,
    average_affine,
    conv_affine,
    conv_and_norm,
    identity_affine,
    scaled,
    total,
)
from repq.model.yolov6.specs import Style

Activation = Literal["relu", "silu", "hardswish", "none"]


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm with the constants that every YOLOv6 model is trained with."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.03)


def activation(kind: Activation, *, deploy: bool) -> nn.Module:
    """ReLU works in place in the training form, where it follows a batch norm and saves a pass over memory.

    Not in the deployed form: there hooks on the convolution must see its true output.
    """
    if kind == "relu":
        return nn.ReLU(inplace=not deploy)
    kinds = {"silu": nn.SiLU, "hardswish": nn.Hardswish, "none": nn.Identity}
    return kinds[kind]()


class ConvModule(nn.Module):
    """``act(bn(conv(x)))``; deployed: ``act(conv(x))`` with a bias in ``conv``."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        stride: int = 1,
        *,
        groups: int = 1,
        act: Activation = "relu",
        deploy: bool = False,
    ) -> None:
        super().__init__()
        self.deploy = deploy
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=deploy)
        if not deploy:
            self.bn = batch_norm(out_channels)
        self.act = activation(act, deploy=deploy)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.act(y if self.deploy else self.bn(y))

    def folds(self) -> Iterable[Fold]:
        return [conv_and_norm("conv", self.conv, self.bn)]


class ConvBlock(nn.Module):
    """A ``ConvModule``, which takes all arguments, under the name ``block``, as the published weights have it."""

    def __init__(self, in_channels: int, out_channels: int, *sizes: int, **options: Any) -> None:
        super().__init__()
        self.block = ConvModule(in_channels, out_channels, *sizes, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class PointConv(nn.Conv2d):
    """A 1x1 convolution without bias: a branch of a block in its training form."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        step = self.stride[0]
        if step > 1 and not x.is_cuda:  # several times faster on CPUs, above all with few channels and backwards
            # The "pool" of one value picks; unlike a slice, its gradient keeps the layout of x.
            return F.conv2d(F.avg_pool2d(x, 1, step), self.weight)
        return super().forward(x)


class ConvBN(nn.Module):
    """``bn(conv(x))``: one branch of a block; it exists in training form only."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        if kernel == 1:
            self.conv: nn.Conv2d = PointConv(in_channels, out_channels, stride)
        else:
            self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)
        self.bn = batch_norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class ReparamBlock(nn.Module):
    """``relu(f(x))`` where ``f`` is a sum of branches in training and the convolution ``rbr_reparam`` when deployed."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, *, deploy: bool = False) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.stride, self.deploy = in_channels, out_channels, stride, deploy
        if deploy:
            self.rbr_reparam = nn.Conv2d(in_channels, out_channels, 3, stride, 1)
        else:
            self.add_branches()
        self.nonlinearity = activation("relu", deploy=deploy)

    @property
    def has_identity(self) -> bool:
        """Whether input and output have the same shape, so that the block has a bypass."""
        return self.in_channels == self.out_channels and self.stride == 1

    def add_branches(self) -> None:
        raise NotImplementedError

    def branches(self, x: Tensor) -> Tensor:
        """What ``rbr_reparam`` computes when deployed."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.nonlinearity(self.rbr_reparam(x) if self.deploy else self.branches(x))

    def folds(self) -> Iterable[Fold]:
        norms = tuple(module for module in self.modules() if isinstance(module, nn.BatchNorm2d))
        return [Fold("rbr_reparam", *self.merged(), norms)]

    def merged(self) -> tuple[tuple[Tensor, ...], Affine]:
        """The kernels of the branches, and ``branches`` as one convolution."""
        raise NotImplementedError

    def identity(self) -> Affine:
        return identity_affine(self.out_channels, 1, next(self.parameters()).device)


class RepVGGBlock(ReparamBlock):
    """``relu(bn(conv3(x)) + bn(conv1(x)) [+ bn(x)])`` (RepVGG, section 3.2)."""

    def add_branches(self) -> None:
        self.rbr_identity = batch_norm(self.in_channels) if self.has_identity else None
        self.rbr_dense = ConvBN(self.in_channels, self.out_channels, 3, self.stride)
        self.rbr_1x1 = ConvBN(self.in_channels, self.out_channels, 1, self.stride)

    def branches(self, x: Tensor) -> Tensor:
        y = self.rbr_dense(x).add_(self.rbr_1x1(x))
        return y if self.rbr_identity is None else y.add_(self.rbr_identity(x))

    def merged(self) -> tuple[tuple[Tensor, ...], Affine]:
        pair = (self.rbr_dense, self.rbr_1x1)
        branches = [after_batch_norm(conv_affine(branch.conv), branch.bn) for branch in pair]
        if self.rbr_identity is not None:
            branches.append(after_batch_norm(self.identity(), self.rbr_identity))
        return tuple(branch.conv.weight for branch in pair), total(*branches)


class QARepVGGBlock(ReparamBlock):
    """``relu(bn(bn(conv3(x)) + conv1(x) [+ x]))`` (QARepVGG, section 4)."""

    def add_branches(self) -> None:
        self.rbr_dense = ConvBN(self.in_channels, self.out_channels, 3, self.stride)
        self.rbr_1x1 = PointConv(self.in_channels, self.out_channels, self.stride)
        self.bn = batch_norm(self.out_channels)

    def branches(self, x: Tensor) -> Tensor:
        return self.bn(self.pre_norm(x))

    def pre_norm(self, x: Tensor) -> Tensor:
        """The sum of the branches, before the last batch norm."""
        y = self.rbr_dense(x).add_(self.rbr_1x1(x))
        return y.add_(x) if self.has_identity else y

    def merged(self) -> tuple[tuple[Tensor, ...], Affine]:
        kernels = (self.rbr_dense.conv.weight, self.rbr_1x1.weight)
        return kernels, after_batch_norm(total(*self.branch_affines()), self.bn)

    def branch_affines(self) -> list[Affine]:
        dense = after_batch_norm(conv_affine(self.rbr_dense.conv), self.rbr_dense.bn)
        return [dense, conv_affine(self.rbr_1x1), *([self.identity()] if self.has_identity else [])]


class QARepVGGBlockV2(QARepVGGBlock):
    """``relu(bn(bn(conv3(x)) + conv1(x) [+ x + mean3(x)]))``: QARepVGG with a 3x3 average (zeros counted) as well."""

    def add_branches(self) -> None:
        super().add_branches()
        self.rbr_avg = nn.AvgPool2d(3, 1, 1) if self.has_identity else None

    def pre_norm(self, x: Tensor) -> Tensor:
        y = super().pre_norm(x)
        return y if self.rbr_avg is None else y.add_(self.rbr_avg(x))

    def branch_affines(self) -> list[Affine]:
        average = average_affine(self.out_channels, 1, 3, self.rbr_1x1.weight.device)
        return [*super().branch_affines(), *([] if self.rbr_avg is None else [average])]


class ScaleLayer(nn.Module):
    """A learned factor per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.view(1, -1, 1, 1)


class LinearAddBlock(ReparamBlock):
    """``relu(bn(s3 conv3(x) + s1 conv1(x) [+ s0 x]))``: the hyper-search block of RepOptimizer (section 3.2)."""

    def add_branches(self) -> None:
        self.conv = nn.Conv2d(self.in_channels, self.out_channels, 3, self.stride, 1, bias=False)
        self.scale_conv = ScaleLayer(self.out_channels)
        self.conv_1x1 = PointConv(self.in_channels, self.out_channels, self.stride)
        self.scale_1x1 = ScaleLayer(self.out_channels)
        self.scale_identity = ScaleLayer(self.out_channels) if self.has_identity else None
        self.bn = batch_norm(self.out_channels)

    def branches(self, x: Tensor) -> Tensor:
        y = self.scale_conv(self.conv(x)).add_(self.scale_1x1(self.conv_1x1(x)))
        return self.bn(y if self.scale_identity is None else y.add_(self.scale_identity(x)))

    def branch_scales(self) -> BranchScales:
        identity = None if self.scale_identity is None else self.scale_identity.weight
        return BranchScales(self.scale_conv.weight, self.scale_1x1.weight, identity)

    def merged(self) -> tuple[tuple[Tensor, ...], Affine]:
        scales = self.branch_scales()
        branches = [scaled(conv_affine(self.conv), scales.conv), scaled(conv_affine(self.conv_1x1), scales.point)]
        if scales.identity is not None:
            branches.append(scaled(self.identity(), scales.identity))
        return (self.conv.weight, self.conv_1x1.weight), after_batch_norm(total(*branches), self.bn)


class RealVGGBlock(ConvModule):
    """``relu(bn(conv3(x)))``: the target block that RepOptimizer trains."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, *, deploy: bool = False) -> None:
        super().__init__(in_channels, out_channels, 3, stride, act="relu", deploy=deploy)

    def branched_conv(self) -> nn.Conv2d:
        return self.conv


_REPARAM_BLOCKS: dict[str, type[ReparamBlock] | type[RealVGGBlock]] = {
    "repvgg": RepVGGBlock,
    "qarepvgg": QARepVGGBlock,
    "qarepvggv2": QARepVGGBlockV2,
    "hyper_search": LinearAddBlock,
    "repopt": RealVGGBlock,
}


@dataclass(frozen=True)
class BlockKit:
    """Makes the blocks of one model: its style, in training or deployed form."""

    style: Style
    deploy: bool

    @property
    def activation(self) -> Activation:
        """Activation of the plain convolutions inside stages and pooling."""
        return "silu" if self.style == "conv_silu" else "relu"

    def block(self, in_channels: int, out_channels: int, stride: int = 1) -> nn.Module:
        """The basic 3x3 block of the style."""
        if self.style in _REPARAM_BLOCKS:
            return _REPARAM_BLOCKS[self.style](in_channels, out_channels, stride, deploy=self.deploy)
        return self.conv(in_channels, out_channels, 3, stride, act=self.activation)

    def conv(
        self, in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, *, act: Activation
    ) -> ConvBlock:
        """A plain convolution with batch norm and activation."""
        return ConvBlock(in_channels, out_channels, kernel, stride, act=act, deploy=self.deploy)
