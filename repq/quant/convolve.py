"""A fake-quantized convolution as one step of the graph that gradients go back through.

``conv(Q(x), Q(w))`` and its gradients are those of two ``fake_quantize`` and a convolution; the tests compare them. As
one step it costs less than as three:

- The gradient of Q(x) belongs to this step alone, so that of x takes its place in memory.
- The gradient of a scale needs ``sum(g * Q(x))``, g being the gradient of Q(x). A convolution is linear in its input
  and in its weight alike, so that is ``sum(h * Q(w))``, h being the gradient of Q(w): a sum over some thousand weights
  in place of one over some million activations.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from repq.quant.quantizer import Grid, Quantizer
from repq.quant.values import dot

_aten = torch.ops.aten


class Geometry(NamedTuple):
    """The arguments of ``torch.convolution`` after the bias."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        of_inputs: Tensor | None,  # what is learned of the scales; their values are in the grids
        of_weights: Tensor | None,
        inputs: Grid,
        weights: Grid,
        geometry: Geometry,
    ) -> Tensor:
        steps, w_steps = x.div(inputs.scale), weight.div(weights.scale)
        ctx.in_steps = kept_in_steps(x, inputs)
        qx = _rounded(steps) if ctx.in_steps else steps.round_()
        qx.clamp_(*inputs.limits).mul_(inputs.scale)
        qw = _rounded(w_steps).clamp_(*weights.limits).mul_(weights.scale)
        ctx.save_for_backward(steps if ctx.in_steps else x, weight, w_steps, qx, qw)
        ctx.inputs, ctx.weights, ctx.geometry = inputs, weights, geometry
        ctx.bias = None if bias is None else [len(bias)]
        return torch.convolution(qx, qw, bias, *geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, w_steps, qx, qw = ctx.saved_tensors
        inputs, weights = ctx.inputs, ctx.weights
        for_x, _, for_bias, for_inputs, for_weights, *_ = ctx.needs_input_grad
        wanted = (for_x or for_inputs, True, for_bias)
        g, h, of_bias = _aten.convolution_backward(gradient, qx, qw, ctx.bias, *ctx.geometry, wanted)
        products = h * qw if for_inputs or for_weights else h
        of_x = of_inputs = of_weights = None
        if g is not None:
            unit = 1.0 if ctx.in_steps else inputs.scale.item()
            low, high = ((limit + half) * unit for limit, half in zip(inputs.limits, (-0.5, 0.5), strict=True))
            of_x = _aten.hardtanh_backward.grad_input(g, x, low, high, grad_input=g)
            if for_inputs and inputs.scale.ndim > 0:
                kept = (of_x * x).sum_to_size(inputs.scale.shape).mul_(inputs.scale)  # x is in steps
                of_inputs = _learned(products.view(kept.numel(), -1).sum(1).view_as(kept).sub_(kept), inputs)
            elif for_inputs:
                kept = dot(of_x, x)
                of_inputs = _learned(products.sum().sub_(kept * inputs.scale if ctx.in_steps else kept), inputs)
        low, high = weights.limits
        of_w = _aten.hardtanh_backward(h, w_steps, low - 0.5, high + 0.5)
        if for_weights:
            of_weights = _learned(products.addcmul_(of_w, weight, value=-1).sum_to_size(weights.scale.shape), weights)
        return of_x, of_w, of_bias, of_inputs, of_weights, None, None, None


def kept_in_steps(x: Tensor, inputs: Grid) -> bool:
    """Whether x is kept for its comparison with the limits as ``x / scale``, where the limits are plain numbers.

    Else it is kept as it is, which costs no memory; on CUDA the limits would then have to wait for the scale.
    """
    return inputs.scale.ndim > 0 or x.is_cuda


def _learned(slope: Tensor, grid: Grid) -> Tensor:
    """The gradient of what is learned of a scale, from ``slope``, the scale times its gradient; in place."""
    assert grid.log_ratio is not None
    return slope.div_(grid.scale.square()).mul_(grid.factor).view_as(grid.log_ratio)


def _rounded(x: Tensor) -> Tensor:
    """A new tensor of the same layout. ``round()`` forgets which one it is where height and width are 1."""
    return torch.round(x, out=torch.empty_like(x))


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, inputs: Quantizer, weights: Quantizer, geometry: Geometry
) -> Tensor:
    """``conv(inputs(x), weights(weight)) + bias``, with gradients of one order.

    Args:
        x: (B, C, H, W).
        inputs: on; one scale, or one per channel where ``geometry`` is that of a depthwise convolution.
        weights: on.

    Raises:
        QuantizationError: there is no scale yet.
    """
    x_grid, w_grid = inputs.grid(x), weights.grid(weight)
    y: Tensor = _Convolve.apply(x, weight, bias, x_grid.log_ratio, w_grid.log_ratio, x_grid, w_grid, geometry)
    return y
