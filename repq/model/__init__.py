"""The YOLOv6 family: specs as data, detectors built from them, and their checkpoints."""

from repq.model.blocks import (
    ConvBlock,
    ConvBN,
    ConvModule,
    LinearAddBlock,
    QARepVGGBlock,
    QARepVGGBlockV2,
    RealVGGBlock,
    ReparamBlock,
    RepVGGBlock,
    ScaleLayer,
)
from repq.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from repq.model.detector import Detector, build, layer_ids
from repq.model.family import get_spec, model_names
from repq.model.heads import (
    Detect,
    TrainOutput,
    anchor_points,
    boxes_from_distances,
    centre_form,
    expected_distances,
)
from repq.model.lite import DPBlock
from repq.model.macs import count_macs
from repq.model.specs import ModelSpec, Style

__all__ = [
    "Checkpoint",
    "ConvBN",
    "ConvBlock",
    "ConvModule",
    "DPBlock",
    "Detect",
    "Detector",
    "LinearAddBlock",
    "ModelSpec",
    "QARepVGGBlock",
    "QARepVGGBlockV2",
    "RealVGGBlock",
    "RepVGGBlock",
    "ReparamBlock",
    "ScaleLayer",
    "Style",
    "TrainOutput",
    "anchor_points",
    "boxes_from_distances",
    "build",
    "centre_form",
    "count_macs",
    "expected_distances",
    "get_spec",
    "layer_ids",
    "load_checkpoint",
    "model_names",
    "save_checkpoint",
]
