"""How an image becomes network input, as a value: it belongs to a model and travels with all that is made of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

from repq.errors import RepqError
from repq.json_value import JsonValue

_PLANES = tuple[float, float, float]


@dataclass(frozen=True)
class Preprocessing(JsonValue):
    """Where an image lies in the input, and ``(p / divisor - mean) / std`` of its pixels p in 0..255.

    The defaults are those that YOLOv6 was trained with.

    Attributes:
        colours: their order in the input; ``mean`` and ``std`` follow it.
        divisor: 255 for a network of pixels in 0..1, 1 for one of 0..255.
        placement: of the image in the input; the rest is filled.
        resize: how images shrink: ``area`` averages what a pixel covers, ``linear`` looks at the four nearest pixels.
            They are enlarged linearly.
        stretch: fill the input, whatever the image's aspect.
        pad: grey level of what is filled.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    colours: Literal["rgb", "bgr"] = "rgb"
    divisor: float = 255.0
    mean: _PLANES = (0.0, 0.0, 0.0)
    std: _PLANES = (1.0, 1.0, 1.0)
    placement: Literal["centre", "top_left"] = "centre"
    resize: Literal["area", "linear"] = "area"
    stretch: bool = False
    pad: int = 114

    def __post_init__(self) -> None:
        numbers = (self.divisor, *self.mean, *self.std)
        if not (all(map(math.isfinite, numbers)) and min(self.divisor, *self.std) > 0 and 0 <= self.pad <= 255):
            raise ValueError(
                f"no preprocessing: divisor {self.divisor}, mean {self.mean}, std {self.std}, pad {self.pad}"
            )

    @property
    def bgr(self) -> bool:
        return self.colours == "bgr"

    @property
    def shifts(self) -> bool:
        """Whether zero in the input is no black pixel, or the colours have different scales."""
        return any(self.mean) or self.std != (1.0, 1.0, 1.0)

    def normalize(self, pixels: Any) -> Any:
        """Turn float pixels (B, 3, H, W) in 0..255, colours in order, into network input, in place (numpy or torch)."""
        if self.divisor != 1:
            pixels /= self.divisor
        if self.shifts:
            for channel, (mean, std) in enumerate(zip(self.mean, self.std, strict=True)):
                plane = pixels[:, channel]
                plane -= mean
                plane /= std
        return pixels


@dataclass(frozen=True)
class Preset:
    """A preprocessing that many models share.

    Attributes:
        name: what options and recipes call it.
        title: what it is, in a few words.
    """

    name: str
    title: str
    preprocessing: Preprocessing


_YOLOX = Preprocessing(colours="bgr", divisor=1.0, placement="top_left", resize="linear")
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

PRESETS: list[Preset] = [
    Preset("yolov6", "RGB in 0..1, in the middle", Preprocessing()),
    Preset("yolox", "BGR in 0..255, top left, since release 0.1.1rc0", _YOLOX),
    Preset(
        "yolox-legacy", "RGB with ImageNet's mean and deviation, top left, before release 0.1.1rc0",
        Preprocessing(mean=_IMAGENET_MEAN, std=_IMAGENET_STD, placement="top_left", resize="linear"),
    ),
    Preset("ultralytics", "RGB in 0..1, in the middle, shrunk linearly", Preprocessing(resize="linear")),
    Preset("rtdetr", "RGB in 0..1, stretched: RT-DETR, D-FINE", Preprocessing(stretch=True)),
    Preset(
        "fastestdet", "BGR in 0..1, stretched: FastestDet",
        Preprocessing(colours="bgr", resize="linear", stretch=True),
    ),
    Preset(
        "nanodet", "BGR with ImageNet's mean and deviation, stretched: NanoDet",
        Preprocessing("bgr", mean=_IMAGENET_MEAN[::-1], std=_IMAGENET_STD[::-1], resize="linear", stretch=True),
    ),
]  # fmt: skip


def preset(name: str) -> Preprocessing:
    """The preprocessing of a preset.

    Raises:
        RepqError: there is none of that name.
    """
    for entry in PRESETS:
        if entry.name == name:
            return entry.preprocessing
    known = ", ".join(entry.name for entry in PRESETS)
    raise RepqError(f"there is no preprocessing named {name!r}", found=known, fix="use one of these names")
