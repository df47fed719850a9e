"""From plans of samples to the images of a batch, by OpenCV or by NVIDIA DALI."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repq.data import ImageCache, SamplePlan, render
from repq.train.dali import DaliRenderer


class Renderer(Protocol):
    """Makes images in two steps."""

    def prepare(self, plan: SamplePlan) -> Any:
        """What threads can do for a sample; they may share a renderer."""

    def join(self, prepared: Sequence[Any]) -> NDArray[np.uint8] | Tensor:
        """The images (B, H, W, 3) uint8 RGB of a batch, from what was prepared for samples of one size."""


class OpenCvRenderer:
    """Draws samples on the CPU, each in a thread."""

    def __init__(self, cache: ImageCache) -> None:
        self._cache = cache

    def prepare(self, plan: SamplePlan) -> NDArray[np.uint8]:
        return render(plan, self._cache)

    def join(self, prepared: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        return np.stack(prepared)


def renderer_of(loader: str, cache: ImageCache, grey: int, device: torch.device, threads: int) -> Renderer:
    """The renderer of this name, for a training on the device.

    Args:
        grey: level of what no image covers.

    Raises:
        EngineError: DALI is not installed, or cannot use the device.
    """
    return DaliRenderer(cache, grey, device, threads) if loader == "dali" else OpenCvRenderer(cache)
