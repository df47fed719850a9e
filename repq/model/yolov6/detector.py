"""The YOLOv6 detector: backbone, neck and head."""

from __future__ import annotations

from torch import Tensor, nn

from repq.layers import LayerId
from repq.model.detector import Detector, TrainOutput
from repq.model.yolov6.blocks import BlockKit, ReparamBlock
from repq.model.yolov6.heads import Detect
from repq.model.yolov6.lite import LiteBackbone, LiteNeck
from repq.model.yolov6.necks import RepNeck
from repq.model.yolov6.specs import ModelSpec
from repq.model.yolov6.stages import RepBackbone


class YoloV6Detector(Detector):
    """Backbone, neck and head of one spec.

    Detections are (B, N, 5 + classes): centre x, y, width and height in input pixels, the constant 1, class scores.
    """

    def __init__(self, spec: ModelSpec, *, deploy: bool = False) -> None:
        super().__init__(spec, deploy=deploy)
        kit = BlockKit(spec.style, deploy)
        if spec.stage == "lite":
            self.backbone: nn.Module = LiteBackbone(spec, deploy=deploy)
            self.neck: nn.Module = LiteNeck(spec, deploy=deploy)
        else:
            self.backbone = RepBackbone(spec, kit)
            self.neck = RepNeck(spec, kit)
        self.detect = Detect(spec, kit)

    def features(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.neck(self.backbone(x))

    def answer(self, features: tuple[Tensor, ...]) -> TrainOutput:
        return self.detect.answer(features)

    def predict(self, features: tuple[Tensor, ...]) -> Tensor:
        return self.detect.decode(self.detect.answer(features))

    def forward(self, x: Tensor) -> Tensor | TrainOutput:
        return self.detect(self.features(x))

    def merged_layers(self) -> frozenset[LayerId]:
        blocks = (path for path, module in self.named_modules() if isinstance(module, ReparamBlock))
        return frozenset(LayerId(f"{path}.rbr_reparam") for path in blocks)
