"""Fake quantization: the rounding that an INT8 engine does, in float arithmetic and with a gradient.

``fake_quantize`` divides by the scale as ONNX's QuantizeLinear does, and so equals it bit for bit. torch's own
``fake_quantize_per_tensor_affine`` multiplies by ``1 / scale`` in float32 instead: on random values one integer in two
million differs, on values halfway between two integers one in ten. On a CPU it is also about ten times slower than the
four in-place passes used here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from repq.errors import QuantizationError
from repq.quant.values import dot, flat, is_channels_last
from repq.scales import IntegerType, TensorScale

CACHED = 1 << 18
"""Values that go through all four passes before the next ones do: they and the result fit a core's cache."""


class _FakeQuantize(torch.autograd.Function):
    """``y = clip(round(x / s), low, high) * s`` and its straight-through gradients; see `fake_quantize`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
        y = torch.empty_like(x)
        for part, rounded in _parts(x, y, scale):
            torch.div(part, scale, out=rounded).round_().clamp_(low, high).mul_(scale)
        ctx.low, ctx.high = low, high
        ctx.save_for_backward(x, scale, y if ctx.needs_input_grad[1] else None)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        x, scale, y = ctx.saved_tensors
        (dy,) = gradients
        # A value is clipped if it would be rounded to an integer outside.
        dx = _inside(dy, x, (ctx.low - 0.5) * scale, (ctx.high + 0.5) * scale)
        return dx, None if y is None else _scale_gradient(dx, dy, x, y, scale), None, None


def _parts(x: Tensor, y: Tensor, scale: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    """Views of x and of its ``empty_like`` y, part by part: the scale fits each, and on a CPU its cache holds it."""
    if x.is_cuda or x.numel() <= CACHED:
        return [(x, y)]
    if scale.ndim == 0 and (x.is_contiguous() or is_channels_last(x)):  # and y lies as x does
        return zip(*(row.split(CACHED) for row in flat(x, y)), strict=True)
    if scale.ndim == 0 or (scale.ndim == x.ndim and len(scale) == 1):
        images = max(1, CACHED // x[0].numel())
        return zip(x.split(images), y.split(images), strict=True)
    return [(x, y)]


def _inside(dy: Tensor, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """``dy`` where ``low < x < high``, else 0."""
    if low.ndim == 0 and not x.is_cuda:  # one pass in place of five; on CUDA item() would wait for the device
        clipped: Tensor = torch.ops.aten.hardtanh_backward(dy, x, low.item(), high.item())
        return clipped
    return dy.where((x > low) & (x < high), 0)


def _scale_gradient(dx: Tensor, dy: Tensor, x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """Sum of ``dy * (y - x) / s`` over values inside and ``dy * y / s`` over clipped ones, for each scale.

    Since dx is dy inside and 0 elsewhere, that is ``(sum(dy * y) - sum(dx * x)) / s``.
    """
    if scale.ndim == 0:
        return (dot(dy, y) - dot(dx, x)) / scale
    return (dy * y - dx * x).sum_to_size(scale.shape) / scale


def fake_quantize(x: Tensor, scale: Tensor, zero_point: int, q_min: int, q_max: int) -> Tensor:
    """``(clip(round_half_even(x / scale) + zero_point, q_min, q_max) - zero_point) * scale`` (ONNX opset 19).

    Args:
        x: float32 tensor of any shape.
        scale: float32, of shape () or one that broadcasts against ``x``.

    The gradient with respect to ``x`` is 1 inside the range and 0 where it is clipped (Bengio et al. 2013). That with
    respect to ``scale`` is ``round(x / s) - x / s`` inside, and the integer at the end where it is clipped (Esser et
    al., LSQ, 1902.08153, equation 3; the range there ends half a step earlier, at the last integer itself, where it
    would leave the largest weight of every channel without a gradient).
    """
    result: Tensor = _FakeQuantize.apply(x, scale, q_min - zero_point, q_max - zero_point)
    return result


class Grid(NamedTuple):
    """How one tensor is quantized: ``clip(round(x / scale), *limits) * scale``.

    Attributes:
        scale: of shape (), or one that broadcasts against the tensor; without a gradient.
        limits: the smallest and the largest integer, the zero point taken off.
        log_ratio: what is learned of the scale, if it is.
        factor: the gradient of ``log_ratio`` is that of the scale times this, divided by the scale.
    """

    scale: Tensor
    limits: tuple[int, int]
    log_ratio: Tensor | None = None
    factor: float = 1.0


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
        scale = self.current_scale(x)
        if scale is None:
            raise self._without_scale()
        return fake_quantize(x, self._aligned(scale, x.ndim), 0, *self.limits)

    def grid(self, x: Tensor) -> Grid:
        """How ``x`` is quantized, for code that computes values and gradients itself.

        Raises:
            QuantizationError: there is no scale yet.
        """
        if self.scale is None:
            raise self._without_scale()
        return Grid(self._aligned(self.scale, x.ndim), self.limits)

    @property
    def limits(self) -> tuple[int, int]:
        """The smallest and the largest integer, the zero point taken off."""
        limits = np.iinfo(self.dtype)
        return int(limits.min) - self.zero_point, int(limits.max) - self.zero_point

    def _without_scale(self) -> QuantizationError:
        return QuantizationError(
            f"{self.name} has no scale", found="a model that was not calibrated", fix="calibrate it before use"
        )

    def current_scale(self, x: Tensor | None = None) -> Tensor | None:
        """The scale that is in use, for ``x`` where it is about to quantize it; None before calibration."""
        return self.scale

    def set_scale(self, value: TensorScale, device: torch.device) -> None:
        """Use ``value`` from now on.

        Raises:
            QuantizationError: a scale that is not positive and finite, or channels with different zero points.
        """
        if not (np.isfinite(value.scale).all() and (value.scale > 0).all()):
            raise QuantizationError(f"{self.name} cannot take its scale", found="a scale that is not positive")
        if np.unique(value.zero_point).size > 1:
            raise QuantizationError(f"{self.name} cannot take its scale", found="zero points that differ by channel")
        self.scale = torch.tensor(value.scale, dtype=torch.float32, device=device)
        self.zero_point = int(value.zero_point.flat[0])
        self.dtype, self.axis = value.dtype, value.axis

    def get_scale(self) -> TensorScale | None:
        """The scale as a plain value, None before calibration."""
        current = self.current_scale()
        if current is None:
            return None
        scale = current.detach().cpu().numpy().copy()
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
