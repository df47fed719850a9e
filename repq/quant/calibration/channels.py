"""Activation ranges per channel, for the inputs of depthwise convolutions.

A depthwise convolution computes each output channel from one input channel, so a scale per input channel folds into the
weight's scale per output channel: ``w_q (s_w s_c) x_q``. A convolution that sums over channels cannot have that. The
channels of such inputs often differ by powers of ten (before them lies another depthwise or a pointwise convolution
whose batch norm was folded), and one scale for all leaves the small ones a handful of integers (Krishnamoorthi,
"Quantizing deep convolutional networks for efficient inference", 2018, section 3.1.2, on weights).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from repq.layers import LayerId
from repq.quant.convolution import is_depthwise
from repq.quant.insertion import quantized_layers
from repq.quant.scaling import channel_scale


class ChannelRange:
    """The smallest and the largest value of each channel, over all images seen."""

    def __init__(self) -> None:
        self.low: Tensor | None = None
        self.high: Tensor | None = None

    def add(self, values: Tensor) -> None:
        """Take in activations (B, C, H, W)."""
        low, high = values.detach().amin((0, 2, 3)), values.detach().amax((0, 2, 3))
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)

    def arrays(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Both ends, (C,) each."""
        assert self.low is not None and self.high is not None, "something was added"
        return self.low.float().cpu().numpy(), self.high.float().cpu().numpy()


@contextmanager
def watching_channels(model: nn.Module, layers: Sequence[LayerId]) -> Iterator[dict[LayerId, ChannelRange]]:
    """Within the block, gather the input ranges per channel of those ``layers`` that are depthwise."""
    ranges = {layer: ChannelRange() for layer in layers if is_depthwise(model.get_submodule(layer))}
    with ExitStack() as stack:
        for layer, seen in ranges.items():
            stack.enter_context(watch(model.get_submodule(layer), seen))
        yield ranges


def watch(module: nn.Module, seen: ChannelRange) -> RemovableHandle:
    """Add all inputs of ``module`` to ``seen`` until the handle is removed (or its ``with`` block ends)."""

    def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.add(inputs[0])

    return module.register_forward_pre_hook(hook)


def set_channel_scales(model: nn.Module, ranges: dict[LayerId, ChannelRange]) -> None:
    """Give the inputs of the quantized depthwise layers one scale per channel that covers all that was seen."""
    for name, layer in quantized_layers(model).items():
        if name in ranges:
            scale = channel_scale(*ranges[name].arrays(), layer.scheme)
            layer.input_quantizer.set_scale(scale, layer.weight.device)
