"""The range of least information loss (Migacz, "8-bit Inference with TensorRT", GTC 2017).

For a candidate that keeps the first ``i`` bins, the reference ``P`` is those bins with everything beyond added to the
last one that is not empty. ``Q`` is the same bins without what lies beyond, merged into the levels that the integers
offer, each level spread evenly over its bins that are not empty. The candidate of least ``KL(P || Q)`` wins.

Exact zeros are left out: they are exact under every candidate, and after a ReLU they would drown everything else.

``P`` counts what is clipped as if it had been there, so that the divergence says nothing of it: of values that begin
far from zero, such as the pixels of bright images, a candidate that keeps the first few bins alone loses no information
by that measure. Candidates that clip more than half of the values are therefore left out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from repq.quant.calibration.histogram import Histogram
from repq.quant.scaling import Scheme
from repq.results import Range

LEAST_KEPT = 0.5
"""Share of the values that are not zero."""
_AT_ONCE = 1 << 20
"""Levels of all candidates that are looked at together: some ten megabytes for each step of the sum."""


def entropy_range(histogram: Histogram, scheme: Scheme) -> Range:
    """Clip where ``KL(P || Q)`` is least.

    Symmetric: ``|x|`` is folded onto one side and has the 128 magnitudes of INT8, whatever the signs. Asymmetric: the
    256 integers are shared between the two sides as the range is (a tensor without negative values gets all of them on
    the positive side), and both ends shrink in proportion, so that the zero point stays where it is.
    """
    if histogram.exponent is None:
        return 0.0, 0.0
    above, below = histogram.above(), histogram.below()
    if scheme == "symmetric":
        edge = min(_best_length(above + below, levels=128) * histogram.bin_width, histogram.largest_magnitude)
        return -edge, edge
    low, high = min(histogram.minimum, 0.0), max(histogram.maximum, 0.0)
    wider = above if high >= -low else below
    narrower = below if high >= -low else above
    ratio = min(-low, high) / max(-low, high)
    length = _best_length(wider, levels=max(round(256 / (1 + ratio)), 1), other=narrower, ratio=ratio)
    share = min(length * histogram.bin_width / max(-low, high), 1.0)
    return low * share, high * share


def _best_length(
    counts: NDArray[np.int64], levels: int, other: NDArray[np.int64] | None = None, ratio: float = 0.0
) -> int:
    """Number of bins to keep, from ``levels`` up to the last that is not empty.

    ``other`` is the side of the smaller range, of which ``ratio`` times as many bins (and levels) are kept; the two
    sides make one distribution.
    """
    last = int(np.flatnonzero(counts)[-1]) + 1
    lengths = np.arange(min(levels, last), last + 1)
    divergence = _Side(counts).terms(lengths, levels)
    if other is not None and other.any():
        last_other = int(np.flatnonzero(other)[-1]) + 1
        lengths_other = np.clip(np.rint(lengths * ratio).astype(np.int64), 1, last_other)
        divergence = divergence + _Side(other).terms(lengths_other, max(256 - levels, 1))
    cross, kept = divergence
    total = counts.sum() + (0 if other is None else other.sum())
    # The last candidate keeps all.
    cross = np.where(kept >= LEAST_KEPT * total, cross, np.inf)
    # KL = sum P log(P / Q) with P = p / total and Q = q / kept
    values = cross / total + np.log(np.maximum(kept, 1.0) / total)
    # The last of equal values: keep the wider range.
    return int(lengths[len(values) - 1 - int(np.argmin(values[::-1]))])


class _Side:
    """Running sums over the bins of one side, from which every candidate's divergence follows without a loop."""

    def __init__(self, counts: NDArray[np.int64]) -> None:
        filled = counts > 0
        self.mass = _running(counts.astype(np.float64))
        self.filled = _running(filled.astype(np.float64))
        self.log_mass = _running(_times_log(counts.astype(np.float64)))
        last = np.maximum.accumulate(np.where(filled, np.arange(len(counts)), 0))
        self.last_count = np.concatenate([[0.0], counts[last].astype(np.float64)])

    def terms(self, lengths: NDArray[np.int64], levels: int) -> NDArray[np.float64]:
        """`_terms` of all candidates, of some at a time: with many bins they would take gigabytes."""
        parts = np.array_split(lengths, -(-len(lengths) * levels // _AT_ONCE))
        return np.concatenate([self._terms(part, levels) for part in parts], axis=1)

    def _terms(self, lengths: NDArray[np.int64], levels: int) -> NDArray[np.float64]:
        """``sum p (log p - log q)`` over the bins, in counts, and the mass kept; shape (2, candidates).

        ``p`` is the count of a bin, plus everything beyond for the last that is filled; ``q`` is the mean count of the
        filled bins of its level. Infinite where nothing is kept.
        """
        # Level k covers the bins from floor(k n / levels) to floor((k + 1) n / levels).
        edges = np.arange(levels + 1)[None, :] * lengths[:, None] // levels
        level_mass = np.diff(self.mass[edges], axis=1)
        level_filled = np.diff(self.filled[edges], axis=1)
        log_q = np.log(np.where(level_mass > 0, level_mass, 1.0) / np.maximum(level_filled, 1.0))
        kept = self.mass[lengths]
        within = self.log_mass[lengths] - (level_mass * log_q).sum(axis=1)
        beyond, last = self.mass[-1] - kept, self.last_count[lengths]
        last_level = level_mass.shape[1] - 1 - np.argmax(level_mass[:, ::-1] > 0, axis=1)
        last_log_q = np.take_along_axis(log_q, last_level[:, None], axis=1)[:, 0]
        moved = _times_log(last + beyond) - _times_log(last) - beyond * last_log_q
        return np.stack([np.where(kept > 0, within + moved, np.inf), kept])


def _running(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([[0.0], np.cumsum(values)])


def _times_log(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values * np.log(np.where(values > 0, values, 1.0))
