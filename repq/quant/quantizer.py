"""Fake quantization: the rounding that an INT8 engine does, in float arithmetic and with a gradient.

``fake_quantize`` divides by the scale as ONNX's QuantizeLinear does, and so equals it bit for bit. torch's own
``fake_quantize_per_tensor_affine`` multiplies by ``1 / scale`` in float32 instead: on random values one integer in two
million differs, on values halfway between two integers one in ten. On a CPU it is also about ten times slower than the
four in-place passes used here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from repq.errors import QuantizationError
from repq.scales import IntegerType, TensorScale


class _StraightThrough(torch.autograd.Function):
    """``y = clip(round(x / s), low, high) * s``; the gradient is 1 where ``x`` is not clipped (Bengio et al. 2013)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
        steps = x.div(scale).round_()
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward((steps >= low) & (steps <= high))
        return steps.clamp_(low, high).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None, None


def fake_quantize(x: Tensor, scale: Tensor, zero_point: int, q_min: int, q_max: int) -> Tensor:
    """``(clip(round_half_even(x / scale) + zero_point, q_min, q_max) - zero_point) * scale`` (ONNX opset 19).

    Args:
        x: float32 tensor of any shape.
        scale: float32, of shape () or one that broadcasts against ``x``.

    The gradient with respect to ``x`` is 1 inside the range and 0 outside.
    """
    result: Tensor = _StraightThrough.apply(x, scale, q_min - zero_point, q_max - zero_point)
    return result


class Quantizer(nn.Module):
    """Fake-quantizes one tensor with a scale that is set from outside.

    A quantizer is off (``enabled`` is False: the identity) or on. On but without a scale it fails: no value is a
    harmless default. It keeps nothing in the state dict, so a quantized model's entries are those of its float model.

    Args:
        name: what is quantized, for messages: "the input of neck.conv".
    """

    scale: Tensor | None

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.enabled = True
        self.zero_point = 0
        self.dtype: IntegerType = "int8"
        self.axis: int | None = None
        self.register_buffer("scale", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` rounded to the integer grid, the same shape.

        Raises:
            QuantizationError: there is no scale yet.
        """
        if not self.enabled:
            return x
        if self.scale is None:
            raise QuantizationError(
                f"{self.name} has no scale", found="a model that was not calibrated", fix="calibrate it before use"
            )
        limits = np.iinfo(self.dtype)
        return fake_quantize(x, self._aligned(self.scale, x.ndim), self.zero_point, int(limits.min), int(limits.max))

    def set_scale(self, value: TensorScale, device: torch.device) -> None:
        """Use ``value`` from now on.

        Raises:
            QuantizationError: a scale that is not positive and finite, or a per-channel zero point other than 0.
        """
        if not (np.isfinite(value.scale).all() and (value.scale > 0).all()):
            raise QuantizationError(f"{self.name} cannot take its scale", found="a scale that is not positive")
        if value.axis is not None and value.zero_point.any():
            raise QuantizationError(f"{self.name} cannot take its scale", found="zero points per channel")
        self.scale = torch.tensor(value.scale, dtype=torch.float32, device=device)
        self.zero_point = int(value.zero_point.flat[0])
        self.dtype, self.axis = value.dtype, value.axis

    def get_scale(self) -> TensorScale | None:
        """The scale as a plain value, None before calibration."""
        if self.scale is None:
            return None
        scale = self.scale.detach().cpu().numpy().copy()
        return TensorScale(scale, np.full(scale.shape, self.zero_point, self.dtype), self.dtype, self.axis)

    def extra_repr(self) -> str:
        state = "no scale" if self.scale is None else f"scale of shape {tuple(self.scale.shape)}"
        return f"{self.dtype}, axis={self.axis}, {state}, {'on' if self.enabled else 'off'}"

    def _aligned(self, scale: Tensor, dimensions: int) -> Tensor:
        if self.axis is None:
            return scale
        shape = [1] * dimensions
        shape[self.axis] = -1
        return scale.view(shape)
