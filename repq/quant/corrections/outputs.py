"""Give the outputs of quantized layers the moments per channel that they have in float.

Rounding shifts the mean of an output channel and changes its spread, and the shifts of all layers add up. Both are
measured on calibration images, layer after layer in the order of the forward pass, each with its predecessors corrected
already, and are taken back by numbers that the layer has anyway:

- ``mean``: ``b' = b + mean(y) - mean(y_q)`` (Nagel et al., "Data-free quantization through weight equalization and
  bias correction", 2019, section 4.2 and appendix D, the empirical form; Finkelstein et al., "Fighting quantization
  bias with bias", 2019).
- ``moments``: the spread as well, with ``g = std(y) / std(y_q)``: ``W' = g W``, ``s_w' = g s_w``,
  ``b' = g (b - mean(y_q)) + mean(y)``. The integers stay what they are; layers with one scale for all channels get
  their mean alone. This is what re-estimating the statistics of a batch norm behind the layer comes to (Hubara et al.,
  "Accurate post training quantization with small calibration sets", 2021, on tuning batch norms) once that batch norm
  is folded: fused models have none.

All images go through as one batch, so that one float and one quantized pass do it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from repq.layers import LayerId
from repq.model.weighted import Matrix, along, channel_axis, is_layer, other_axes
from repq.quant.convolution import QuantizedLayer
from repq.quant.quantizer import Quantizer
from repq.quant.state import quantized_layers

Moments = tuple[Tensor, Tensor]  # mean and variance of each channel, (C,) each

LARGEST_GAIN = 2.0
"""Bound of ``g`` and of ``1 / g``: a spread that is further off is an accident of the images, or beyond repair."""


@torch.no_grad()
def correct_outputs(model: nn.Module, reference: nn.Module, images: Tensor, what: Literal["mean", "moments"]) -> None:
    """Correct all quantized layers of a calibrated model, in place.

    Args:
        reference: the float model, with the same layers at the same paths.
        images: network inputs (B, 3, H, W), all that are used, on the model's device.
    """
    bring_to(model, float_moments(reference, quantized_layers(model), images), images, what)


@torch.no_grad()
def float_moments(reference: nn.Module, layers: Iterable[LayerId], images: Tensor) -> dict[LayerId, Moments]:
    """The moments of each layer's outputs in the float model: all that `bring_to` has to know of it."""
    found: dict[LayerId, Moments] = {}
    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(reference.get_submodule(layer).register_forward_hook(_noting(layer, found)))
        reference(images)
    return found


@torch.no_grad()
def bring_to(
    model: nn.Module, wanted: Mapping[LayerId, Moments], images: Tensor, what: Literal["mean", "moments"]
) -> None:
    """Correct all quantized layers of a calibrated model towards these moments, in place."""
    with ExitStack() as stack:
        for layer, conv in quantized_layers(model).items():
            stack.enter_context(conv.register_forward_hook(_correcting(wanted[layer], what)))
        model(images)


def channel_moments(y: Tensor, axis: int = 1) -> Moments:
    """Mean and variance of each channel, over images and positions.

    What float32 loses of the mean is found from the differences to it: a shift by as little tips values over an edge
    where a channel is constant. ``torch.var_mean`` gives the same in four times the time.

    Args:
        y: such as (B, C, H, W), its channels along ``axis``; rows (N, C) have them along -1.
    """
    y = y.float() if y.ndim > 2 else y.float()[None]
    rough = y.mean(other_axes(y.ndim, axis))
    rest, squares = torch.zeros(2, len(rough), dtype=torch.float64, device=y.device)
    own = axis if axis < 0 else axis - 1  # of one image
    for image in y:  # which fits the cache
        difference = image - along(rough, own, image.ndim)
        rest += difference.sum(other_axes(image.ndim, own))
        squares += difference.square_().sum(other_axes(image.ndim, own))
    count = y.numel() // len(rough)
    rest /= count
    return (rough + rest).float(), (squares / count - rest.square()).float()


def _noting(layer: LayerId, found: dict[LayerId, Moments]) -> Any:
    def hook(module: nn.Module, _inputs: tuple[Tensor, ...], y: Tensor) -> None:
        assert is_layer(module)
        found[layer] = channel_moments(y, channel_axis(module))

    return hook


def _correcting(wanted: Moments, what: Literal["mean", "moments"]) -> Any:
    def hook(module: QuantizedLayer, _inputs: tuple[Tensor, ...], y: Tensor) -> Tensor:
        if isinstance(module, Matrix) and module.bias is None:  # a MatMul that nothing is added to cannot be shifted
            return y
        axis = channel_axis(module)
        mean, variance = channel_moments(y, axis)
        if what == "moments" and module.weight_axis is not None:
            gain = (wanted[1] / variance).sqrt()
            gain = torch.where(gain.isfinite() & (gain > 0), gain, 1.0).clamp(1 / LARGEST_GAIN, LARGEST_GAIN)
        else:
            gain = torch.ones_like(mean)  # one weight scale for all channels
        shift = wanted[0] - gain * mean
        module.bias = nn.Parameter(shift if module.bias is None else gain * module.bias + shift)
        if bool((gain != 1).any()):
            scale_outputs(module, gain)
            y *= along(gain, axis, y.ndim)
        y += along(shift, axis, y.ndim)
        return y

    return hook


def scale_outputs(layer: QuantizedLayer, gain: Tensor) -> None:
    """Multiply the weight and its scales by a factor per output channel, in place: the integers do not change."""
    assert layer.weight_axis is not None, "one scale for all channels"
    layer.weight.data.mul_(along(gain, layer.weight_axis, layer.weight.ndim))
    for quantizer in (layer.weight_quantizer, layer.fine_quantizer):
        if quantizer is not None:
            _multiply(quantizer, gain)


def _multiply(quantizer: Quantizer, gain: Tensor) -> None:
    before = quantizer.get_scale()
    assert before is not None, "a calibrated model"
    scale = (before.scale * gain.cpu().numpy()).astype(np.float32)
    quantizer.set_scale(replace(before, scale=scale), gain.device)
