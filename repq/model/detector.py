"""What every detector is, whatever its family; how to build one, and what its layers are."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from repq.layers import LayerId
from repq.model.families import family_named, get_spec
from repq.model.family import Spec


class TrainOutput(NamedTuple):
    """What a detector returns in training mode.

    Attributes:
        features: the maps that the head reads (B, C, H, W), finest first.
        scores: (B, N, classes) in 0..1.
        distances: (B, N, any) raw boxes, in the form that the family's objective takes; see `Detector.answer`.
        raw: (B, N, any) what the head writes, for an objective to which scores and boxes say too little.
    """

    features: tuple[Tensor, ...]
    scores: Tensor
    distances: Tensor
    raw: Tensor | None = None


class Detector(nn.Module, ABC):
    """A network that finds objects, of one spec. Subclasses say what its feature maps are, and what its head does.

    In eval mode ``forward`` maps network input (B, 3, H, W), which ``spec.preprocessing`` makes of images, to
    detections in the layout of ``spec.layout``; in training mode to ``TrainOutput``. H and W are multiples of the
    coarsest stride.

    Args:
        deploy: the fused form: one convolution with bias per block.
    """

    def __init__(self, spec: Spec, *, deploy: bool = False) -> None:
        super().__init__()
        self.spec: Any = spec  # of the family's own type
        self.deploy = deploy

    @abstractmethod
    def features(self, x: Tensor) -> tuple[Tensor, ...]:
        """The feature maps that the head reads, finest first; sensitivity and distillation compare them."""

    @abstractmethod
    def predict(self, features: tuple[Tensor, ...]) -> Tensor:
        """Detections from feature maps."""

    def answer(self, features: tuple[Tensor, ...]) -> TrainOutput:
        """The head's output in training form; by default scores and corners (in pixels) of the detections."""
        layout, detections = self.spec.layout, self.predict(features)
        corners = torch.cat(layout.corners(layout.boxes_of(detections)), dim=-1)
        return TrainOutput(features, layout.scores_of(detections), corners)

    def forward(self, x: Tensor) -> Tensor | TrainOutput:
        features = self.features(x)
        return self.answer(features) if self.training else self.predict(features)

    def merged_layers(self) -> frozenset[LayerId]:
        """The convolutions of the fused form that stand for several branches each."""
        return frozenset()


def build(name_or_spec: str | Spec, num_classes: int = 80, *, deploy: bool = False) -> Detector:
    """Build a detector with fresh weights.

    Args:
        name_or_spec: a name such as ``yolov6n`` or a spec (whose class count then counts).
        num_classes: number of object classes, for a name.
        deploy: build the fused structure (one convolution with bias per block) instead of the trained one.

    Raises:
        RepqError: the name is unknown; the message names the closest ones.
    """
    spec = get_spec(name_or_spec, num_classes) if isinstance(name_or_spec, str) else name_or_spec
    return family_named(spec.family).build(spec, deploy=deploy)


def outline(spec: Spec, deploy: bool) -> Detector:
    """The detector without numbers (on torch's meta device): cheap, whatever its size."""
    with torch.device("meta"):
        return build(spec, deploy=deploy)


def layers_of(model: nn.Module) -> Iterator[tuple[LayerId, nn.Conv2d | nn.ConvTranspose2d]]:
    """All convolutions of a model with their paths, in module order."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            yield LayerId(name), module


def layer_ids(deploy_model: nn.Module) -> tuple[LayerId, ...]:
    """Paths of all convolutions of a fused model, in module order."""
    return tuple(layer for layer, _ in layers_of(deploy_model))


def count_macs(deploy_model: Detector, imgsz: int | tuple[int, int]) -> dict[LayerId, int]:
    """Multiply-adds of every convolution for one image of ``imgsz`` (height, width, or one number for a square).

    ``MACs = output elements * (C_in / groups) * k_h * k_w``; for a transposed convolution
    ``input elements * (C_out / groups) * k_h * k_w``. Nothing is computed: shapes flow through the meta device.

    Raises:
        RepqError: the size is no multiple of the model's coarsest stride.
    """
    height, width = (imgsz, imgsz) if isinstance(imgsz, int) else imgsz
    deploy_model.spec.check_size(height, width)
    model = copy.deepcopy(deploy_model).to("meta").eval()
    counts = dict.fromkeys(layer_ids(model), 0)

    def counter(layer: LayerId) -> Any:
        def hook(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            counted = inputs[0] if isinstance(module, nn.ConvTranspose2d) else output
            counts[layer] = counted.numel() * module.weight[0].numel()

        return hook

    for layer, module in layers_of(model):
        module.register_forward_hook(counter(layer))
    with torch.no_grad():
        model(torch.empty(1, 3, height, width, device="meta"))
    return counts
