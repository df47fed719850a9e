"""Backbones and necks: CSPDarknet with PAFPN, and YOLOv3's Darknet53 with its FPN. Module names are the published ones.

Both necks map (B, 3, H, W) to the three maps that the head reads, strides 8, 16 and 32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from repq.model.yolox.blocks import BlockKit, CSPLayer, Focus, PyramidPooling, Residual
from repq.model.yolox.specs import YoloxSpec

Maps = tuple[Tensor, Tensor, Tensor]


class Stages(nn.Module):
    """A stem and stages of strides 4 to 32, of which the last three give the maps."""

    stem: nn.Module
    dark2: nn.Module
    dark3: nn.Module
    dark4: nn.Module
    dark5: nn.Module

    def forward(self, x: Tensor) -> Maps:
        fine = self.dark3(self.dark2(self.stem(x)))
        middle = self.dark4(fine)
        return fine, middle, self.dark5(middle)


class CSPDarknet(Stages):
    def __init__(self, spec: YoloxSpec, kit: BlockKit) -> None:
        super().__init__()
        widths = spec.channels
        self.stem = Focus(widths[0], act=kit.activation, deploy=kit.deploy)
        for stage, (before, after, repeats) in enumerate(zip(widths, widths[1:], spec.repeats, strict=False), start=2):
            parts = [kit.conv3(before, after, 2)]
            if stage == 5:
                parts.append(PyramidPooling(after, after, kit))
            parts.append(CSPLayer(after, after, repeats, kit, shortcut=stage != 5))
            self.add_module(f"dark{stage}", nn.Sequential(*parts))


class PAFPN(nn.Module):
    def __init__(self, spec: YoloxSpec, kit: BlockKit) -> None:
        super().__init__()
        fine, middle, coarse = spec.neck_channels
        repeats = spec.neck_repeats
        self.backbone = CSPDarknet(spec, kit)
        self.lateral_conv0 = kit.conv(coarse, middle)
        self.C3_p4 = CSPLayer(2 * middle, middle, repeats, kit)
        self.reduce_conv1 = kit.conv(middle, fine)
        self.C3_p3 = CSPLayer(2 * fine, fine, repeats, kit)
        self.bu_conv2 = kit.conv3(fine, fine, 2)
        self.C3_n3 = CSPLayer(2 * fine, middle, repeats, kit)
        self.bu_conv1 = kit.conv3(middle, middle, 2)
        self.C3_n4 = CSPLayer(2 * middle, coarse, repeats, kit)

    def forward(self, x: Tensor) -> Maps:
        fine, middle, coarse = self.backbone(x)
        from_coarse = self.lateral_conv0(coarse)
        joined = self.C3_p4(torch.cat((_twice(from_coarse), middle), dim=1))
        from_middle = self.reduce_conv1(joined)
        first = self.C3_p3(torch.cat((_twice(from_middle), fine), dim=1))
        second = self.C3_n3(torch.cat((self.bu_conv2(first), from_middle), dim=1))
        third = self.C3_n4(torch.cat((self.bu_conv1(second), from_coarse), dim=1))
        return first, second, third


class Darknet53(Stages):
    """Residual layers (YOLOv3, 1804.02767, section 2.4), with pyramid pooling at the end."""

    def __init__(self, spec: YoloxSpec, kit: BlockKit) -> None:
        super().__init__()
        widths = spec.channels
        self.stem = nn.Sequential(kit.conv(3, widths[0] // 2, 3), *_group(widths[0] // 2, 1, kit))
        for stage, (before, repeats) in enumerate(zip(widths, spec.repeats, strict=False), start=2):
            parts = _group(before, repeats, kit)
            if stage == 5:
                half = before
                parts += [kit.conv(2 * half, half), kit.conv(half, 2 * half, 3), PyramidPooling(2 * half, half, kit)]
                parts += [kit.conv(half, 2 * half, 3), kit.conv(2 * half, half)]
            self.add_module(f"dark{stage}", nn.Sequential(*parts))


def _group(channels: int, repeats: int, kit: BlockKit) -> list[nn.Module]:
    """A stride-2 unit that doubles the channels, and residual layers."""
    layers: list[nn.Module] = [Residual(2 * channels, kit) for _ in range(repeats)]
    return [kit.conv(channels, 2 * channels, 3, 2), *layers]


class FPN(nn.Module):
    """The neck of YOLOv3 (section 2.3): top-down only."""

    def __init__(self, spec: YoloxSpec, kit: BlockKit) -> None:
        super().__init__()
        self.backbone = Darknet53(spec, kit)
        fine, middle, coarse = spec.neck_channels
        self.out1_cbl = kit.conv(coarse, middle)
        self.out1 = _embedding(spec.channels[3] + middle, middle, kit)
        self.out2_cbl = kit.conv(middle, fine)
        self.out2 = _embedding(spec.channels[2] + fine, fine, kit)

    def forward(self, x: Tensor) -> Maps:
        fine, middle, coarse = self.backbone(x)
        second = self.out1(torch.cat((_twice(self.out1_cbl(coarse)), middle), dim=1))
        first = self.out2(torch.cat((_twice(self.out2_cbl(second)), fine), dim=1))
        return first, second, coarse


def _embedding(in_channels: int, channels: int, kit: BlockKit) -> nn.Sequential:
    """1x1 and 3x3 units in turn, five of them, the 3x3 ones of twice the channels."""
    widen, narrow = (channels, 2 * channels, 3), (2 * channels, channels)
    sizes: list[tuple[int, ...]] = [(in_channels, channels), widen, narrow, widen, narrow]
    return nn.Sequential(*(kit.conv(*size) for size in sizes))


def _twice(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")
