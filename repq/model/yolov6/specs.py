"""The YOLOv6 models as data: their names, and what each is made of, resolved to channels and repeats.

A name is an architecture and perhaps a block style: ``yolov6n``, ``yolov6s_v2_opt``, ``yolov6m_qa``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from repq.layout import OutputLayout
from repq.model.family import Spec

Style = Literal[
    "repvgg", "qarepvgg", "qarepvggv2", "hyper_search", "repopt", "conv_relu", "conv_silu", "conv_hardswish"
]
"""Which 3x3 block the network repeats; ``conv_hardswish`` is the Lite family's."""

Stage = Literal["rep", "csp", "mbla", "lite"]
"""How blocks form a stage: in a row, in a CSP bypass (BepC3), in MBLA's branches, or the Lite units."""

Neck = Literal["pan", "bifusion", "lite"]
Pooling = Literal["sppf", "cspsppf", "none"]


@dataclass(frozen=True, kw_only=True)
class ModelSpec(Spec):
    """One detector, ready to build: plain numbers, no multipliers left.

    Attributes:
        style: the basic 3x3 block.
        stage: how the blocks form stages, in backbone and neck alike.
        neck: feature fusion: concatenation (Rep-PAN) or bi-directional (BiFusion), or the Lite neck.
        pooling: the pyramid pooling at the end of the backbone.
        backbone_channels: output channels of the stem and of each stage, stride 2 first.
        backbone_repeats: blocks per stage after the stem.
        top_down_channels: channels of the neck's top-down steps, coarsest first.
        bottom_up_channels: channels of the neck's bottom-up steps, finest first.
        neck_repeats: blocks per neck stage, top-down then bottom-up.
        csp_ratio: width of a CSP bypass over the width of its stage.
        use_dfl: whether a box side is a distribution over ``reg_max`` + 1 bins (DFL) or one number.
        reg_max: largest distance, in strides, that the distribution covers; 0 without DFL.
    """

    layout = OutputLayout(objectness=None, unused=1)  # the constant 1 stands where others have an objectness

    family: Literal["yolov6"] = "yolov6"
    style: Style
    stage: Stage
    neck: Neck
    pooling: Pooling
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

    @property
    def least_entries(self) -> int:
        return sum(self.backbone_repeats) + sum(self.neck_repeats)


# --- names ---------------------------------------------------------------------------------------------------------

STYLE_SUFFIXES: dict[str, Style] = {
    "repvgg": "repvgg",
    "qa": "qarepvggv2",
    "qav1": "qarepvgg",
    "qav2": "qarepvggv2",
    "hs": "hyper_search",
    "opt": "repopt",
    "relu": "conv_relu",
    "silu": "conv_silu",
}
"""Name suffixes that change the block style of an architecture."""

TRAINING_SUFFIXES = ("_fuseab", "_distill_ns")
"""Ways to train that add branches which the finished model lacks; names may carry them and mean the plain model."""


@dataclass(frozen=True)
class _Architecture:
    """One published model: multipliers of the common channel and repeat lists, and its choices (see ``ModelSpec``)."""

    depth: float
    width: float
    stage: Stage = "rep"
    neck: Neck = "bifusion"
    pooling: Pooling = "cspsppf"
    style: Style = "repvgg"
    csp_ratio: float = 0.5
    use_dfl: bool = False
    levels: int = 3
    backbone_repeats: tuple[int, ...] = (6, 12, 18, 6)
    neck_repeats: int = 12


def _csp(depth: float, width: float, ratio: float = 0.5, style: Style = "repvgg") -> _Architecture:
    return _Architecture(depth, width, "csp", pooling="sppf", style=style, csp_ratio=ratio, use_dfl=True)


def _v2(architecture: _Architecture) -> _Architecture:
    return replace(architecture, neck="pan", pooling="sppf")


def _p6(architecture: _Architecture) -> _Architecture:
    return replace(architecture, levels=4, backbone_repeats=(6, 12, 18, 6, 6))


def _mbla(depth: float, width: float) -> _Architecture:
    csp = _csp(depth, width, style="conv_silu")
    return replace(csp, stage="mbla", backbone_repeats=(4, 8, 8, 4), neck_repeats=8)


_N, _T, _S = _Architecture(0.33, 0.25), _v2(_Architecture(0.33, 0.375)), _Architecture(0.33, 0.50)
_M, _L = _csp(0.60, 0.75, 2 / 3), _csp(1.0, 1.0, style="conv_silu")
_N_BASE = replace(_N, style="conv_relu")
_S_BASE = replace(_csp(0.70, 0.50, style="conv_relu"), pooling="cspsppf", use_dfl=False)
_M_BASE, _L_BASE = _csp(0.80, 0.75, style="conv_relu"), _csp(1.0, 1.0, style="conv_relu")

ARCHITECTURES: dict[str, _Architecture] = {
    "yolov6n": _N,
    "yolov6t": _T,  # published with the v2 layout only
    "yolov6s": _S,
    "yolov6m": _M,
    "yolov6l": _L,
    "yolov6n_v2": _v2(_N),
    "yolov6t_v2": _T,
    "yolov6s_v2": _v2(_S),
    "yolov6m_v2": _v2(_M),
    "yolov6l_v2": _v2(_L),
    "yolov6n6": _p6(_N),
    "yolov6s6": _p6(_S),
    "yolov6m6": _p6(_M),
    "yolov6l6": _p6(_L),
    "yolov6s_mbla": _mbla(0.5, 0.5),
    "yolov6m_mbla": _mbla(0.5, 0.75),
    "yolov6l_mbla": _mbla(0.5, 1.0),
    "yolov6x_mbla": _mbla(1.0, 1.0),
    "yolov6n_base": _N_BASE,
    "yolov6s_base": _S_BASE,
    "yolov6m_base": _M_BASE,
    "yolov6l_base": _L_BASE,
    "yolov6n_v2_base": _v2(_N_BASE),
    "yolov6s_v2_base": _v2(_S_BASE),
    "yolov6m_v2_base": _v2(_M_BASE),
    "yolov6l_v2_base": _v2(_L_BASE),
}

_LITE_WIDTHS = {"yolov6lite_s": 0.7, "yolov6lite_m": 1.1, "yolov6lite_l": 1.5}


def model_names() -> tuple[str, ...]:
    """Every name that ``find_spec`` takes, without the training suffixes; architectures first."""
    plain = (*ARCHITECTURES, *_LITE_WIDTHS)
    return (*plain, *(f"{name}_{suffix}" for name in ARCHITECTURES for suffix in STYLE_SUFFIXES))


def find_spec(name: str, num_classes: int) -> ModelSpec | None:
    """The spec of a named model, if there is one."""
    plain = name
    for training_suffix in TRAINING_SUFFIXES:
        plain = plain.removesuffix(training_suffix)
    if plain in _LITE_WIDTHS:
        return _lite_spec(plain, num_classes, _LITE_WIDTHS[plain])
    if plain in ARCHITECTURES:
        return _resolve(plain, num_classes, ARCHITECTURES[plain])
    stem, suffix = split_style(plain)
    return _resolve(plain, num_classes, replace(ARCHITECTURES[stem], style=STYLE_SUFFIXES[suffix])) if suffix else None


def split_style(name: str) -> tuple[str, str]:
    """A name as architecture and style suffix; without a suffix that changes the style of one: (name, "")."""
    stem, _, suffix = name.rpartition("_")
    return (stem, suffix) if stem in ARCHITECTURES and suffix in STYLE_SUFFIXES else (name, "")


def _resolve(name: str, num_classes: int, architecture: _Architecture) -> ModelSpec:
    deep = architecture.levels == 4
    backbone = (64, 128, 256, 512, 768, 1024) if deep else (64, 128, 256, 512, 1024)
    top_down = (512, 256, 128) if deep else (256, 128)
    bottom_up = (256, 512, 1024) if deep else (256, 512)

    def channels(values: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(_round_up(value * architecture.width, 8) for value in values)

    def repeats(values: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(max(round(value * architecture.depth), 1) for value in values)

    return ModelSpec(
        name=name,
        num_classes=num_classes,
        style=architecture.style,
        stage=architecture.stage,
        neck=architecture.neck,
        pooling=architecture.pooling,
        strides=(8, 16, 32, 64)[: architecture.levels],
        backbone_channels=channels(backbone),
        backbone_repeats=repeats(architecture.backbone_repeats),
        top_down_channels=channels(top_down),
        bottom_up_channels=channels(bottom_up),
        neck_repeats=repeats((architecture.neck_repeats,) * (2 * architecture.levels - 2)),
        csp_ratio=architecture.csp_ratio,
        use_dfl=architecture.use_dfl,
        reg_max=16 if architecture.use_dfl else 0,
    )


def _lite_spec(name: str, num_classes: int, width: float) -> ModelSpec:
    return ModelSpec(
        name=name,
        num_classes=num_classes,
        style="conv_hardswish",
        stage="lite",
        neck="lite",
        pooling="none",
        strides=(8, 16, 32, 64),
        backbone_channels=(24, *(_round_near(value * width, 16) for value in (32, 64, 128, 256))),
        backbone_repeats=(1, 3, 7, 3),
        top_down_channels=(96,),
        bottom_up_channels=(),
        neck_repeats=(),
    )


def _round_up(value: float, divisor: int) -> int:
    return -(-int(value) // divisor) * divisor


def _round_near(value: float, divisor: int) -> int:
    """The nearest multiple, but never more than a tenth below ``value`` (MobileNet's rule)."""
    nearest = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return nearest + divisor if nearest < 0.9 * value else nearest
