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
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from repq.layers import LayerId
from repq.quant.convolution import QuantizedLayer
from repq.quant.quantizer import Quantizer
from repq.quant.state import quantized_layers
from repq.scales import TensorScale

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


def channel_moments(y: Tensor) -> Moments:
    """Mean and variance of each channel of (B, C, H, W), over images and positions.

    What float32 loses of the mean is found from the differences to it: a shift by as little tips values over an edge
    where a channel is constant. ``torch.var_mean`` gives the same in four times the time.
    """
    y = y.float()
    rough, count = y.mean((0, 2, 3)), y.numel() // y.shape[1]
    rest, squares = torch.zeros(2, len(rough), dtype=torch.float64, device=y.device)
    for image in y:  # which fits the cache
        difference = image - rough.view(-1, 1, 1)
        rest += difference.sum((1, 2))
        squares += difference.square_().sum((1, 2))
    rest /= count
    return (rough + rest).float(), (squares / count - rest.square()).float()


def _noting(layer: LayerId, found: dict[LayerId, Moments]) -> Any:
    def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], y: Tensor) -> None:
        found[layer] = channel_moments(y)

    return hook


def _correcting(wanted: Moments, what: Literal["mean", "moments"]) -> Any:
    def hook(module: QuantizedLayer, _inputs: tuple[Tensor, ...], y: Tensor) -> Tensor:
        mean, variance = channel_moments(y)
        if what == "moments" and module.weight_axis is not None:
            gain = (wanted[1] / variance).sqrt()
            gain = torch.where(gain.isfinite() & (gain > 0), gain, 1.0).clamp(1 / LARGEST_GAIN, LARGEST_GAIN)
        else:
            gain = torch.ones_like(mean)  # one weight scale for all channels
        shift = wanted[0] - gain * mean
        module.bias = nn.Parameter(shift if module.bias is None else gain * module.bias + shift)
        if bool((gain != 1).any()):
            scale_outputs(module, gain)
            y *= gain.view(1, -1, 1, 1)
        y += shift.view(1, -1, 1, 1)
        return y

    return hook


def scale_outputs(layer: QuantizedLayer, gain: Tensor) -> None:
    """Multiply the weight and its scales by a factor per output channel, in place: the integers do not change."""
    layer.weight.data.mul_(gain.view(-1, 1, 1, 1))
    for quantizer in (layer.weight_quantizer, layer.fine_quantizer):
        if quantizer is not None:
            _multiply(quantizer, gain)


def _multiply(quantizer: Quantizer, gain: Tensor) -> None:
    before = quantizer.get_scale()
    assert before is not None, "a calibrated model"
    scale = (before.scale * gain.cpu().numpy()).astype(np.float32)
    quantizer.set_scale(TensorScale(scale, before.zero_point, before.dtype, before.axis), gain.device)
