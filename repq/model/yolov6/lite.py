"""The YOLOv6Lite family: depthwise units, backbone and neck for small CPUs."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from repq.model.algebra import Fold, conv_and_norm
from repq.model.yolov6.blocks import ConvBlock, batch_norm
from repq.model.yolov6.specs import ModelSpec


class DPBlock(nn.Module):
    """Depthwise 5x5, then pointwise, each with batch norm and hardswish.

    Both convolutions have a bias in training form too, as in the published weights.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, *, deploy: bool) -> None:
        super().__init__()
        self.deploy = deploy
        self.conv_dw_1 = nn.Conv2d(in_channels, in_channels, 5, stride, 2, groups=in_channels)
        self.conv_pw_1 = nn.Conv2d(in_channels, out_channels, 1)
        if not deploy:
            self.bn_1 = batch_norm(in_channels)
            self.bn_2 = batch_norm(out_channels)
        self.act = nn.Hardswish()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_dw_1(x)
        x = self.act(x if self.deploy else self.bn_1(x))
        x = self.conv_pw_1(x)
        return self.act(x if self.deploy else self.bn_2(x))

    def folds(self) -> Iterable[Fold]:
        pairs = (("conv_dw_1", self.conv_dw_1, self.bn_1), ("conv_pw_1", self.conv_pw_1, self.bn_2))
        return [conv_and_norm(*pair) for pair in pairs]


class SEBlock(nn.Module):
    """Squeeze and excitation: ``x * hardsigmoid(conv2(relu(conv1(mean(x)))))``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.conv1 = nn.Conv2d(channels, channels // 4, 1)
        self.conv2 = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * functional.hardsigmoid(self.conv2(functional.relu(self.conv1(self.pool(x)))))


class LiteUnit(nn.Module):
    """Stride 1: half of the channels pass untouched, half through an SE bottleneck; then the halves are shuffled."""

    def __init__(self, channels: int, *, deploy: bool) -> None:
        super().__init__()
        half = channels // 2
        self.conv_pw_1 = ConvBlock(half, half, act="hardswish", deploy=deploy)
        self.conv_dw_1 = ConvBlock(half, half, 3, groups=half, act="none", deploy=deploy)
        self.se = SEBlock(half)
        self.conv_1 = ConvBlock(half, half, act="hardswish", deploy=deploy)

    def forward(self, x: Tensor) -> Tensor:
        passed, changed = x.chunk(2, dim=1)
        changed = self.conv_1(self.se(self.conv_dw_1(self.conv_pw_1(changed))))
        # channel shuffle: one channel of each half in turn
        return torch.stack((passed, changed), dim=2).flatten(1, 2)


class LiteDownUnit(nn.Module):
    """Stride 2: a depthwise branch and an SE bottleneck branch, joined and mixed by a depthwise-pointwise pair."""

    def __init__(self, in_channels: int, channels: int, *, deploy: bool) -> None:
        super().__init__()
        half, quarter = channels // 2, channels // 4
        self.conv_dw_1 = ConvBlock(in_channels, in_channels, 3, 2, groups=in_channels, act="none", deploy=deploy)
        self.conv_1 = ConvBlock(in_channels, half, act="hardswish", deploy=deploy)
        self.conv_pw_2 = ConvBlock(in_channels, quarter, act="hardswish", deploy=deploy)
        self.conv_dw_2 = ConvBlock(quarter, quarter, 3, 2, groups=quarter, act="none", deploy=deploy)
        self.se = SEBlock(quarter)
        self.conv_2 = ConvBlock(quarter, half, act="hardswish", deploy=deploy)
        self.conv_dw_3 = ConvBlock(channels, channels, 3, groups=channels, act="hardswish", deploy=deploy)
        self.conv_pw_3 = ConvBlock(channels, channels, act="hardswish", deploy=deploy)

    def forward(self, x: Tensor) -> Tensor:
        plain = self.conv_1(self.conv_dw_1(x))
        excited = self.conv_2(self.se(self.conv_dw_2(self.conv_pw_2(x))))
        return self.conv_pw_3(self.conv_dw_3(torch.cat((plain, excited), dim=1)))


class LiteBackbone(nn.Module):
    """A stem and four stages of one stride-2 unit and several stride-1 units; returns strides 4, 8, 16, 32."""

    def __init__(self, spec: ModelSpec, *, deploy: bool) -> None:
        super().__init__()
        channels = spec.backbone_channels
        self.conv_0 = ConvBlock(3, channels[0], 3, 2, act="hardswish", deploy=deploy)
        self.stages = tuple(f"lite_effiblock_{number}" for number in range(1, len(channels)))
        for name, before, after, repeats in zip(
            self.stages, channels[:-1], channels[1:], spec.backbone_repeats, strict=True
        ):
            units: list[nn.Module] = [LiteDownUnit(before, after, deploy=deploy)]
            units += [LiteUnit(after, deploy=deploy) for _ in range(repeats - 1)]
            self.add_module(name, nn.Sequential(*units))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.conv_0(x)
        outputs = []
        for name in self.stages:
            x = getattr(self, name)(x)
            outputs.append(x)
        return tuple(outputs)


class DarknetBlock(nn.Module):
    """A pointwise convolution and a ``DPBlock``."""

    def __init__(self, channels: int, *, deploy: bool) -> None:
        super().__init__()
        self.conv_1 = ConvBlock(channels, channels, act="hardswish", deploy=deploy)
        self.conv_2 = DPBlock(channels, channels, deploy=deploy)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_2(self.conv_1(x))


class CSPBlock(nn.Module):
    """``conv_3(cat(blocks(conv_1(x)), conv_2(x)))``."""

    def __init__(self, in_channels: int, channels: int, *, deploy: bool) -> None:
        super().__init__()
        hidden = channels // 2
        self.conv_1 = ConvBlock(in_channels, hidden, act="hardswish", deploy=deploy)
        self.conv_2 = ConvBlock(in_channels, hidden, act="hardswish", deploy=deploy)
        self.conv_3 = ConvBlock(channels, channels, act="hardswish", deploy=deploy)
        self.blocks = DarknetBlock(hidden, deploy=deploy)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_3(torch.cat((self.blocks(self.conv_1(x)), self.conv_2(x)), dim=1))


class LiteNeck(nn.Module):
    """Path aggregation with one width on all levels, and a fourth level (stride 64) from both ends of the path."""

    def __init__(self, spec: ModelSpec, *, deploy: bool) -> None:
        super().__init__()
        width = spec.top_down_channels[-1]
        p3, p4, p5 = spec.backbone_channels[-3:]
        self.reduce_layer0 = ConvBlock(p5, width, act="hardswish", deploy=deploy)
        self.reduce_layer1 = ConvBlock(p4, width, act="hardswish", deploy=deploy)
        self.reduce_layer2 = ConvBlock(p3, width, act="hardswish", deploy=deploy)
        self.Csp_p4 = CSPBlock(2 * width, width, deploy=deploy)
        self.Csp_p3 = CSPBlock(2 * width, width, deploy=deploy)
        self.Csp_n3 = CSPBlock(2 * width, width, deploy=deploy)
        self.Csp_n4 = CSPBlock(2 * width, width, deploy=deploy)
        self.downsample2 = DPBlock(width, width, stride=2, deploy=deploy)
        self.downsample1 = DPBlock(width, width, stride=2, deploy=deploy)
        self.p6_conv_1 = DPBlock(width, width, stride=2, deploy=deploy)
        self.p6_conv_2 = DPBlock(width, width, stride=2, deploy=deploy)
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        p3, p4, p5 = maps[-3:]
        top = self.reduce_layer0(p5)
        middle = self.Csp_p4(torch.cat((self.upsample(top), self.reduce_layer1(p4)), dim=1))
        n3 = self.Csp_p3(torch.cat((self.upsample(middle), self.reduce_layer2(p3)), dim=1))
        n4 = self.Csp_n3(torch.cat((self.downsample2(n3), middle), dim=1))
        n5 = self.Csp_n4(torch.cat((self.downsample1(n4), top), dim=1))
        return n3, n4, n5, self.p6_conv_1(top) + self.p6_conv_2(n5)
