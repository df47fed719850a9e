"""What the YOLOX networks are made of; each block as trained, with batch norm, and deployed, with a bias.

All map (B, C_in, H, W) to (B, C_out, H / stride, W / stride).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repq.model.algebra import Affine, Fold, after_batch_norm, conv_affine, conv_and_norm
from repq.model.yolox.specs import Activation


def _activation(kind: Activation, *, deploy: bool) -> nn.Module:
    """In place in the training form alone: hooks on a deployed convolution must see its true output."""
    inplace = not deploy
    if kind == "leaky_relu":
        return nn.LeakyReLU(0.1, inplace=inplace)
    kinds: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "relu": nn.ReLU, "hardswish": nn.Hardswish}
    return kinds[kind](inplace=inplace)


class ConvUnit(nn.Module):
    """``act(bn(conv(x)))``; deployed: ``act(conv(x))`` with a bias in ``conv``."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        stride: int = 1,
        *,
        groups: int = 1,
        act: Activation = "silu",
        deploy: bool = False,
    ) -> None:
        super().__init__()
        self.deploy = deploy
        padding = (kernel - 1) // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=deploy)
        if not deploy:
            self.bn = nn.BatchNorm2d(out_channels, eps=1e-3, momentum=0.03)
        self.act = _activation(act, deploy=deploy)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.act(y if self.deploy else self.bn(y))

    def folds(self) -> Iterable[Fold]:
        return [conv_and_norm("conv", self.conv, self.bn)]


class FocusUnit(ConvUnit):
    """Space to depth, and a 3x3 unit on what it gives; deployed: one 6x6 convolution of stride 2, which is the same.

    Channel c of part (dy, dx) at (y, x) is channel c of the image at (2 y + dy, 2 x + dx). So the 3x3 kernel's element
    (i, j) of that channel is element (2 i + dy, 2 j + dx) of a kernel on the image, and padding by 1 is padding by 2.
    """

    PARTS = ((0, 0), (1, 0), (0, 1), (1, 1))  # (dy, dx): top left, bottom left, top right, bottom right

    def __init__(self, out_channels: int, *, act: Activation, deploy: bool) -> None:
        if deploy:
            super().__init__(3, out_channels, 6, 2, act=act, deploy=True)
        else:
            super().__init__(12, out_channels, 3, act=act)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if self.deploy else space_to_depth(x))

    def folds(self) -> Iterable[Fold]:
        small, bias = after_batch_norm(conv_affine(self.conv), self.bn)
        large = small.new_zeros(small.shape[0], 3, 6, 6)
        for (dy, dx), part in zip(self.PARTS, small.chunk(4, dim=1), strict=True):
            large[:, :, dy::2, dx::2] = part
        return [Fold("conv", (self.conv.weight,), Affine(large, bias), (self.bn,))]


def space_to_depth(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, 4 C, H / 2, W / 2), in the order of ``FocusUnit.PARTS``."""
    return torch.cat([x[..., dy::2, dx::2] for dy, dx in FocusUnit.PARTS], dim=1)


class Focus(nn.Module):
    """The stem of CSPDarknet."""

    def __init__(self, out_channels: int, *, act: Activation, deploy: bool) -> None:
        super().__init__()
        self.conv = FocusUnit(out_channels, act=act, deploy=deploy)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class DepthwiseUnit(nn.Module):
    """A depthwise unit and a pointwise one."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, kit: BlockKit) -> None:
        super().__init__()
        self.dconv = ConvUnit(
            in_channels, in_channels, 3, stride, groups=in_channels, act=kit.activation, deploy=kit.deploy
        )
        self.pconv = kit.conv(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.pconv(self.dconv(x))


@dataclass(frozen=True)
class BlockKit:
    """Makes the blocks of one model, in training or deployed form."""

    activation: Activation
    depthwise: bool
    deploy: bool

    def conv(self, in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1) -> ConvUnit:
        return ConvUnit(in_channels, out_channels, kernel, stride, act=self.activation, deploy=self.deploy)

    def conv3(self, in_channels: int, out_channels: int, stride: int = 1) -> nn.Module:
        """A 3x3 unit, or a depthwise one in models that have them."""
        if self.depthwise:
            return DepthwiseUnit(in_channels, out_channels, stride, self)
        return self.conv(in_channels, out_channels, 3, stride)


class Bottleneck(nn.Module):
    """``conv2(conv1(x)) [+ x]``."""

    def __init__(self, channels: int, kit: BlockKit, *, shortcut: bool) -> None:
        super().__init__()
        self.conv1 = kit.conv(channels, channels)
        self.conv2 = kit.conv3(channels, channels)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.conv1(x))
        return x + y if self.shortcut else y


class CSPLayer(nn.Module):
    """``conv3(cat(m(conv1(x)), conv2(x)))``, ``m`` a row of bottlenecks (CSPNet, 1911.11929)."""

    def __init__(
        self, in_channels: int, out_channels: int, repeats: int, kit: BlockKit, *, shortcut: bool = False
    ) -> None:
        super().__init__()
        hidden = out_channels // 2
        self.conv1 = kit.conv(in_channels, hidden)
        self.conv2 = kit.conv(in_channels, hidden)
        self.conv3 = kit.conv(2 * hidden, out_channels)
        self.m = nn.Sequential(*(Bottleneck(hidden, kit, shortcut=shortcut) for _ in range(repeats)))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(torch.cat((self.m(self.conv1(x)), self.conv2(x)), dim=1))


class PyramidPooling(nn.Module):
    """SPP: ``conv2(cat(x', max5(x'), max9(x'), max13(x')))`` with ``x' = conv1(x)``.

    The wider maxima are computed as maxima of the narrower ones, which are the same.
    """

    def __init__(self, in_channels: int, out_channels: int, kit: BlockKit) -> None:
        super().__init__()
        hidden = in_channels // 2
        self.conv1 = kit.conv(in_channels, hidden)
        self.conv2 = kit.conv(4 * hidden, out_channels)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.conv1(x)]
        for _ in range(3):
            maps.append(self.pool(maps[-1]))
        return self.conv2(torch.cat(maps, dim=1))


class Residual(nn.Module):
    """``x + layer2(layer1(x))`` through half of the channels (YOLOv3)."""

    def __init__(self, channels: int, kit: BlockKit) -> None:
        super().__init__()
        self.layer1 = kit.conv(channels, channels // 2)
        self.layer2 = kit.conv(channels // 2, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer2(self.layer1(x))
