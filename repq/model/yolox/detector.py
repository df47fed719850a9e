"""The YOLOX detector: backbone with neck, and head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repq.model.detector import Detector, TrainOutput, in_float32
from repq.model.geometry import anchor_points
from repq.model.yolox.backbones import FPN, PAFPN
from repq.model.yolox.blocks import BlockKit
from repq.model.yolox.head import Head
from repq.model.yolox.specs import YoloxSpec

LARGEST = 10.0  # logarithm of a size in cells that no object has: a fresh network must not overflow


class YoloxDetector(Detector):
    """Backbone, neck and head of one spec.

    Detections are (B, N, 5 + classes): centre x, y, width and height in input pixels, objectness, class scores.
    """

    def __init__(self, spec: YoloxSpec, *, deploy: bool = False) -> None:
        super().__init__(spec, deploy=deploy)
        kit = BlockKit(spec.activation, spec.depthwise, deploy)
        self.backbone: nn.Module = PAFPN(spec, kit) if spec.backbone == "csp" else FPN(spec, kit)
        self.head = Head(spec, kit)

    def features(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.backbone(x)

    def answer(self, features: tuple[Tensor, ...]) -> TrainOutput:
        raw = in_float32(self.head(features))
        corners = torch.cat(self.spec.layout.corners(self.boxes(raw, features)), dim=-1)
        objectness, classes = self.scores(raw)
        return TrainOutput(features, objectness * classes, corners, raw)

    def predict(self, features: tuple[Tensor, ...]) -> Tensor:
        raw = self.head(features)
        return torch.cat((self.boxes(raw, features), *self.scores(raw)), dim=-1)

    def scores(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Objectness (B, N, 1) and scores (B, N, classes), both in 0..1, of what the head writes."""
        classes = 5 + self.spec.num_classes
        objectness = raw[..., 4:5].sigmoid()
        if self.spec.one_to_one:
            objectness = objectness * raw[..., classes:].sigmoid()
        return objectness, raw[..., 5:classes].sigmoid()

    def boxes(self, raw: Tensor, features: tuple[Tensor, ...]) -> Tensor:
        """Centre x, y, width and height in pixels, of what the head writes."""
        points, strides = anchor_points(features, self.spec.strides, raw.dtype)
        centre = (raw[..., :2] + (points - 0.5)) * strides
        return torch.cat((centre, raw[..., 2:4].clamp(max=LARGEST).exp() * strides), dim=-1)
