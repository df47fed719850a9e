"""A rescue for weights that INT8 cannot hold: two INT8 convolutions, coarse and fine, in place of one.

    W = Q(W) + R        conv(x, W) ~ conv(x, Q(W)) + conv(x, Q'(R)),   |R| <= s / 2,   s' = max |R| / 127

Fusing RepVGG branches can blow up a weight's range: a channel that batch norm multiplied by a large factor gets one
tap, the centre of its own channel, that dwarfs all others (QARepVGG, Chu et al. 2022, section 3, says where it comes
from). With one scale per output channel that tap takes the integers, and the small weights that do the work share a
handful. Splitting a weight into a coarse and a fine part is the remedy of Zhang et al., "CFWS: hybrid calibration and
coarse-to-fine weight split for re-parameterized models" (arXiv 2312.10588, section 4.1); there large and small weights
go different ways, here the second tensor holds what rounding left of the first, which needs no threshold and is exact
to 2^-16 of the range whatever the distribution.

The float model is not touched. The price is the layer's multiply-adds and INT8 weights once more, and an addition. Both
parts run in INT8 in TensorRT and OpenVINO; in ONNX Runtime, where an addition reads float, both run in float.
"""

from __future__ import annotations

import math

import torch

from repq.layers import LayerId
from repq.model.weighted import other_axes
from repq.quant.convolution import QuantizedLayer, quantized_weight, weight_scale_of
from repq.quant.state import quantized_layers, set_fine_scale


@torch.no_grad()
def split_layers(model: torch.nn.Module, below_db: float) -> tuple[LayerId, ...]:
    """Split the weights of a calibrated model whose SNR is below ``below_db``, in place; return those layers."""
    chosen = []
    for name, layer in quantized_layers(model).items():
        if weight_snr_db(layer) < below_db:
            residual = layer.weight - layer.weight_quantizer(layer.weight)
            set_fine_scale(layer, weight_scale_of(layer, residual))
            chosen.append(name)
    return tuple(chosen)


@torch.no_grad()
def weight_snr_db(layer: QuantizedLayer) -> float:
    """Power of the weight over that of its rounding error, the least over the output channels that are not zero.

    The whole tensor's ratio would hide a channel whose small weights are lost beside a large one elsewhere.
    """
    axis = 0 if layer.weight_axis is None else layer.weight_axis
    others = other_axes(layer.weight.ndim, axis)
    signal = layer.weight.double().square().sum(others)
    noise = (quantized_weight(layer) - layer.weight).double().square().sum(others)
    alive = (signal > 0) & (noise > 0)
    return 10 * math.log10(float((signal[alive] / noise[alive]).min())) if bool(alive.any()) else math.inf
