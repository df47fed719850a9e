"""Units change the size of steps and nothing else."""

from __future__ import annotations

import pytest
import torch
from small_qat import float_model
from torch import nn

from repq.train.units import bias_unit, step_in_units, weight_unit


def test_without_a_gradient_no_bit_changes() -> None:
    model = float_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0)
    step_in_units(optimizer, model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for _ in range(3):
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_entries_are_of_one_size_in_units() -> None:
    rng = torch.Generator().manual_seed(0)
    rows, columns = (torch.randn(shape, generator=rng).mul(3).exp() for shape in ((16, 1, 1, 1), (1, 8, 1, 1)))
    weight = torch.randn(16, 8, 3, 3, generator=rng) * rows * columns
    value = weight / weight_unit(weight)
    before = weight.square().mean((1, 2, 3)).sqrt()
    assert before.max() > 100 * before.min()
    for axes in ((1, 2, 3), (0, 2, 3)):
        size = value.square().mean(axes).sqrt()
        assert size.min() > 0.2
        assert size.max() < 5


@pytest.mark.parametrize(
    "unit",
    [
        weight_unit(torch.zeros(4, 2, 1, 1)),
        weight_unit(torch.eye(4).view(4, 4, 1, 1) * 0.1),
        weight_unit(torch.cat((torch.zeros(1, 1, 3, 3), torch.ones(1, 1, 3, 3)))),
        bias_unit(torch.zeros(3)),
    ],
)
def test_channels_without_weights_have_a_unit(unit: torch.Tensor) -> None:
    assert torch.isfinite(unit).all()
    assert (unit > 0).all()
    assert (unit.log2() % 1 == 0).all()


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD])
def test_a_step_is_relative(kind: type[torch.optim.Optimizer]) -> None:
    """A channel that is 1024 times as large, and so has gradients 1/1024 as large, changes by the same share."""
    moved = []
    for size in (1, 1024):
        conv = nn.Conv2d(1, 2, 1)
        with torch.no_grad():
            conv.weight.copy_(torch.tensor([1.0, 0.5]).view(2, 1, 1, 1) * size)
            conv.bias.copy_(torch.tensor([0.3, -0.2]) * size)
        before = [parameter.detach().clone() for parameter in conv.parameters()]
        optimizer = kind(conv.parameters(), lr=0.01)  # type: ignore[call-arg]
        step_in_units(optimizer, conv)
        (conv(torch.ones(1, 1, 1, 1)).sum() / size).backward()
        optimizer.step()
        moved.append([after.detach() / first for after, first in zip(conv.parameters(), before, strict=True)])
    for own, other in zip(*moved, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=0)
        assert (own != 1).all()
