"""The calibration methods by name. A new one is a module beside this one and a case here (and in the recipe's list)."""

from __future__ import annotations

from repq.quant.calibration.entropy import entropy_range
from repq.quant.calibration.histogram import Histogram
from repq.quant.calibration.max import max_range
from repq.quant.calibration.mse import mse_range
from repq.quant.calibration.percentile import percentile_range
from repq.quant.scaling import Scheme
from repq.recipe import CalibrationConfig
from repq.results import Range


def activation_range(histogram: Histogram, scheme: Scheme, config: CalibrationConfig) -> Range:
    """The range that an activation's integers should cover, by ``config.method``."""
    match config.method:
        case "max":
            return max_range(histogram)
        case "percentile":
            return percentile_range(histogram, scheme, config.percentile)
        case "mse":
            return mse_range(histogram, scheme)
        case "entropy":
            return entropy_range(histogram, scheme)
