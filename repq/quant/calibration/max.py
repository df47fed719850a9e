"""The range of everything that was seen: no value is clipped."""

from __future__ import annotations

from repq.quant.calibration.histogram import Histogram
from repq.results import Range


def max_range(histogram: Histogram) -> Range:
    """``(min x, max x)``, exact (it does not go through the bins)."""
    return histogram.minimum, histogram.maximum
