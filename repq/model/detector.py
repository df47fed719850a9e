"""What every detector is, whatever its family; how to build one, and what its layers are."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from repq.errors import RepqError
from repq.layers import LayerId
from repq.model.families import family_named, get_spec
from repq.model.family import Spec
from repq.model.weighted import Layer, is_convolution, is_layer, output_axis


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


def in_float32(written: Tensor) -> Tensor:
    """What a head writes: in float32 where autocast computed it in fewer bits, too few for scores and boxes."""
    return written.float() if _autocast_on(written) else written


def _autocast_on(tensor: Tensor) -> bool:
    kind = tensor.device.type  # one such as meta knows no autocast, and asking is an error
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


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
        """The head's output in training form, in float32 also under autocast.

        By default scores and corners (in pixels) of the detections, and the whole head computes in float32.
        """
        maps = tuple(in_float32(feature) for feature in features)
        with torch.autocast(maps[0].device.type, enabled=False) if _autocast_on(features[0]) else nullcontext():
            boxes, scores = self.complete(maps)[1]
        return TrainOutput(features, scores, torch.cat(self.spec.layout.corners(boxes), dim=-1))

    def complete(self, features: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Detections, and boxes and scores that two models can be compared by: in the same order, whatever they are."""
        detections = self.predict(features)
        return detections, tuple(self.spec.layout.parts(detections).values())

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
    model = family_named(spec.family).build(spec, deploy=deploy)
    return _resized(model, spec.widths) if spec.widths else model


def _resized(model: Detector, widths: Sequence[tuple[str, int, int, int]]) -> Detector:
    """Give layers other numbers of channels, never more than they have; in place."""
    layers = dict(convolutions_of(model))
    for name, inputs, outputs, groups in widths:
        layer = layers.get(LayerId(name))
        fits = layer is not None and 0 < inputs <= layer.in_channels and 0 < outputs <= layer.out_channels
        if not model.deploy or layer is None or not fits or groups < 1 or inputs % groups or outputs % groups:
            raise RepqError(
                f"{model.spec.name} cannot have these channels", found=f"{name}: {inputs}, {outputs}, groups {groups}",
                fix="a pruned model has its fused form alone, with no more channels than the usual one",
            )  # fmt: skip
        layer.in_channels, layer.out_channels, layer.groups = inputs, outputs, groups
        first = (inputs, outputs // groups) if isinstance(layer, nn.ConvTranspose2d) else (outputs, inputs // groups)
        layer.weight = nn.Parameter(layer.weight.new_empty(*first, *layer.weight.shape[2:]))
        layer.bias = nn.Parameter(layer.weight.new_empty(outputs))
        layer.reset_parameters()
    return model


def outline(spec: Spec, deploy: bool) -> Detector:
    """The detector without numbers (on torch's meta device): cheap, whatever its size."""
    with torch.device("meta"), _Undrawn():
        return build(spec, deploy=deploy)


@lru_cache(maxsize=8)
def known_outline(spec: Spec, deploy: bool) -> Detector:
    """The `outline` that all who ask for it share: to be read, not to be changed."""
    return outline(spec, deploy)


class _Undrawn(TorchFunctionMode):
    """Leaves out drawing first weights: on the meta device they have no values, and torch takes its time for it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", "") == nn.init.__name__:
            return (kwargs or {}).get("tensor", args[0] if args else None)
        return func(*args, **(kwargs or {}))


def layers_of(model: nn.Module) -> Iterator[tuple[LayerId, Layer]]:
    """All layers of a model with their paths, in module order."""
    for name, module in model.named_modules():
        if is_layer(module):
            yield LayerId(name), module


def convolutions_of(model: nn.Module) -> Iterator[tuple[LayerId, nn.Conv2d | nn.ConvTranspose2d]]:
    """Those layers of a model that are convolutions, with their paths, in module order."""
    for name, module in layers_of(model):
        if is_convolution(module):
            yield name, module


def layer_ids(deploy_model: nn.Module) -> tuple[LayerId, ...]:
    """Paths of all layers of a fused model, in module order."""
    return tuple(layer for layer, _ in layers_of(deploy_model))


def count_macs(deploy_model: Detector, imgsz: int | tuple[int, int]) -> dict[LayerId, int]:
    """Multiply-adds of every layer for one image of ``imgsz`` (height, width, or one number for a square).

    ``MACs = output elements * (C_in / groups) * k_h * k_w``; for a transposed convolution
    ``input elements * (C_out / groups) * k_h * k_w``; for a matrix ``output elements * C_in``. Nothing is computed:
    shapes flow through the meta device; but for a graph whose shapes hang on values, as those of a suppression do.

    Raises:
        RepqError: the size is no multiple of the model's coarsest stride.
    """
    height, width = (imgsz, imgsz) if isinstance(imgsz, int) else imgsz
    deploy_model.spec.check_size(height, width)
    try:
        return dict(_counted_of_shapes(deploy_model.spec, (height, width)))
    except (NotImplementedError, RuntimeError):
        return _counted(copy.deepcopy(deploy_model).cpu().eval(), (height, width), "cpu")


@lru_cache(maxsize=64)
def _counted_of_shapes(spec: Spec, imgsz: tuple[int, int]) -> dict[LayerId, int]:
    return _counted(outline(spec, True).eval(), imgsz, "meta")


def _counted(model: Detector, imgsz: tuple[int, int], device: str) -> dict[LayerId, int]:
    with counting_macs(model) as counts, torch.no_grad():
        model(torch.zeros(1, 3, *imgsz, device=device))
    return counts


@contextmanager
def counting_macs(deploy_model: Detector) -> Iterator[dict[LayerId, int]]:
    """What `count_macs` gives, of the images that the model is run on within the block, filled in by its runs."""
    counts, images = dict.fromkeys(layer_ids(deploy_model), 0), [1]

    def begin(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        images[0] = len(inputs[0])

    def counter(layer: LayerId) -> Any:
        def hook(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            counted = inputs[0] if output_axis(module) else output
            counts[layer] = counted.numel() // images[0] * module.weight[0].numel()

        return hook

    with ExitStack() as stack:
        stack.enter_context(deploy_model.register_forward_pre_hook(begin))
        for layer, module in layers_of(deploy_model):
            stack.enter_context(module.register_forward_hook(counter(layer)))
        yield counts
