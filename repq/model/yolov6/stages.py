"""Stages (blocks in a row, in a CSP bypass, or in MBLA's branches), the pyramid pooling, and the backbones of both."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repq.model.yolov6.blocks import BlockKit, ConvModule
from repq.model.yolov6.specs import ModelSpec, Pooling


class RepBlock(nn.Module):
    """``repeats`` blocks in a row; the first changes the number of channels."""

    def __init__(self, first: nn.Module, others: list[nn.Module]) -> None:
        super().__init__()
        self.conv1 = first
        self.block = nn.Sequential(*others) if others else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        return x if self.block is None else self.block(x)


class BottleRep(nn.Module):
    """``conv2(conv1(x)) + alpha x`` with a learned number ``alpha`` (report, section 2.1); MBLA has ``conv3``."""

    def __init__(self, channels: int, kit: BlockKit, *, third: bool = False) -> None:
        super().__init__()
        self.conv1 = kit.block(channels, channels)
        self.conv2 = kit.block(channels, channels)
        self.conv3 = kit.block(channels, channels) if third else nn.Identity()
        self.alpha = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(self.conv2(self.conv1(x))) + self.alpha * x


class BepC3(nn.Module):
    """CSPStackRep: ``cv3(cat(m(cv1(x)), cv2(x)))``, ``m`` a row of ``repeats`` / 2 BottleReps (report, figure 3)."""

    def __init__(self, in_channels: int, out_channels: int, repeats: int, ratio: float, kit: BlockKit) -> None:
        super().__init__()
        hidden, act = int(out_channels * ratio), kit.activation
        self.cv1 = kit.conv(in_channels, hidden, act=act)
        self.cv2 = kit.conv(in_channels, hidden, act=act)
        self.cv3 = kit.conv(2 * hidden, out_channels, act=act)
        self.m = RepBlock(BottleRep(hidden, kit), [BottleRep(hidden, kit) for _ in range(repeats // 2 - 1)])

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), dim=1))


class MBLABlock(nn.Module):
    """Multi-branch layer aggregation: split, run each part through its own row of units, join every intermediate."""

    def __init__(self, in_channels: int, out_channels: int, repeats: int, ratio: float, kit: BlockKit) -> None:
        super().__init__()
        hidden, lengths = int(out_channels * ratio), _branch_lengths(repeats // 2)
        self.cv1 = ConvModule(in_channels, (1 + len(lengths)) * hidden, act=kit.activation, deploy=kit.deploy)
        self.cv2 = ConvModule(
            (1 + len(lengths) + sum(lengths)) * hidden, out_channels, act=kit.activation, deploy=kit.deploy
        )
        self.m = nn.ModuleList(nn.Sequential(*(BottleRep(hidden, kit, third=True) for _ in range(n))) for n in lengths)

    def forward(self, x: Tensor) -> Tensor:
        bypass, *parts = self.cv1(x).chunk(1 + len(self.m), dim=1)
        collected = [bypass]
        for part, units in zip(parts, self.m, strict=True):
            collected.append(part)
            for unit in units.children():
                collected.append(unit(collected[-1]))
        return self.cv2(torch.cat(collected, dim=1))


def _branch_lengths(units: int) -> tuple[int, ...]:
    """Lengths of MBLA's branches beside the bypass: the longest, and the greatest power of two below it."""
    if units <= 1:
        return (1,)
    return (1 << ((units - 1).bit_length() - 1), units)


def make_stage(spec: ModelSpec, kit: BlockKit, in_channels: int, out_channels: int, repeats: int) -> nn.Module:
    """One stage of ``repeats`` blocks in the manner of ``spec.stage``."""
    if spec.stage == "csp":
        return BepC3(in_channels, out_channels, repeats, spec.csp_ratio, kit)
    if spec.stage == "mbla":
        return MBLABlock(in_channels, out_channels, repeats, spec.csp_ratio, kit)
    others = [kit.block(out_channels, out_channels) for _ in range(repeats - 1)]
    return RepBlock(kit.block(in_channels, out_channels), others)


class SPPFModule(nn.Module):
    """Pooling at 5, 9 and 13 pixels as three 5x5 maxima in a row: ``cv2(cat(x, p(x), p(p(x)), p(p(p(x)))))``."""

    def __init__(self, channels: int, kit: BlockKit) -> None:
        super().__init__()
        hidden, act = channels // 2, kit.activation
        self.cv1 = kit.conv(channels, hidden, act=act)
        self.cv2 = kit.conv(4 * hidden, channels, act=act)
        self.m = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.cv2(_pyramid(self.cv1(x), self.m))


class CSPSPPFModule(nn.Module):
    """SPPF in a CSP bypass: half of the channels go through the pooling, half around it (YOLOv6 v3 report, 2.1)."""

    def __init__(self, channels: int, kit: BlockKit) -> None:
        super().__init__()
        hidden, act = channels // 2, kit.activation
        self.cv1 = kit.conv(channels, hidden, act=act)
        self.cv2 = kit.conv(channels, hidden, act=act)
        self.cv3 = kit.conv(hidden, hidden, 3, act=act)
        self.cv4 = kit.conv(hidden, hidden, act=act)
        self.cv5 = kit.conv(4 * hidden, hidden, act=act)
        self.cv6 = kit.conv(hidden, hidden, 3, act=act)
        self.cv7 = kit.conv(2 * hidden, channels, act=act)
        self.m = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        pooled = _pyramid(self.cv4(self.cv3(self.cv1(x))), self.m)
        return self.cv7(torch.cat((self.cv2(x), self.cv6(self.cv5(pooled))), dim=1))


def _pyramid(x: Tensor, pool: nn.Module) -> Tensor:
    once = pool(x)
    twice = pool(once)
    return torch.cat((x, once, twice, pool(twice)), dim=1)


class PyramidPooling(nn.Module):
    """The chosen pooling under its published name (``sppf`` or ``cspsppf``)."""

    def __init__(self, channels: int, pooling: Pooling, kit: BlockKit) -> None:
        super().__init__()
        self.kind = "cspsppf" if pooling == "cspsppf" else "sppf"
        module = CSPSPPFModule if pooling == "cspsppf" else SPPFModule
        self.add_module(self.kind, module(channels, kit))

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, self.kind)(x)


class RepBackbone(nn.Module):
    """A stem and one stage per halving of the resolution (YOLOv6 report, section 2.1.1).

    ``forward`` maps (B, 3, H, W) to the outputs of all stages after the stem, finest first: strides 4, 8, 16, 32 …
    """

    def __init__(self, spec: ModelSpec, kit: BlockKit) -> None:
        super().__init__()
        channels = spec.backbone_channels
        self.stem = kit.block(3, channels[0], 2)
        self.stages = tuple(f"ERBlock_{number}" for number in range(2, len(channels) + 1))
        for name, before, after, repeats in zip(
            self.stages, channels[:-1], channels[1:], spec.backbone_repeats, strict=True
        ):
            parts = [kit.block(before, after, 2), make_stage(spec, kit, after, after, repeats)]
            if name == self.stages[-1]:
                parts.append(PyramidPooling(after, spec.pooling, kit))
            self.add_module(name, nn.Sequential(*parts))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(x)
        outputs = []
        for name in self.stages:
            x = getattr(self, name)(x)
            outputs.append(x)
        return tuple(outputs)
