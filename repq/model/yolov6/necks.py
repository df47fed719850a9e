"""The Rep-PAN and RepBi-PAN necks for three levels (P3 to P5) and for four (P3 to P6)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repq.model.yolov6.blocks import BlockKit
from repq.model.yolov6.specs import ModelSpec
from repq.model.yolov6.stages import make_stage


class Transpose(nn.Module):
    """Upsampling by two with a learned 2x2 kernel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.upsample_transpose = nn.ConvTranspose2d(channels, channels, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.upsample_transpose(x)


class UpsampleConcat(Transpose):
    """Rep-PAN's fusion of a coarse map with the next finer one: ``cat(up(coarse), same)``."""

    def forward(self, coarse: Tensor, same: Tensor, finer: Tensor) -> Tensor:  # type: ignore[override]
        return torch.cat((self.upsample_transpose(coarse), same), dim=1)


class BiFusion(nn.Module):
    """Bi-directional concatenation: ``cv3(cat(up(coarse), cv1(same), down(cv2(finer))))`` (v3 report, section 2.1)."""

    def __init__(self, same_channels: int, finer_channels: int, channels: int, kit: BlockKit) -> None:
        super().__init__()
        self.cv1 = kit.conv(same_channels, channels, act="relu")
        self.cv2 = kit.conv(finer_channels, channels, act="relu")
        self.cv3 = kit.conv(3 * channels, channels, act="relu")
        self.upsample = Transpose(channels)
        self.downsample = kit.conv(channels, channels, 3, 2, act="relu")

    def forward(self, coarse: Tensor, same: Tensor, finer: Tensor) -> Tensor:
        parts = (self.upsample(coarse), self.cv1(same), self.downsample(self.cv2(finer)))
        return self.cv3(torch.cat(parts, dim=1))


class RepNeck(nn.Module):
    """Path aggregation: a top-down pass from the coarsest map to the finest, then a bottom-up pass back.

    ``forward`` takes all backbone maps, finest first, and returns one map per level of ``spec.strides``, finest first.
    """

    def __init__(self, spec: ModelSpec, kit: BlockKit) -> None:
        super().__init__()
        steps = len(spec.strides) - 1
        maps = spec.backbone_channels[1:]
        self.fuse_kind = "Bifusion" if spec.neck == "bifusion" else "upsample"
        # published names: with four levels the bottom-up stages start at Rep_n4, with three at Rep_n3
        self.top_down = tuple(
            (f"reduce_layer{i}", f"{self.fuse_kind}{i}", f"Rep_p{steps + 2 - i}") for i in range(steps)
        )
        self.bottom_up = tuple((f"downsample{2 - i}", f"Rep_n{steps + 1 + i}") for i in range(steps))

        before = maps[-1]
        for i, (reduce, fuse, stage) in enumerate(self.top_down):
            after, same, finer = spec.top_down_channels[i], maps[-2 - i], maps[-3 - i]
            self.add_module(reduce, kit.conv(before, after, act="relu"))
            if spec.neck == "bifusion":
                self.add_module(fuse, BiFusion(same, finer, after, kit))
                fused = after
            else:
                self.add_module(fuse, UpsampleConcat(after))
                fused = after + same
            self.add_module(stage, make_stage(spec, kit, fused, after, spec.neck_repeats[i]))
            before = after
        for i, (downsample, stage) in enumerate(self.bottom_up):
            lateral, after = spec.top_down_channels[-1 - i], spec.bottom_up_channels[i]
            self.add_module(downsample, kit.conv(before, before, 3, 2, act="relu"))
            self.add_module(stage, make_stage(spec, kit, before + lateral, after, spec.neck_repeats[steps + i]))
            before = after

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, laterals = maps[-1], []
        for i, (reduce, fuse, stage) in enumerate(self.top_down):
            lateral = getattr(self, reduce)(x)
            laterals.append(lateral)
            x = getattr(self, stage)(getattr(self, fuse)(lateral, maps[-2 - i], maps[-3 - i]))
        outputs = [x]
        for (downsample, stage), lateral in zip(self.bottom_up, reversed(laterals), strict=True):
            x = getattr(self, stage)(torch.cat((getattr(self, downsample)(x), lateral), dim=1))
            outputs.append(x)
        return tuple(outputs)
