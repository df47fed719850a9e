"""What calibration saw of each layer and decided, as rows for reports."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from repq.layers import LayerId
from repq.model.weighted import is_layer, output_axis
from repq.quant.calibration.histogram import Histogram
from repq.quant.calibration.observation import Observation
from repq.quant.calibration.ranges import squared_error
from repq.quant.state import scale_table
from repq.results import LayerQuantization, Range
from repq.scales import LayerScales, TensorScale


def layer_rows(
    model: nn.Module, observation: Observation, macs: Mapping[LayerId, int]
) -> tuple[LayerQuantization, ...]:
    """One row per layer of ``macs``, in its order.

    Args:
        model: a calibrated model.
        observation: of all layers of ``macs``.
        macs: multiply-adds per layer for one image.

    The weight SNR is exact, over all elements of the tensor. The activation SNR is summed over the histogram.
    """
    table = scale_table(model)
    return tuple(
        _row(layer, model.get_submodule(layer), observation.histograms[layer], table.get(layer), count)
        for layer, count in macs.items()
    )


def extra_macs_share(rows: tuple[LayerQuantization, ...]) -> float:
    """Multiply-adds that split layers add, as a share of the model's."""
    total = sum(row.macs for row in rows)
    return sum((row.convolutions - 1) * row.macs for row in rows) / total if total else 0.0


def int8_macs_share(rows: tuple[LayerQuantization, ...]) -> float:
    """Share of the multiply-adds that run in INT8."""
    total = sum(row.macs for row in rows)
    return sum(row.macs for row in rows if row.precision == "int8") / total if total else 0.0


def _row(
    layer: LayerId, module: nn.Module, histogram: Histogram, scales: LayerScales | None, macs: int
) -> LayerQuantization:
    assert is_layer(module)
    weight = module.weight.detach().float().cpu().numpy()
    return LayerQuantization(
        layer=layer,
        precision="int8" if scales else "float",
        macs=macs,
        weight_range=(float(weight.min()), float(weight.max())),
        weight_channel_ratio=channel_ratio(module),
        activation_range=_seen(histogram),
        activation_scale=float(scales.input.scale.max()) if scales else None,
        activation_zero_point=int(scales.input.zero_point.flat[0]) if scales else None,
        activation_channels=scales.input.scale.size if scales else 1,
        convolutions=2 if scales and scales.fine else 1,
        weight_snr_db=_weight_snr(weight, scales) if scales else None,
        activation_snr_db=_activation_snr(histogram, scales.input) if scales else None,
    )


def _seen(histogram: Histogram) -> Range:
    return (histogram.minimum, histogram.maximum) if histogram.total else (0.0, 0.0)


def output_rows(module: nn.Module) -> Tensor:
    """The weight of a layer, (C_out, the rest)."""
    assert is_layer(module)
    return module.weight.detach().float().movedim(output_axis(module), 0).flatten(1)


def channel_ratio(module: nn.Module) -> float:
    """Largest over smallest non-zero magnitude of the output channels' weights."""
    largest = output_rows(module).abs().amax(1)
    alive = largest[largest > 0]
    return float(alive.max() / alive.min()) if alive.numel() else 1.0


def _weight_snr(weight: NDArray[np.float32], scales: LayerScales) -> float | None:
    error = weight - _rounded(weight, scales.weight)
    if scales.fine is not None:
        error = error - _rounded(error, scales.fine)
    return _decibel(float(np.square(weight, dtype=np.float64).sum()), float(np.square(error).sum()))


def _rounded(weight: NDArray[np.float32], scale: TensorScale) -> NDArray[np.float32]:
    step = scale.scale
    if scale.axis is not None:
        shape = [1] * weight.ndim
        shape[scale.axis] = -1
        step = step.reshape(shape)
    return np.asarray(np.clip(np.rint(weight / step), scale.q_min, scale.q_max) * step, np.float32)


def _activation_snr(histogram: Histogram, scale: TensorScale) -> float | None:
    if scale.axis is not None:
        return None  # the histogram does not tell the channels apart
    points, counts = histogram.points()
    noise = squared_error(points, counts, scale.scale.reshape(1), scale.zero_point.reshape(1), scale.q_min, scale.q_max)
    return _decibel(float(np.dot(counts, np.square(points))), float(noise[0]))


def _decibel(signal: float, noise: float) -> float | None:
    """``10 log10(signal / noise)`` of two powers; None where it is not finite."""
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None
