"""Resize in all its modes, and sampling at given places.

Every mode is linear in the image and separable: along an axis, each output is a weighted sum of a few inputs. Modes
that torch has are left to torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from repq.model.onnx_graph.operators.table import operator

_GRID_MODES = {"linear": "bilinear", "cubic": "bicubic"}


@operator("Resize", host=(1, 2, 3))
def resize(
    x: Tensor, roi: Any = None, scales: Any = None, sizes: Any = None, *, antialias: int = 0,
    axes: Sequence[int] = (), coordinate_transformation_mode: str = "half_pixel", cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0, extrapolation_value: float = 0.0, keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest", nearest_mode: str = "round_prefer_floor",
) -> Tensor:  # fmt: skip
    chosen = [axis % x.ndim for axis in axes] or list(range(x.ndim))
    lengths = [x.shape[axis] for axis in chosen]
    if sizes:
        factors = [size / length for size, length in zip(sizes, lengths, strict=True)]
        if keep_aspect_ratio_policy != "stretch":
            factor = (min if keep_aspect_ratio_policy == "not_larger" else max)(factors)
            factors, sizes = [factor] * len(chosen), [int(factor * length + 0.5) for length in lengths]
    else:
        factors = list(scales)
        sizes = [int(np.float32(length) * np.float32(factor)) for length, factor in zip(lengths, factors, strict=True)]
    plain = not antialias and not exclude_outside
    if plain and chosen[-2:] == [x.ndim - 2, x.ndim - 1] and x.ndim == 4 and all(f == 1 for f in factors[:-2]):
        done = _by_torch(x, factors[-2:], sizes[-2:], mode, coordinate_transformation_mode, nearest_mode)
        if done is not None:
            return done
    for number, axis in enumerate(chosen):
        if (
            sizes[number] == lengths[number]
            and factors[number] == 1
            and coordinate_transformation_mode != "tf_crop_and_resize"
        ):
            continue
        ends = (roi[number], roi[number + len(chosen)]) if roi else (0.0, 1.0)
        places = _places(sizes[number], lengths[number], factors[number], coordinate_transformation_mode, ends)
        taps, weights = _taps(places, lengths[number], factors[number], mode, nearest_mode, cubic_coeff_a,
                              bool(antialias), bool(exclude_outside))  # fmt: skip
        outside = None
        if coordinate_transformation_mode == "tf_crop_and_resize":
            outside = (places < 0) | (places > lengths[number] - 1)
        x = _weighted(x, axis, taps, weights, outside, extrapolation_value)
    return x


def _by_torch(
    x: Tensor, factors: Sequence[float], sizes: Sequence[int], mode: str, places: str, nearest: str
) -> Tensor | None:
    """What torch computes as ONNX does; None: it has no such mode."""
    whole = all(float(factor).is_integer() for factor in factors)
    if mode == "nearest" and whole and (places, nearest) in _TORCH_NEAREST and x.is_floating_point():
        return functional.interpolate(x, size=tuple(sizes), mode="nearest")
    exact = all(size == factor * length for size, factor, length in zip(sizes, factors, x.shape[2:], strict=True))
    if mode == "linear" and exact and places in ("half_pixel", "align_corners", "pytorch_half_pixel"):
        if places == "pytorch_half_pixel" and 1 in sizes:
            return None
        return functional.interpolate(x, size=tuple(sizes), mode="bilinear", align_corners=places == "align_corners")
    return None


_TORCH_NEAREST = {
    ("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"), ("half_pixel", "round_prefer_ceil"),
    ("pytorch_half_pixel", "round_prefer_floor"),
}  # fmt: skip
"""With whole factors, these repeat every pixel."""


def _places(size: int, length: int, factor: float, mode: str, ends: tuple[float, float]) -> Tensor:
    """Where in the input each of ``size`` outputs lies.

    Divided in float32, as runtimes do: where two pixels are equally near, the rounding decides between them.

    Raises:
        ValueError: ONNX has no such mode.
    """
    out, scale = torch.arange(size, dtype=torch.float32), torch.tensor(factor, dtype=torch.float32)
    if mode == "asymmetric":
        return out / scale
    centres = (out + 0.5) / scale
    if mode == "tf_half_pixel_for_nn":  # opset 11 alone has it
        return centres
    if mode == "half_pixel" or (mode == "pytorch_half_pixel" and size > 1):
        return centres - 0.5
    if mode == "pytorch_half_pixel":
        return torch.zeros(size)
    if mode == "half_pixel_symmetric":
        return length / 2 * (1 - size / (factor * length)) + centres - 0.5
    if mode == "align_corners":
        return out.double() * ((length - 1) / (length * factor - 1) if length * factor != 1 else 0)
    if mode == "tf_crop_and_resize":
        start, end = ends
        if size == 1:
            return torch.full((1,), 0.5 * (start + end) * (length - 1), dtype=torch.float64)
        return start * (length - 1) + out.double() * (end - start) * (length - 1) / (size - 1)
    raise ValueError(f"coordinate_transformation_mode {mode}")


def _taps(
    places: Tensor, length: int, factor: float, mode: str, nearest: str, a: float, antialias: bool, exclude: bool
) -> tuple[Tensor, Tensor]:
    """Indices (out, k) and weights (out, k) of the inputs that each output is made of."""
    if mode == "nearest":
        return _nearest(places, nearest).long().clamp(0, length - 1)[:, None], torch.ones(len(places), 1)
    stretch = min(factor, 1.0) if antialias else 1.0
    reach = (1 if mode == "linear" else 2) / stretch
    first = torch.floor(places - reach) + 1
    taps = first[:, None] + torch.arange(int(2 * reach) + 2, dtype=torch.float64)
    distance = (taps - places[:, None]).abs() * stretch
    weights = (1 - distance).clamp(min=0) if mode == "linear" else _cubic(distance, a)
    if exclude:
        weights = torch.where((taps >= 0) & (taps < length), weights, 0)
    weights = weights / weights.sum(1, keepdim=True)
    return taps.long().clamp(0, length - 1), weights


def _nearest(places: Tensor, mode: str) -> Tensor:
    if mode == "floor":
        return places.floor()
    if mode == "ceil":
        return places.ceil()
    return (places - 0.5).ceil() if mode == "round_prefer_floor" else (places + 0.5).floor()


def _cubic(distance: Tensor, a: float) -> Tensor:
    """Keys, "Cubic convolution interpolation for digital image processing", 1981, with his free parameter ``a``."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, 0))


def _weighted(x: Tensor, axis: int, taps: Tensor, weights: Tensor, outside: Tensor | None, value: float) -> Tensor:
    view = [1] * x.ndim
    view[axis] = -1
    total: Any = 0
    for column in range(taps.shape[1]):
        picked = x.index_select(axis, taps[:, column].to(x.device))
        if taps.shape[1] == 1:
            total = picked
            break
        total = total + picked * weights[:, column].view(view).to(x.device, x.dtype)
    return total if outside is None else torch.where(outside.view(view).to(x.device), value, total).to(x.dtype)


@operator("GridSample")
def grid_sample(
    x: Tensor, grid: Tensor, *, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros"
) -> Tensor:
    kind = "bilinear" if x.ndim == 5 and mode == "linear" else _GRID_MODES.get(mode, mode)
    return functional.grid_sample(x, grid, kind, padding_mode, bool(align_corners))
