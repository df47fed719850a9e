"""Scales that are learned with the weights (Esser et al., "Learned Step Size Quantization", 1902.08153).

Scales of one model differ by orders of magnitude and have to stay positive, so what is learned is a logarithm:
``scale = start * exp(log_ratio)``, with ``log_ratio`` 0 at first, where the scale is bit for bit the calibrated one
(Jain et al., TQT, 1903.08066, learn in the logarithmic domain for the same reasons). The gradient that ``log_ratio``
gets is LSQ's, ``dL/ds / sqrt(N q_max)`` for a tensor of N values (section 2.2), divided by the scale: plain gradient
descent then moves the scale by the share of itself by which it would move on LSQ's gradient.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from repq.errors import QuantizationError
from repq.layers import LayerId
from repq.model import Detector
from repq.quant.calibration.observation import Groups
from repq.quant.quantizer import Grid, Quantizer
from repq.quant.state import quantized_layers
from repq.quant.tape import record_small
from repq.scales import TensorScale


class _Scale(torch.autograd.Function):
    """``start * exp(log_ratio)``; backward, the gradient of the scale times ``factor / scale``."""

    @staticmethod
    def forward(ctx: Any, log_ratio: Tensor, start: Tensor, factor: float) -> Tensor:
        scale = _moved(start, log_ratio)
        ctx.factor = factor
        ctx.save_for_backward(scale)
        return scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (scale,) = ctx.saved_tensors
        return gradients[0] * ctx.factor / scale, None, None


def _moved(start: Tensor, log_ratio: Tensor) -> Tensor:
    return start * log_ratio.exp()


class LearnedQuantizer(Quantizer):
    """A quantizer whose scale is a parameter; its zero point stays.

    Args:
        calibrated: the quantizer whose place it takes; its scale is where learning starts.
        batched: whether the first axis of what is quantized counts images, which LSQ's N leaves out.

    Raises:
        QuantizationError: ``calibrated`` has no scale.
    """

    log_ratio: nn.Parameter

    def __init__(self, calibrated: Quantizer, *, batched: bool) -> None:
        super().__init__(calibrated.name)
        start = calibrated.get_scale()
        if calibrated.scale is None or start is None:
            raise QuantizationError(
                f"{calibrated.name} has no scale to start from", fix="calibrate the model before training it"
            )
        self.enabled, self.batched = calibrated.enabled, batched
        self.set_scale(start, calibrated.scale.device)

    def set_scale(self, value: TensorScale, device: torch.device) -> None:
        """Start again from ``value``."""
        super().set_scale(value, device)
        assert self.scale is not None
        self.log_ratio = nn.Parameter(torch.zeros_like(self.scale))

    def current_scale(self, x: Tensor | None = None) -> Tensor | None:
        assert self.scale is not None
        scale: Tensor = _Scale.apply(self.log_ratio, self.scale, 1.0 if x is None else self._factor(x))
        return scale

    def grid(self, x: Tensor) -> Grid:
        assert self.scale is not None
        with torch.no_grad():
            scale = _moved(self.scale, self.log_ratio)
        return Grid(self._aligned(scale, x.ndim), self.limits, self.log_ratio, self._factor(x))

    def _factor(self, x: Tensor) -> float:
        return 1 / math.sqrt(self._values_per_scale(x) * np.iinfo(self.dtype).max)

    def _values_per_scale(self, x: Tensor) -> float:
        return x.numel() / self.log_ratio.numel() / (len(x) if self.batched else 1)


def learn_scales(model: Detector, groups: Groups = (), *, weights: bool = True) -> None:
    """Make the scales of all activations, and with ``weights`` those of weights, parameters; in place.

    One scale goes on being shared by layers that read the very same tensor, and by those that ``groups`` declares to
    share it; others that have equal scales go ways of their own. The two scales of a weight that is split stay: the
    fine one fits the coarse one.

    Args:
        groups: layers whose inputs were declared to share one scale (``repq ptq --share-scales``).

    Raises:
        QuantizationError: a layer has no scales.
    """
    layers = quantized_layers(model)
    readers: dict[int, list[LayerId]] = {}
    for done in record_small(model).operations:
        if done.layer in layers:
            readers.setdefault(done.inputs[0], []).append(done.layer)
    for layer in layers.values():
        layer.input_quantizer = LearnedQuantizer(layer.input_quantizer, batched=True)
        if weights and layer.fine_quantizer is None:
            layer.weight_quantizer = LearnedQuantizer(layer.weight_quantizer, batched=False)
    for group in _joined([*readers.values(), *groups]):
        shared: dict[tuple[Any, ...], nn.Parameter] = {}  # by value: channels of one tensor may have their own
        for name in group:
            if name in layers:
                quantizer = layers[name].input_quantizer
                assert isinstance(quantizer, LearnedQuantizer)
                quantizer.log_ratio = shared.setdefault(_value(quantizer), quantizer.log_ratio)


def _joined(groups: Groups) -> list[list[LayerId]]:
    """Disjoint groups: those that have a layer in common are one."""
    found: list[list[LayerId]] = []
    for group in groups:
        touched = [other for other in found if not set(other).isdisjoint(group)]
        found = [other for other in found if other not in touched]
        found.append(list(dict.fromkeys([*(layer for other in touched for layer in other), *group])))
    return found


def fix_scales(model: nn.Module) -> None:
    """Turn learned scales into plain ones of the same values, in place."""
    for layer in quantized_layers(model).values():
        layer.input_quantizer = _fixed(layer.input_quantizer)
        layer.weight_quantizer = _fixed(layer.weight_quantizer)


def scale_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that are scales, a shared one once."""
    found = [module.log_ratio for module in model.modules() if isinstance(module, LearnedQuantizer)]
    return list(dict.fromkeys(found))


def _value(quantizer: LearnedQuantizer) -> tuple[Any, ...]:
    assert quantizer.scale is not None
    return quantizer.dtype, quantizer.zero_point, tuple(quantizer.scale.flatten().tolist())


def _fixed(quantizer: Quantizer) -> Quantizer:
    value = quantizer.get_scale()
    if not isinstance(quantizer, LearnedQuantizer) or value is None:
        return quantizer
    plain = Quantizer(quantizer.name)
    plain.enabled = quantizer.enabled
    plain.set_scale(value, quantizer.log_ratio.device)
    return plain
