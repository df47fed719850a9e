"""Ranges from a histogram: that of a share of the values, and that of least squared error.

Clipping trades the error of few large values for finer steps everywhere else (Banner et al., "Post training 4-bit
quantization of convolutional networks", 2019; Wu et al., "Integer Quantization for Deep Learning Inference", 2020,
section 3.3).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from repq.quant.calibration.histogram import Histogram
from repq.quant.scaling import Scheme, asymmetric_parameters, symmetric_parameters
from repq.results import Range

Values = NDArray[np.float64]

COARSE = 2.0 ** (-np.arange(0, 65) / 8)  # from the full range down to 1/256 of it, nine percent apart
FINE = np.linspace(COARSE[1], 1 / COARSE[1], 33)  # one coarse step to either side
ROUNDS = 2  # of turns between the two ends of an asymmetric range


def percentile_range(histogram: Histogram, scheme: Scheme, percentile: float) -> Range:
    """Keep ``percentile`` percent of the values.

    Symmetric: ``(-t, t)``, ``t`` the percentile of ``|x|``. Asymmetric: half of the rest is cut from each tail. The
    range holds 0. Within a bin, values are taken as evenly spread.
    """
    above, below, zeros = histogram.above(), histogram.below(), histogram.zeros
    total = int(above.sum() + below.sum()) + zeros
    cut = total * (100.0 - percentile) / 100.0
    if scheme == "symmetric":
        edge = min(_edge(above + below, cut) * histogram.bin_width, histogram.largest_magnitude)
        return -edge, edge
    high = min(_edge(above, cut / 2) * histogram.bin_width, max(histogram.maximum, 0.0))
    low = max(-_edge(below, cut / 2) * histogram.bin_width, min(histogram.minimum, 0.0))
    return low, high


def _edge(counts: NDArray[np.int64], cut: float) -> float:
    """Position, in bins away from zero, beyond which ``cut`` values lie; 0 if there are no more than that."""
    beyond = np.concatenate([np.cumsum(counts[::-1])[::-1], [0]]).astype(np.float64)
    if beyond[0] <= cut:
        return 0.0
    last = int(np.flatnonzero(beyond > cut)[-1])
    return last + (beyond[last] - cut) / (beyond[last] - beyond[last + 1])


def mse_range(histogram: Histogram, scheme: Scheme) -> Range:
    """``argmin E[(x - Q(x))^2]`` over clipping ranges, the expectation over the histogram.

    Symmetric: over ``(-t, t)``. Asymmetric: first both ends shrink together, then each end in turn. Every candidate is
    judged with its real scale and rounded zero point. Equal errors: the wider range.
    """
    if histogram.exponent is None:
        return 0.0, 0.0
    points, counts = histogram.points()

    def symmetric_error(edges: Values) -> Values:
        scale = symmetric_parameters(edges)
        return squared_error(points, counts, scale, np.zeros(scale.shape), -128, 127)

    def error(low: Values, high: Values) -> Values:
        scale, zero_point = asymmetric_parameters(low, high)
        return squared_error(points, counts, scale, zero_point, 0, 255)

    if scheme == "symmetric":
        edge = _least(symmetric_error, histogram.largest_magnitude)
        return -edge, edge
    lowest, highest = min(histogram.minimum, 0.0), max(histogram.maximum, 0.0)
    shrink = _least(lambda factors: error(factors * lowest, factors * highest), 1.0)
    low, high = np.array(shrink * lowest), np.array(shrink * highest)
    if lowest < 0 < highest:
        for _ in range(ROUNDS):
            high = np.array(_least(partial(error, low), highest))
            low = -np.array(_least(partial(_mirrored, error, high), -lowest))
    return float(low), float(high)


def squared_error(
    points: Values, counts: Values, scale: NDArray[np.float32], zero_point: NDArray, q_min: int, q_max: int
) -> Values:
    """``sum count * (x - Q(x))^2`` for each of K scales and zero points; shape (K,)."""
    errors = np.empty(scale.shape, np.float64)
    for k, (step, zero) in enumerate(zip(scale.astype(np.float64), zero_point.astype(np.float64), strict=True)):
        rounded = np.clip(np.rint(points / step), q_min - zero, q_max - zero) * step
        errors[k] = np.dot(counts, np.square(points - rounded))
    return errors


def _mirrored(error: Callable[[Values, Values], Values], high: Values, magnitudes: Values) -> Values:
    return error(-magnitudes, high)


def _least(error: Callable[[Values], Values], largest: float) -> float:
    """The candidate of least error between ``largest / 256`` and ``largest``: a coarse, then a fine search."""
    coarse = largest * COARSE
    best = coarse[int(np.argmin(error(coarse)))]
    fine = np.minimum(best * FINE[::-1], largest)
    return float(fine[int(np.argmin(error(fine)))])
