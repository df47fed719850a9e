"""Run a model on calibration images and gather a histogram of what every layer receives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from repq.errors import QuantizationError
from repq.layers import LayerId
from repq.progress import Progress, silent
from repq.quant.calibration.histogram import Histogram
from repq.quant.state import quantizing

Images = NDArray[np.float32] | Tensor
"""A batch of network inputs, float32 (B, 3, H, W), RGB in 0..1."""


@dataclass(frozen=True)
class Observation:
    """What the layers received: a histogram of each one's input, and the number of images."""

    histograms: Mapping[LayerId, Histogram]
    images: int
    input_size: tuple[int, int]


def observe(
    model: nn.Module,
    layers: Sequence[LayerId],
    batches: Iterable[Images],
    *,
    bins: int = 2048,
    progress: Progress = silent,
) -> Observation:
    """Gather the input histograms of ``layers`` while ``model`` runs in float and in eval mode.

    Memory is one histogram of ``2 bins + 1`` counts per layer, whatever the number of images.

    Raises:
        QuantizationError: no images, or an activation that is not finite; the message names the first such layer.
    """
    histograms = {layer: Histogram(f"the input of {layer}", bins) for layer in layers}
    images, size = 0, (0, 0)
    training = model.training
    with ExitStack() as stack:
        stack.callback(model.train, training)
        stack.enter_context(torch.no_grad())
        stack.enter_context(quantizing(model.eval(), ()))
        for layer, histogram in histograms.items():
            stack.enter_context(_watching(model.get_submodule(layer), histogram))
        device = next(model.parameters()).device
        for batch in progress(batches, label="calibrate"):
            inputs = torch.as_tensor(batch, dtype=torch.float32, device=device)
            model(inputs)
            images += len(inputs)
            size = (inputs.shape[-2], inputs.shape[-1])
    if not images:
        raise QuantizationError(
            "there is nothing to calibrate on", found="no images", fix="give at least one calibration image"
        )
    return Observation(histograms, images, size)


def _watching(module: nn.Module, histogram: Histogram) -> torch.utils.hooks.RemovableHandle:
    def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        histogram.add(inputs[0])

    return module.register_forward_pre_hook(hook)
