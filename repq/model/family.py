"""The names of the family: ``ARCHITECTURE[_STYLE]``, such as ``yolov6n``, ``yolov6s_v2_opt`` or ``yolov6m_qa``."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace

from repq.errors import RepqError
from repq.model.specs import ModelSpec, Neck, Pooling, Stage, Style

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
    """Every name that ``get_spec`` takes, without the training suffixes; architectures first."""
    plain = (*ARCHITECTURES, *_LITE_WIDTHS)
    return (*plain, *(f"{name}_{suffix}" for name in ARCHITECTURES for suffix in STYLE_SUFFIXES))


def get_spec(name: str, num_classes: int = 80) -> ModelSpec:
    """The spec of a named model.

    Raises:
        RepqError: the name is unknown (the message names the closest ones) or ``num_classes`` is below one.
    """
    if num_classes < 1:
        raise RepqError(f"{name} needs at least one class", found=str(num_classes), fix="give num_classes of 1 or more")
    plain = name
    for training_suffix in TRAINING_SUFFIXES:
        plain = plain.removesuffix(training_suffix)
    if plain in _LITE_WIDTHS:
        return _lite_spec(plain, num_classes, _LITE_WIDTHS[plain])
    if plain in ARCHITECTURES:
        return _resolve(plain, num_classes, ARCHITECTURES[plain])
    stem, _, suffix = plain.rpartition("_")
    if stem in ARCHITECTURES and suffix in STYLE_SUFFIXES:
        return _resolve(plain, num_classes, replace(ARCHITECTURES[stem], style=STYLE_SUFFIXES[suffix]))
    close = difflib.get_close_matches(name, model_names(), n=4, cutoff=0.0)
    raise RepqError(
        f"there is no model named {name!r}",
        found=f"the closest names are {', '.join(close)}",
        fix="use one of these names (a size, a layout, then a block style such as _qa, _hs or _opt)",
    )


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
