"""The anchor-free head: decoupled (section 2.1, figure 2), or coupled as in YOLOv3."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from repq.model.yolox.blocks import BlockKit
from repq.model.yolox.specs import YoloxSpec

PRIOR_PROBABILITY = 0.01


class Head(nn.Module):
    """Per level a stem, two 3x3 units for classes and two for boxes and objectness; coupled: two for all of them."""

    def __init__(self, spec: YoloxSpec, kit: BlockKit) -> None:
        super().__init__()
        self.coupled = spec.coupled
        width, levels = spec.head_channels, len(spec.strides)

        def branches() -> nn.ModuleList:
            pairs = ((kit.conv3(width, width), kit.conv3(width, width)) for _ in range(levels))
            return nn.ModuleList(nn.Sequential(*pair) for pair in pairs)

        def predictions(count: int) -> nn.ModuleList:
            return nn.ModuleList(nn.Conv2d(width, count, 1) for _ in range(levels))

        self.stems = nn.ModuleList(kit.conv(channels, width) for channels in spec.neck_channels)
        if not spec.coupled:
            self.cls_convs = branches()
        self.reg_convs = branches()
        self.cls_preds = predictions(spec.num_classes)
        self.reg_preds = predictions(4)
        self.obj_preds = predictions(1)
        if spec.one_to_one:
            self.one_convs, self.one_preds = branches(), predictions(1)
        self.one_to_one = spec.one_to_one
        # fresh: PRIOR_PROBABILITY of every class and of an object (RetinaNet, section 4.1)
        for layer in (*self.cls_preds, *self.obj_preds):
            nn.init.constant_(layer.bias, -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY))

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        """What the head writes, (B, N, 5 + classes): x, y, w, h, objectness and classes, all raw.

        Without suppression a last column says whether a point is the one of its object. No gradient flows from it into
        the rest of the network.
        """
        levels = []
        for level, feature in enumerate(features):
            stem = self.stems[level](feature)
            of_boxes = self.reg_convs[level](stem)
            of_classes = of_boxes if self.coupled else self.cls_convs[level](stem)
            found = [self.reg_preds[level](of_boxes), self.obj_preds[level](of_boxes)]
            found.append(self.cls_preds[level](of_classes))
            if self.one_to_one:
                found.append(self.one_preds[level](self.one_convs[level](of_boxes.detach())))
            levels.append(torch.cat(found, dim=1).flatten(2))
        return torch.cat(levels, dim=2).transpose(1, 2)
