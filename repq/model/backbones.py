"""The EfficientRep and CSPBep backbones."""

from __future__ import annotations

from torch import Tensor, nn

from repq.model.blocks import BlockKit
from repq.model.specs import ModelSpec
from repq.model.stages import PyramidPooling, make_stage


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
