"""The range that holds a given share of the values (Wu et al. 2020, section 3.3)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from repq.quant.calibration.histogram import Histogram
from repq.quant.scaling import Scheme
from repq.results import Range


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
