"""The average against the recurrence written out."""

from __future__ import annotations

import math

import torch
from torch import nn

from repq.train.optimizer import MovingAverage


def test_follows_the_recurrence_over_parameters_and_buffers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
    average = MovingAverage(model, decay=0.9, ramp_steps=4)
    expected = {name: value.double() for name, value in model.state_dict().items()}
    for update in range(1, 6):
        model.train()(torch.randn(4, 2, 3, 3))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.update(model)
        decay = 0.9 * (1 - math.exp(-update / 4))
        for name, value in model.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value.double()
    for name, value in average.model.state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(value.double(), expected[name], rtol=1e-5, atol=1e-6)  # float32 against float64
    assert average.model.state_dict()["1.num_batches_tracked"] == 5
    assert not average.model.training
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
