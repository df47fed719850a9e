"""The error that quantizing a layer makes at its own output: all layers in one pass over the images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from repq.layers import LayerId
from repq.model import Detector
from repq.progress import Progress, silent
from repq.quant.calibration.observe import Images
from repq.quant.insertion import quantized_layers
from repq.quant.sensitivity.guards import demand_finite, demand_images
from repq.quant.sensitivity.measures import Moments
from repq.quant.state import quantizing


def local_moments(
    model: Detector, layers: Sequence[LayerId], batches: Iterable[Images], progress: Progress = silent
) -> dict[LayerId, Moments]:
    """Compare every layer's output with quantized and with float input and weight, on the float model's activations.

    The model runs in float; beside each layer the same input goes through the layer again, quantized. Nothing is kept
    but three sums a layer.

    Args:
        model: a calibrated model that holds quantizers in all ``layers``.
        batches: network inputs, float32 (B, 3, H, W) in 0..1.

    Raises:
        QuantizationError: no images, or a layer's output is not finite; the message names the first such layer.
    """
    modules = quantized_layers(model)
    moments = {layer: Moments() for layer in layers}
    device = next(model.parameters()).device
    images = 0
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(quantizing(model, ()))
        for layer in layers:
            stack.enter_context(modules[layer].register_forward_hook(_comparing(layer, moments[layer])))
        for batch in progress(batches, label="local measures"):
            inputs = torch.as_tensor(batch, dtype=torch.float32, device=device)
            model(inputs)
            images += len(inputs)
    demand_images(images)
    return moments


def _comparing(layer: LayerId, moments: Moments) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        with quantizing(module, (LayerId(""),)):  # within itself the layer's path is empty
            quantized = module.forward(*inputs)
        moments.add(output, quantized)
        demand_finite(layer, moments)

    return hook
