"""Layers that are no learned ones: the mean over the bins of a distribution.

Detectors that predict distances as distributions (Generalized Focal Loss, arXiv 2006.04388) compute each as
``sum_i i softmax(x)_i``, and exporters write that as a convolution or product with the weights 0, 1, 2, … In INT8 a
share loses all below half a step, 1/254 or 1/510, so that the mean of 16 bins errs by tenths of a bin, which are pixels
at coarse strides; the work is next to none. repq's own heads do not quantize it either.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repq.layers import LayerId
from repq.model.detector import layers_of

LEAST_BINS = 4


def bin_means(model: nn.Module) -> tuple[LayerId, ...]:
    """The layers of a fused model that are a mean over bins: one output, weights in equal steps from 0 on, no bias."""
    return tuple(layer for layer, module in layers_of(model) if _is_mean(module.weight, module.bias))


def _is_mean(weight: Tensor, bias: Tensor | None) -> bool:
    values = weight.detach().flatten()
    if weight.dim() not in (2, 4) or len(values) < LEAST_BINS or len(values) not in weight.shape:
        return False
    numbers = torch.arange(len(values), device=values.device, dtype=values.dtype)
    return bool(values[1] > 0 and torch.equal(values, values[1] * numbers) and (bias is None or not bias.any()))
