"""Multiply-adds per layer."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from repq.layers import LayerId
from repq.model.detector import Detector, layer_ids


def count_macs(deploy_model: Detector, imgsz: int | tuple[int, int]) -> dict[LayerId, int]:
    """Multiply-adds of every convolution for one image of ``imgsz`` (height, width, or one number for a square).

    ``MACs = output elements * (C_in / groups) * k_h * k_w``; for a transposed convolution
    ``input elements * (C_out / groups) * k_h * k_w``. Nothing is computed: shapes flow through the meta device.

    Raises:
        RepqError: the size is no multiple of the model's coarsest stride.
    """
    height, width = (imgsz, imgsz) if isinstance(imgsz, int) else imgsz
    deploy_model.spec.check_size(height, width)
    model = copy.deepcopy(deploy_model).to("meta").eval()
    counts: dict[LayerId, int] = {}

    def counter(layer: LayerId) -> Any:
        def hook(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            counted = inputs[0] if isinstance(module, nn.ConvTranspose2d) else output
            counts[layer] = counted.numel() * module.weight[0].numel()

        return hook

    layers = layer_ids(model)
    for layer in layers:
        model.get_submodule(layer).register_forward_hook(counter(layer))
    with torch.no_grad():
        model(torch.empty(1, 3, height, width, device="meta"))
    return {layer: counts[layer] for layer in layers}
