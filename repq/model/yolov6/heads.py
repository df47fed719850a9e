"""The decoupled, anchor-free detection head."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from repq.model.detector import TrainOutput, in_float32
from repq.model.geometry import anchor_points, boxes_from_distances, centre_form, expected_distances
from repq.model.yolov6.blocks import BlockKit
from repq.model.yolov6.lite import DPBlock
from repq.model.yolov6.specs import ModelSpec

PRIOR_PROBABILITY = 0.01
_UNUSED_BINS = 17


class FixedWeight(nn.Module):
    """A stored weight that nothing computes with: published state dicts name it."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(values, requires_grad=False)


def _prediction_layer(in_channels: int, out_channels: int, says: float) -> nn.Conv2d:
    """A 1x1 convolution that gives the same number everywhere as long as it is fresh."""
    layer = nn.Conv2d(in_channels, out_channels, 1)
    assert layer.bias is not None
    nn.init.zeros_(layer.weight)
    nn.init.constant_(layer.bias, says)
    return layer


class Detect(nn.Module):
    """Per level: a stem, then one branch for classes and one for box sides (YOLOv6 report, section 2.1.3)."""

    def __init__(self, spec: ModelSpec, kit: BlockKit) -> None:
        super().__init__()
        self.strides, self.use_dfl, self.bins = spec.strides, spec.use_dfl, spec.bins
        lite = spec.stage == "lite"

        def convs(kernel: int) -> nn.ModuleList:
            if lite:
                return nn.ModuleList(DPBlock(width, width, deploy=kit.deploy) for width in spec.head_channels)
            return nn.ModuleList(kit.conv(width, width, kernel, act="silu") for width in spec.head_channels)

        self.stems = convs(1)
        self.cls_convs = convs(3)
        self.reg_convs = convs(3)
        # fresh: PRIOR_PROBABILITY of every class (RetinaNet, section 4.1); sides of one stride, or an even distribution
        prior = -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY)
        widths = spec.head_channels
        self.cls_preds = nn.ModuleList(_prediction_layer(width, spec.num_classes, prior) for width in widths)
        self.reg_preds = nn.ModuleList(_prediction_layer(width, 4 * spec.bins, 1.0) for width in widths)
        if not lite:
            # published models store these with DFL and without
            bins = spec.bins if spec.use_dfl else _UNUSED_BINS
            # torch.arange on the meta device would import a second's worth of modules
            projection = torch.tensor(range(bins), dtype=torch.float32)
            self.proj = nn.Parameter(projection, requires_grad=False)
            self.proj_conv = FixedWeight(projection.clone().view(1, -1, 1, 1))

    def forward(self, features: tuple[Tensor, ...]) -> Tensor | TrainOutput:
        output = self.answer(features)
        return output if self.training else self.decode(output)

    def answer(self, features: tuple[Tensor, ...]) -> TrainOutput:
        """Scores after the sigmoid; sides (B, N, 4 (reg_max + 1)) left, top, right, bottom, in strides without DFL."""
        scores, distances = [], []
        for level, feature in enumerate(features):
            stem = self.stems[level](feature)
            classes = self.cls_preds[level](self.cls_convs[level](stem))
            sides = self.reg_preds[level](self.reg_convs[level](stem))
            scores.append(in_float32(classes).sigmoid().flatten(2))
            distances.append(in_float32(sides).flatten(2))
        return TrainOutput(features, torch.cat(scores, 2).transpose(1, 2), torch.cat(distances, 2).transpose(1, 2))

    def decode(self, output: TrainOutput) -> Tensor:
        """Detections (B, N, 5 + classes): centre x, y, width, height in pixels, the constant 1, class scores."""
        sides = expected_distances(output.distances, self.proj) if self.use_dfl else output.distances
        points, strides = anchor_points(output.features, self.strides)
        boxes = centre_form(boxes_from_distances(points, sides)) * strides
        return torch.cat((boxes, torch.ones_like(boxes[..., :1]), output.scores), dim=-1)
