"""One scale for layers whose inputs must share it, chosen in either of two ways.

*Largest*: every tensor gets the scale that is best for it alone, and the group the one that covers them all. Nothing is
cut off that was inside a range; tensors with smaller values are rounded more coarsely.

*Joint*: the method sees one histogram of the values of all, and weighs clipping against rounding over the group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from repq.layers import LayerId
from repq.quant.calibration.histogram import Histogram
from repq.quant.calibration.observe import Observation
from repq.quant.scaling import asymmetric_scale
from repq.scales import LayerScales, ScaleTable, TensorScale

Groups = Sequence[Sequence[LayerId]]
"""Layers whose inputs must share a scale (``repq.graph.layer_groups``); disjoint."""


def joint_observation(observation: Observation, groups: Groups) -> Observation:
    """The observation with the histogram of every layer of a group replaced by the group's."""
    histograms = dict(observation.histograms)
    for group in groups:
        shared = Histogram.joint([observation.histograms[layer] for layer in group])
        histograms.update(dict.fromkeys(group, shared))
    return replace(observation, histograms=histograms)


def largest_scales(scales: Mapping[LayerId, LayerScales], groups: Groups) -> ScaleTable:
    """The scales with the input scale of every layer of a group replaced by one that covers the group's."""
    result = dict(scales)
    for group in groups:
        shared = _covering([scales[layer].input for layer in group])
        result.update({layer: replace(scales[layer], input=shared) for layer in group})
    return result


def _covering(several: Sequence[TensorScale]) -> TensorScale:
    if all(scale.dtype == "int8" for scale in several):
        return max(several, key=lambda scale: float(scale.scale))
    lows = [(scale.q_min - int(scale.zero_point)) * float(scale.scale) for scale in several]
    highs = [(scale.q_max - int(scale.zero_point)) * float(scale.scale) for scale in several]
    return asymmetric_scale(min(lows), max(highs))
