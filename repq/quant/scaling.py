"""From a range of values to a scale: the only place where a scale is computed.

Symmetric INT8: ``scale = amax / 127`` and zero point 0, integers in -128..127 (Wu et al., "Integer Quantization for
Deep Learning Inference", 2020, section 3.1.2; what TensorRT runs). Asymmetric UINT8, activations only:
``scale = (high - low) / 255`` and ``zero_point = round(-low / scale)``, over a range that always holds 0, which is
therefore exact.

A scale is a positive float32. Three cases need a rule of their own:

- All values are zero: any scale is exact, and the tensor is treated as if its largest magnitude were 1.
- A weight channel is zero or tiny beside the largest channel of its tensor: its magnitude is raised to 2^-16 of the
  largest one. Engines round the bias to INT32 multiples of ``input scale * weight scale``; a channel that batch norm
  has switched off would make that product so small that its bias overflows.
- The scale would come near the smallest float32: it is raised to ``SMALLEST_SCALE``, so that the product of two scales
  is still a normal number.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from repq.scales import TensorScale

Scheme = Literal["symmetric", "asymmetric"]

SMALLEST_SCALE = np.float32(2.0**-60)
SMALLEST_CHANNEL = np.float32(2.0**-16)


def symmetric_scale(amax: ArrayLike, axis: int | None = None) -> TensorScale:
    """``scale = amax / 127`` in float32.

    Args:
        amax: the largest magnitude, one number per tensor or (C,) per channel.
        axis: the channel axis, for a per-channel scale.
    """
    scale = symmetric_parameters(amax)
    return TensorScale(scale, np.zeros(scale.shape, np.int8), "int8", axis)


def asymmetric_scale(low: float, high: float) -> TensorScale:
    """``scale = (high - low) / 255`` and ``zero_point = round(-low / scale)``, the range first widened to hold 0."""
    scale, zero_point = asymmetric_parameters(low, high)
    return TensorScale(scale, zero_point.astype(np.uint8), "uint8")


def range_scale(low: float, high: float, scheme: Scheme) -> TensorScale:
    """The scale of an activation that lies in ``low..high``."""
    if scheme == "symmetric":
        return symmetric_scale(max(-low, high, 0.0))
    return asymmetric_scale(low, high)


def channel_scale(low: NDArray[np.float32], high: NDArray[np.float32], scheme: Scheme) -> TensorScale:
    """The scales of an activation (B, C, H, W) whose channels lie in ``low..high``, each (C,): one for each channel.

    All channels share one zero point ``z``, so that a factor per channel and one scale for the tensor do the same.
    Asymmetric: ``s_c = max(-low_c / z, high_c / (255 - z))``, which is coarser than a channel's own best step
    ``(high_c - low_c) / 255``; ``z`` is chosen for the least sum of the squares of that ratio, by which noise grows.
    """
    below, above = np.maximum(-low, 0), np.maximum(high, 0)
    if scheme == "symmetric":
        return symmetric_scale(np.maximum(below, above), axis=1)
    candidates = np.arange(256, dtype=np.float64)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0: nothing on that side, so no levels are needed there
        steps = np.fmax(np.fmax(below / candidates, above / (255 - candidates)), 0)
        growth = np.square(255 * steps / (below + above))
    best = int(np.argmin(np.where(below + above > 0, growth, 0).sum(axis=1)))
    scale = symmetric_parameters(127 * steps[best])  # the floors for dead and tiny channels
    return TensorScale(scale, np.full(scale.shape, best, np.uint8), "uint8", axis=1)


def weight_scale(weight: NDArray[np.float32], axis: int | None, pairs: int | None = None) -> TensorScale:
    """Symmetric scale of a weight: per channel along ``axis``, or for the whole tensor if it is None.

    Args:
        pairs: the axis of the input channels, if no sum of two products may leave 16 bits; see `pair_magnitude`.
    """
    magnitude = np.abs(weight) if pairs is None else pair_magnitude(weight, pairs)
    if axis is None:
        return symmetric_scale(magnitude.max())
    others = tuple(i for i in range(weight.ndim) if i != axis)
    return symmetric_scale(magnitude.max(axis=others), axis)


def pair_magnitude(weight: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """What a sum of two products needs of the range: ``max(|a|, |b|, |a + b|)`` for channels 2i and 2i + 1 of ``axis``.

    x86 CPUs without INT8 dot products multiply UINT8 by INT8 and add the products of two neighbouring input channels
    in 16 bits, where they saturate (Intel's instruction ``vpmaddubsw``). With ``scale = magnitude / 127`` two integers
    of one sign add up to 128 at most, each rounded up or down, and ``255 * 128`` fits. Halving all integers would do
    the same and lose a bit; few pairs are that large.

    Returns:
        As ``weight``, with half the entries, rounded up, along ``axis``.
    """
    channels = np.moveaxis(weight, axis, 0)
    first, second = channels[0::2], channels[1::2]
    if len(second) < len(first):
        second = np.concatenate([second, np.zeros_like(first[:1])])
    largest = np.maximum(np.maximum(np.abs(first), np.abs(second)), np.abs(first + second))
    return np.moveaxis(largest, 0, axis)


def symmetric_parameters(amax: ArrayLike) -> NDArray[np.float32]:
    """Scales for magnitudes of one tensor; the same shape."""
    magnitude = np.asarray(amax, np.float32)
    largest = magnitude.max(initial=0.0)
    magnitude = np.ones_like(magnitude) if largest == 0 else np.maximum(magnitude, largest * SMALLEST_CHANNEL)
    return np.maximum(magnitude / np.float32(127), SMALLEST_SCALE)


def asymmetric_parameters(low: ArrayLike, high: ArrayLike) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Scales and zero points for ranges, element by element."""
    lower = np.minimum(np.asarray(low, np.float64), 0.0)
    upper = np.maximum(np.asarray(high, np.float64), 0.0)
    upper = np.where(upper - lower == 0, 1.0, upper)
    scale = np.maximum(((upper - lower) / 255.0).astype(np.float32), SMALLEST_SCALE)
    zero_point = np.clip(np.rint(-lower / scale), 0, 255).astype(np.int64)
    return scale, zero_point
