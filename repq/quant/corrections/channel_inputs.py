"""A scale per channel for the inputs of depthwise convolutions.

A depthwise convolution computes each output channel from one input channel, so a scale per input channel folds into the
weight's scale per output channel: ``w_q (s_w s_c) x_q``. A convolution that sums over channels cannot have that. The
channels of such inputs often differ by powers of ten (before them lies another depthwise or a pointwise convolution
whose batch norm was folded), and one scale for all leaves the small ones a handful of integers (Krishnamoorthi,
"Quantizing deep convolutional networks for efficient inference", 2018, section 3.1.2, on weights).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import nn

from repq.layers import LayerId
from repq.quant.calibration.observation import ChannelRange, watching_ranges
from repq.quant.convolution import is_depthwise, is_quantized
from repq.quant.scaling import channel_scale
from repq.quant.state import quantized_layers


def takes_channel_scales(module: nn.Module) -> bool:
    """Whether a convolution is depthwise, and its weight may have a scale per channel."""
    return is_depthwise(module) and (not is_quantized(module) or module.weight_axis is not None)


@contextmanager
def watching_channels(model: nn.Module, layers: Sequence[LayerId]) -> Iterator[dict[LayerId, ChannelRange]]:
    """Within the block, gather the input ranges per channel of those ``layers`` that are depthwise."""
    depthwise = [layer for layer in layers if takes_channel_scales(model.get_submodule(layer))]
    with watching_ranges(model, depthwise) as ranges:
        yield ranges


def set_channel_scales(model: nn.Module, ranges: Mapping[LayerId, ChannelRange]) -> None:
    """Give the inputs of the quantized depthwise layers one scale per channel that covers all that was seen."""
    for name, layer in quantized_layers(model).items():
        if name in ranges:
            scale = channel_scale(*ranges[name].arrays(), layer.scheme)
            layer.input_quantizer.set_scale(scale, layer.weight.device)
