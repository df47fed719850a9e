"""The YOLOv6 family as data: what each published model is made of, resolved to channels and repeats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from repq.errors import RepqError

Style = Literal[
    "repvgg", "qarepvgg", "qarepvggv2", "hyper_search", "repopt", "conv_relu", "conv_silu", "conv_hardswish"
]
"""Which 3x3 block the network repeats; ``conv_hardswish`` is the Lite family's."""

Stage = Literal["rep", "csp", "mbla", "lite"]
"""How blocks form a stage: in a row, in a CSP bypass (BepC3), in MBLA's branches, or the Lite units."""

Neck = Literal["pan", "bifusion", "lite"]
Pooling = Literal["sppf", "cspsppf", "none"]


@dataclass(frozen=True)
class ModelSpec:
    """One detector, ready to build: plain numbers, no multipliers left.

    Attributes:
        name: the name it is built by, such as ``yolov6s_v2_opt``.
        num_classes: number of object classes.
        style: the basic 3x3 block.
        stage: how the blocks form stages, in backbone and neck alike.
        neck: feature fusion: concatenation (Rep-PAN) or bi-directional (BiFusion), or the Lite neck.
        pooling: the pyramid pooling at the end of the backbone.
        strides: input pixels per cell of each output level, finest first.
        backbone_channels: output channels of the stem and of each stage, stride 2 first.
        backbone_repeats: blocks per stage after the stem.
        top_down_channels: channels of the neck's top-down steps, coarsest first.
        bottom_up_channels: channels of the neck's bottom-up steps, finest first.
        neck_repeats: blocks per neck stage, top-down then bottom-up.
        csp_ratio: width of a CSP bypass over the width of its stage.
        use_dfl: whether a box side is a distribution over ``reg_max`` + 1 bins (DFL) or one number.
        reg_max: largest distance, in strides, that the distribution covers; 0 without DFL.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: str
    num_classes: int
    style: Style
    stage: Stage
    neck: Neck
    pooling: Pooling
    strides: tuple[int, ...]
    backbone_channels: tuple[int, ...]
    backbone_repeats: tuple[int, ...]
    top_down_channels: tuple[int, ...]
    bottom_up_channels: tuple[int, ...]
    neck_repeats: tuple[int, ...]
    csp_ratio: float = 0.5
    use_dfl: bool = False
    reg_max: int = 0

    @property
    def head_channels(self) -> tuple[int, ...]:
        """Channels of the neck's outputs, finest first."""
        if self.neck == "lite":
            return self.top_down_channels[-1:] * len(self.strides)
        return (self.top_down_channels[-1], *self.bottom_up_channels)

    @property
    def bins(self) -> int:
        """Raw numbers per box side: ``reg_max`` + 1."""
        return self.reg_max + 1

    def check_size(self, height: int, width: int) -> None:
        """Check that every level divides the input size.

        Raises:
            RepqError: a side is no positive multiple of the coarsest stride.
        """
        step = max(self.strides)
        if height <= 0 or width <= 0 or height % step or width % step:
            raise RepqError(
                f"{self.name} cannot take images of {height}x{width} (height x width)",
                found=f"a coarsest stride of {step}",
                fix=f"choose multiples of {step}, such as {_nearest(height, step)}x{_nearest(width, step)}",
            )

    def to_json(self) -> str:
        """The spec as one JSON object."""
        return _ADAPTER.dump_json(self).decode()

    @staticmethod
    def from_json(text: str) -> ModelSpec:
        """Read what ``to_json`` wrote.

        Raises:
            RepqError: the text is no JSON object or its keys or values are no model description.
        """
        try:
            return _ADAPTER.validate_json(text)
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(str(part) for part in problem["loc"])
            raise RepqError(
                "cannot read the model description",
                found=f"{where or 'text'}: {problem['msg']}",
                fix="use a file that this version of repq wrote",
            ) from None


def _nearest(value: int, step: int) -> int:
    return max(1, round(value / step)) * step


_ADAPTER = TypeAdapter(ModelSpec)
