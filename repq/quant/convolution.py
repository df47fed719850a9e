"""Layers whose input and weight are fake-quantized. The bias is never quantized.

A weight may be split into two INT8 tensors, coarse and fine: ``Q(w) + Q'(w - Q(w))``; see ``corrections.split``.

They are subclasses of the float modules with the same parameters, so state-dict entries keep their names.
"""

from __future__ import annotations

from typing import Literal, TypeGuard

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from repq.layers import LayerId
from repq.model.weighted import Layer, Matrix, input_axis, output_axis
from repq.quant.convolve import Geometry, convolve
from repq.quant.quantizer import Quantizer
from repq.quant.scaling import Scheme, weight_scale
from repq.scales import TensorScale

Granularity = Literal["channel", "tensor"]
Spare = tuple[Tensor, Tensor | None] | None
"""Weight and bias for when a layer changes between INT8 and float; see ``set_quantizing``."""


class _Quantized(nn.Module):
    """What every layer with quantizers has beside its parameters; ``weight_axis`` is None for one scale."""

    weight_axis: int | None
    scheme: Scheme
    reduce_range: bool = False
    input_quantizer: Quantizer
    weight_quantizer: Quantizer
    fine_quantizer: Quantizer | None
    spare: Spare = None


class QuantConv2d(_Quantized, nn.Conv2d):
    """``y = conv(Q(x), Q(w)) + b``; one weight scale per output channel, or one for the tensor (axis None)."""

    weight_axis = 0

    def forward(self, input: Tensor) -> Tensor:
        if is_one_step(self):
            geometry = Geometry(self.stride, self.padding, self.dilation, False, (0, 0), self.groups)  # type: ignore[arg-type]
            return convolve(input, self.weight, self.bias, self.input_quantizer, self.weight_quantizer, geometry)
        return self._conv_forward(self.input_quantizer(input), quantized_weight(self), self.bias)


class QuantConvTranspose2d(_Quantized, nn.ConvTranspose2d):
    """``y = conv_transpose(Q(x), Q(w)) + b``; one weight scale for the tensor: not all TensorRT versions take more."""

    weight_axis = None

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        padding = self._output_padding(
            input,
            output_size,
            self.stride,  # type: ignore[arg-type]  # torch types these pairs as tuples, the method wants lists
            self.padding,  # type: ignore[arg-type]
            self.kernel_size,  # type: ignore[arg-type]
            2,
            self.dilation,  # type: ignore[arg-type]
        )
        if is_one_step(self):
            geometry = Geometry(self.stride, self.padding, self.dilation, True, padding, self.groups)  # type: ignore[arg-type]
            return convolve(input, self.weight, self.bias, self.input_quantizer, self.weight_quantizer, geometry)
        return functional.conv_transpose2d(
            self.input_quantizer(input),
            quantized_weight(self),
            self.bias,
            self.stride,
            self.padding,  # type: ignore[arg-type]
            padding,
            self.groups,
            self.dilation,
        )


class QuantMatrix(_Quantized, Matrix):
    """``y = Q(x) Q(W) + b``; one weight scale per output channel, or one for the tensor (axis None)."""

    def forward(self, input: Tensor) -> Tensor:
        return self.multiply(self.input_quantizer(input), quantized_weight(self))


QuantizedLayer = QuantConv2d | QuantConvTranspose2d | QuantMatrix


def is_quantized(module: nn.Module) -> TypeGuard[QuantizedLayer]:
    """Whether a module is a layer with quantizers."""
    return isinstance(module, QuantizedLayer)


def is_one_step(layer: QuantConv2d | QuantConvTranspose2d) -> bool:
    """Whether the layer is to run as one step that gradients go back through."""
    on = layer.input_quantizer.enabled and layer.weight_quantizer.enabled
    plain = layer.fine_quantizer is None and (layer.input_quantizer.axis is None or layer.groups == layer.in_channels)
    padded = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return torch.is_grad_enabled() and on and plain and padded


def quantized_weight(layer: QuantizedLayer) -> Tensor:
    """The weight that a layer computes with: ``Q(w)``, or ``Q(w) + Q'(w - Q(w))`` if it is split."""
    coarse: Tensor = layer.weight_quantizer(layer.weight)
    return coarse if layer.fine_quantizer is None else coarse + layer.fine_quantizer(layer.weight - coarse)


def weight_scale_of(layer: QuantizedLayer, values: Tensor) -> TensorScale:
    """The scale for values in the place of a layer's weight."""
    pairs = input_axis(layer) if layer.reduce_range else None
    return weight_scale(values.detach().float().cpu().numpy(), layer.weight_axis, pairs)


def set_quantizing(layer: QuantizedLayer, on: bool) -> None:
    """Let a layer run in INT8 or in float; with weight and bias as they were before corrections if it keeps those."""
    if on != layer.input_quantizer.enabled and layer.spare is not None:
        (weight, bias), layer.spare = layer.spare, (layer.weight.data, None if layer.bias is None else layer.bias.data)
        layer.weight.data = weight
        if layer.bias is not None and bias is not None:
            layer.bias.data = bias
    layer.input_quantizer.enabled = layer.weight_quantizer.enabled = on


def is_depthwise(module: nn.Module) -> bool:
    """Whether a convolution computes each channel from that channel alone."""
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels > 1


def with_quantizers(
    module: Layer,
    layer: LayerId,
    scheme: Scheme,
    granularity: Granularity = "channel",
    reduce_range: bool = False,
) -> QuantizedLayer:
    """A quantized layer that takes over the parameters and the mode of ``module``."""
    quantized = _quantized_matrix(module) if isinstance(module, Matrix) else _quantized_convolution(module)
    quantized.weight, quantized.bias = module.weight, module.bias
    quantized.scheme, quantized.reduce_range = scheme, reduce_range
    if granularity == "tensor":
        quantized.weight_axis = None
    quantized.input_quantizer = Quantizer(f"the input of {layer}")
    quantized.weight_quantizer = Quantizer(f"the weight of {layer}")
    quantized.fine_quantizer = None
    return quantized.train(module.training)


def _quantized_matrix(matrix: Matrix) -> QuantMatrix:
    quantized = QuantMatrix(
        matrix.in_channels, matrix.out_channels, transposed=matrix.transposed, bias=matrix.bias is not None,
        device=torch.device("meta"),
    )  # fmt: skip
    quantized.weight_axis = output_axis(matrix)
    return quantized


def _quantized_convolution(conv: nn.Conv2d | nn.ConvTranspose2d) -> QuantConv2d | QuantConvTranspose2d:
    transposed = isinstance(conv, nn.ConvTranspose2d)
    kind: type[QuantConv2d | QuantConvTranspose2d] = QuantConvTranspose2d if transposed else QuantConv2d
    quantized = kind(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]  # a pair; torch types it as a tuple of any length
        stride=conv.stride,  # type: ignore[arg-type]
        padding=conv.padding,  # type: ignore[arg-type]
        dilation=conv.dilation,  # type: ignore[arg-type]
        groups=conv.groups,
        bias=conv.bias is not None,
        padding_mode=conv.padding_mode,
        device=torch.device("meta"),
    )
    if isinstance(conv, nn.ConvTranspose2d):
        quantized.output_padding = conv.output_padding
    return quantized
