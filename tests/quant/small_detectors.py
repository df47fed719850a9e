"""Small fused detectors with random weights."""

from __future__ import annotations

import torch
from few_blocks import few_blocks
from torch import Tensor, nn

from repq.machine.torch_device import network_input
from repq.model import Detector, build

SIZE = (64, 64)


def images(count: int = 2, seed: int = 0) -> Tensor:
    return network_input(torch.rand(count, 3, *SIZE, generator=torch.Generator().manual_seed(seed)), "cpu")


def uneven(name: str, classes: int = 3, *, spread: float = 1.0) -> Detector:
    """Channels of one layer differ by factors ``exp(spread)``, as in trained models; activations keep their size."""
    torch.manual_seed(0)
    model = build(few_blocks(name, classes), deploy=True).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            inputs = module.weight[0].numel() if isinstance(module, nn.Conv2d) else module.in_channels
            nn.init.normal_(module.weight, 0, (2 / inputs) ** 0.5)
            factors = torch.exp(spread * torch.randn(module.out_channels) - spread**2)
            axis = 0 if isinstance(module, nn.Conv2d) else 1
            module.weight.data.mul_(factors.view([-1 if i == axis else 1 for i in range(4)]))
            assert module.bias is not None
            nn.init.normal_(module.bias, 0, 0.1)
    return model
