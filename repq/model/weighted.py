"""What counts as a layer: a module with a weight that can be quantized, and where its channels lie.

The output channels of a weight lie along its ``output_axis``, the channels of what a layer reads and writes along its
``channel_axis``. Whoever treats layers alike asks here.
"""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional


class Matrix(nn.Module):
    """``y = x W + b`` over the last axis of ``x`` (…, C_in); the weight lies as MatMul and Gemm of ONNX have it.

    Args:
        transposed: the weight is (C_out, C_in), not (C_in, C_out).
        bias: whether there is a ``b`` (C_out,).
    """

    bias: nn.Parameter | None

    def __init__(
        self, in_channels: int, out_channels: int, *, transposed: bool = False, bias: bool = True,
        device: torch.device | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.in_channels, self.out_channels, self.transposed = in_channels, out_channels, transposed
        shape = (out_channels, in_channels) if transposed else (in_channels, out_channels)
        self.weight = nn.Parameter(torch.empty(shape, device=device))
        self.register_parameter("bias", nn.Parameter(torch.empty(out_channels, device=device)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh parameters, as torch draws those of `torch.nn.Linear`."""
        bound = self.in_channels**-0.5
        for parameter in self.parameters(recurse=False):
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        return self.multiply(input, self.weight)

    def multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        """The product with a weight of the shape of this one, and the bias."""
        return functional.linear(x, weight if self.transposed else weight.t(), self.bias)


Layer = nn.Conv2d | nn.ConvTranspose2d | Matrix


def is_layer(module: nn.Module) -> TypeGuard[Layer]:
    """Whether a module is a layer."""
    return isinstance(module, Layer)


def is_convolution(module: nn.Module) -> TypeGuard[nn.Conv2d | nn.ConvTranspose2d]:
    """Whether a module is a layer that works on maps (B, C, H, W)."""
    return isinstance(module, nn.Conv2d | nn.ConvTranspose2d)


def output_axis(layer: Layer) -> int:
    """The axis of a layer's weight along which its output channels lie (of a transposed convolution: of one group)."""
    if isinstance(layer, Matrix):
        return 0 if layer.transposed else 1
    return 1 if isinstance(layer, nn.ConvTranspose2d) else 0


def input_axis(layer: Layer) -> int:
    """The axis of a layer's weight along which its input channels lie (of a convolution: of one group)."""
    return 1 - output_axis(layer)


def channel_axis(layer: Layer) -> int:
    """The axis of what a layer reads, and of what it writes, along which the channels lie."""
    return -1 if isinstance(layer, Matrix) else 1


def along(values: Tensor, axis: int, ndim: int) -> Tensor:
    """Values (C,) with as many axes as a tensor that they are to meet along ``axis``."""
    shape = [1] * ndim
    shape[axis] = -1
    return values.view(shape)


def other_axes(ndim: int, axis: int) -> tuple[int, ...]:
    """All axes but one."""
    return tuple(other for other in range(ndim) if other != axis % ndim)
