"""The detector and how to build one by name."""

from __future__ import annotations

from torch import Tensor, nn

from repq.layers import LayerId
from repq.model.backbones import RepBackbone
from repq.model.blocks import BlockKit
from repq.model.family import get_spec
from repq.model.heads import Detect, TrainOutput
from repq.model.lite import LiteBackbone, LiteNeck
from repq.model.necks import RepNeck
from repq.model.specs import ModelSpec


class Detector(nn.Module):
    """Backbone, neck and head of one spec.

    In eval mode ``forward`` maps images (B, 3, H, W) in 0..1 to detections (B, N, 5 + classes): centre x, y, width and
    height in input pixels, the constant 1, class scores; in training mode to ``TrainOutput``. H and W are multiples of
    the coarsest stride.
    """

    def __init__(self, spec: ModelSpec, *, deploy: bool = False) -> None:
        super().__init__()
        self.spec, self.deploy = spec, deploy
        kit = BlockKit(spec.style, deploy)
        if spec.stage == "lite":
            self.backbone: nn.Module = LiteBackbone(spec, deploy=deploy)
            self.neck: nn.Module = LiteNeck(spec, deploy=deploy)
        else:
            self.backbone = RepBackbone(spec, kit)
            self.neck = RepNeck(spec, kit)
        self.detect = Detect(spec, kit)

    def features(self, x: Tensor) -> tuple[Tensor, ...]:
        """The neck's maps, finest first."""
        return self.neck(self.backbone(x))

    def forward(self, x: Tensor) -> Tensor | TrainOutput:
        return self.detect(self.features(x))


def build(name_or_spec: str | ModelSpec, num_classes: int = 80, *, deploy: bool = False) -> Detector:
    """Build a detector with fresh weights.

    Args:
        name_or_spec: a name such as ``yolov6n`` or a spec (whose class count then counts).
        num_classes: number of object classes, for a name.
        deploy: build the fused structure (one convolution with bias per block) instead of the trained one.

    Raises:
        RepqError: the name is unknown; the message names the closest ones.
    """
    spec = get_spec(name_or_spec, num_classes) if isinstance(name_or_spec, str) else name_or_spec
    return Detector(spec, deploy=deploy)


def layer_ids(deploy_model: nn.Module) -> tuple[LayerId, ...]:
    """Paths of all convolutions of a fused model, in module order."""
    return tuple(
        LayerId(name)
        for name, module in deploy_model.named_modules()
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
    )
