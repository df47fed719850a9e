"""Calibrate a model with quantizers: observe, choose ranges, set scales."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from torch import nn

from repq.errors import QuantizationError
from repq.layers import LayerId
from repq.progress import Progress, silent
from repq.quant.calibration.method import activation_range
from repq.quant.calibration.observe import Images, Observation, observe
from repq.quant.insertion import quantized_layers
from repq.quant.scaling import range_scale, weight_scale
from repq.quant.state import apply_scales
from repq.recipe import CalibrationConfig
from repq.scales import LayerScales


@dataclass(frozen=True)
class Calibration:
    """What was seen, and what the user should know about it."""

    observation: Observation
    notes: tuple[str, ...]


def calibrate(
    model: nn.Module, batches: Iterable[Images], config: CalibrationConfig, progress: Progress = silent
) -> Calibration:
    """Set the scales of all quantized layers of ``model``, in place.

    Raises:
        QuantizationError: no images, no quantized layers, or values that are not finite.
    """
    layers = tuple(quantized_layers(model))
    if not layers:
        raise QuantizationError(
            "there is nothing to calibrate", found="a model without quantizers", fix="insert quantizers first"
        )
    observation = observe(model, layers, batches, bins=config.bins, progress=progress)
    return Calibration(observation, set_scales(model, observation, config))


def set_scales(model: nn.Module, observation: Observation, config: CalibrationConfig) -> tuple[str, ...]:
    """Choose the scales of all quantized layers from an observation of them and set them, in place.

    Returns notes on layers whose input was always zero.

    Raises:
        QuantizationError: a quantized layer was not observed, or a weight is not finite.
    """
    table: dict[LayerId, LayerScales] = {}
    notes: list[str] = []
    for name, layer in quantized_layers(model).items():
        histogram = observation.histograms.get(name)
        if histogram is None or not histogram.total:
            raise QuantizationError(f"{name} was not observed", fix="observe every layer that is to be quantized")
        weight = layer.weight.detach().float().cpu().numpy()
        if not np.isfinite(weight).all():
            raise QuantizationError(
                f"the weight of {name} is not finite",
                found=f"{int((~np.isfinite(weight)).sum())} of {weight.size} values are NaN or infinite",
                fix="start from another checkpoint",
            )
        if histogram.largest_magnitude == 0:
            notes.append(f"{name}: its input was zero on all calibration images; its scale is that of the range -1..1")
        low, high = activation_range(histogram, layer.scheme, config)
        table[name] = LayerScales(
            input=range_scale(low, high, layer.scheme), weight=weight_scale(weight, layer.weight_axis)
        )
    apply_scales(model, table)
    return tuple(notes)
