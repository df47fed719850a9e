"""The YOLOX models as data (YOLOX, arXiv 2107.08430, sections 2 and 3.2).

A name is a model and perhaps options: ``yolox_nano``, ``yolox_s_relu``, ``yolox_tiny_coupled_relu``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from repq.layout import OutputLayout
from repq.model.family import Spec
from repq.preprocessing import Preprocessing, preset

Activation = Literal["silu", "relu", "hardswish", "leaky_relu"]
Backbone = Literal["csp", "darknet53"]


@dataclass(frozen=True, kw_only=True)
class YoloxSpec(Spec):
    """One detector, ready to build: plain numbers, no multipliers left.

    Attributes:
        backbone: CSPDarknet with PAFPN, or YOLOv3's Darknet53 with its FPN.
        channels: of the stem and of the four stages after it.
        repeats: bottlenecks of each of these stages.
        neck_repeats: bottlenecks of each stage of the PAFPN.
        head_channels: of every convolution of the head.
        depthwise: 3x3 convolutions are depthwise ones with a pointwise one behind.
        activation: of all convolutions but the last ones.
        coupled: one branch of the head for classes and boxes (the baseline of table 2).
        one_to_one: two more convolutions and an output of one box per object, without suppression (section 2.1,
            "End-to-end YOLO").
    """

    family: Literal["yolox"] = "yolox"
    strides: tuple[int, ...] = (8, 16, 32)
    preprocessing: Preprocessing = preset("yolox")
    backbone: Backbone = "csp"
    channels: tuple[int, ...]
    repeats: tuple[int, ...]
    neck_repeats: int = 0
    head_channels: int
    depthwise: bool = False
    activation: Activation = "silu"
    coupled: bool = False
    one_to_one: bool = False

    @property
    def layout(self) -> OutputLayout:
        return OutputLayout(one_per_object=self.one_to_one)

    @property
    def neck_channels(self) -> tuple[int, ...]:
        """Channels of the maps that the head reads, finest first."""
        return self.channels[2:] if self.backbone == "csp" else (128, 256, 512)

    @property
    def least_entries(self) -> int:
        return sum(self.repeats) + 4 * self.neck_repeats


_SCALES = {  # depth and width (section 3.2 and table 5)
    "yolox_nano": (0.33, 0.25),
    "yolox_tiny": (0.33, 0.375),
    "yolox_s": (0.33, 0.50),
    "yolox_m": (0.67, 0.75),
    "yolox_l": (1.0, 1.0),
    "yolox_x": (1.33, 1.25),
}
_DARKNET = "yolox_darknet53"
ACTIVATIONS: tuple[Activation, ...] = ("relu", "hardswish")
_OPTIONS = ("coupled", "nmsfree", *ACTIVATIONS)


def model_names() -> tuple[str, ...]:
    """Every name without options, then every one with a single option; ``find_spec`` takes several."""
    plain = (*_SCALES, _DARKNET)
    return (*plain, *(f"{name}_{option}" for name in plain for option in _OPTIONS))


def find_spec(name: str, num_classes: int) -> YoloxSpec | None:
    """The spec of a named model, if there is one."""
    plain, options = split_options(name)
    if plain == _DARKNET:
        activation: Activation = "leaky_relu"
        sizes: dict[str, Any] = {
            "backbone": "darknet53",
            "channels": (64, 128, 256, 512, 1024),
            "repeats": (2, 8, 8, 4),
            "head_channels": 256,
        }
    elif plain in _SCALES:
        activation, (depth, width) = "silu", _SCALES[plain]
        base, repeats = int(64 * width), max(round(3 * depth), 1)
        sizes = {
            "channels": tuple(base * factor for factor in (1, 2, 4, 8, 16)),
            "repeats": tuple(repeats * factor for factor in (1, 3, 3, 1)),
            "neck_repeats": round(3 * depth),
            "head_channels": int(256 * width),
            "depthwise": plain == "yolox_nano",
        }
    else:
        return None
    return YoloxSpec(
        name=name,
        num_classes=num_classes,
        activation=next((option for option in ACTIVATIONS if option in options), activation),
        coupled="coupled" in options,
        one_to_one="nmsfree" in options,
        **sizes,
    )


def split_options(name: str) -> tuple[str, frozenset[str]]:
    """A name as the model and its options."""
    options: set[str] = set()
    while True:
        stem, _, last = name.rpartition("_")
        if last not in _OPTIONS or last in options:
            return name, frozenset(options)
        name, options = stem, options | {last}


def training_settings(name: str) -> dict[str, object]:
    """The published training (section 2.1 and table 5): 300 epochs, the last 15 without mosaic and mixup."""
    small = split_options(name)[0] in ("yolox_nano", "yolox_tiny")
    return {
        "epochs": 300, "batch": 64, "rate_batch": 64, "learning_rate": 0.01, "final_learning_rate_factor": 0.05,
        "momentum": 0.9, "warmup_momentum": 0.9, "warmup_epochs": 5, "warmup_shape": "quadratic", "flat_epochs": 15,
        "warmup_bias_learning_rate": 0.0, "ema_decay": 0.9998, "assigner": "simota", "iou_loss": "iou",
        "iou_weight": 5.0, "l1_weight": 1.0, "l1_epochs": 15, "mosaic_off_epochs": 15,
        "hsv": (0.0, 0.0, 0.0), "hsv_shift": (5.0, 30.0, 30.0), "affine": "mosaic", "rotate": 10.0, "shear": 2.0,
        "mosaic": 0.5 if name.startswith("yolox_nano") else 1.0, "scale": (0.5, 1.5) if small else (0.1, 2.0),
        "mixup": 0.0 if small else 1.0, "mixup_scale": (0.5, 1.5), "multi_scale_batches": 10,
        "multi_scale": (320 / 416, 640 / 416) if small else (0.75, 1.25),
    }  # fmt: skip
