"""Steps of an optimizer in units of each weight's own size.

A fused model has no batch norms: the sizes of its channels are in its weights, which differ by orders of magnitude
within one layer, while a step of Adam is the same for all. So a weight w makes its steps as ``v = w / unit``, the unit
being the size of its row times that of its column, and steps become relative. Units are powers of two: converting is
exact, and no step is no change.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from repq.model.weighted import is_layer, other_axes

_LEAST = 2.0**-20  # beside the largest of the tensor: switched-off channels keep a unit


def step_in_units(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """From now on let ``optimizer`` see the weights and biases of all layers, and their gradients, in units."""
    units: list[tuple[Tensor, Tensor]] = []
    for layer in model.modules():
        if is_layer(layer):
            units.append((layer.weight, _whole(weight_unit(layer.weight.detach()), layer.weight)))
            if layer.bias is not None:
                units.append((layer.bias, bias_unit(layer.bias.detach())))
    parameters, sizes = map(list, zip(*units, strict=True)) if units else ([], [])

    @torch.no_grad()
    def enter(*_: Any) -> None:
        torch._foreach_div_(parameters, sizes)
        learning = [(parameter.grad, unit) for parameter, unit in units if parameter.grad is not None]
        if learning:
            gradients, own = map(list, zip(*learning, strict=True))
            torch._foreach_mul_(gradients, own)

    @torch.no_grad()
    def leave(*_: Any) -> None:
        torch._foreach_mul_(parameters, sizes)

    optimizer.register_step_pre_hook(enter)
    optimizer.register_step_post_hook(leave)


def _whole(unit: Tensor, parameter: Tensor) -> Tensor:
    """A unit for each value: equal shapes and strides let a GPU take all parameters at once."""
    return torch.empty_like(parameter).copy_(unit)


def weight_unit(weight: Tensor) -> Tensor:
    """The root mean square of each row (first axis) times that of each column of what is left (second axis)."""
    rows = _power_of_two(_size(weight, axis=0))
    return rows * _power_of_two(_size(weight / rows, axis=1))


def bias_unit(bias: Tensor) -> Tensor:
    """The magnitude of each entry, at least the root mean square of all."""
    return _power_of_two(torch.maximum(bias.abs(), bias.square().mean().sqrt()))


def _size(weight: Tensor, axis: int) -> Tensor:
    return weight.square().mean(other_axes(weight.ndim, axis), keepdim=True).sqrt()


def _power_of_two(size: Tensor) -> Tensor:
    largest = size.max()
    floor = largest * _LEAST if largest > 0 else torch.ones_like(largest)
    return torch.maximum(size, floor).log2().round().exp2()
