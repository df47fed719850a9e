"""Calibration: watch activations on real images, then choose their ranges.

``observe`` gathers one streaming histogram per layer, whatever the method; each method is a pure function from such a
histogram to a range, in a module of its own, chosen in ``method.py``; ``calibrate`` does both and sets the scales.
"""

from repq.quant.calibration.calibrate import Calibration, calibrate, set_scales
from repq.quant.calibration.entropy import entropy_range
from repq.quant.calibration.histogram import Histogram
from repq.quant.calibration.max import max_range
from repq.quant.calibration.method import activation_range
from repq.quant.calibration.mse import mse_range
from repq.quant.calibration.observe import Observation, observe
from repq.quant.calibration.percentile import percentile_range
from repq.quant.calibration.sharing import joint_observation, largest_scales

__all__ = [
    "Calibration",
    "Histogram",
    "Observation",
    "activation_range",
    "calibrate",
    "entropy_range",
    "joint_observation",
    "largest_scales",
    "max_range",
    "mse_range",
    "observe",
    "percentile_range",
    "set_scales",
]
