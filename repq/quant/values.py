"""The values of tensors, whatever the order in which they lie in memory."""

from __future__ import annotations

import torch
from torch import Tensor


def flat(*tensors: Tensor) -> list[Tensor]:
    """The values of tensors of one shape as rows of one order, without a copy of tensors that lie densely.

    The order is that of memory if all lie with their channels last, else that of indices.
    """
    if all(is_channels_last(tensor) for tensor in tensors):
        tensors = tuple(tensor.permute(0, 2, 3, 1) for tensor in tensors)
    return [tensor.reshape(-1) for tensor in tensors]


def is_channels_last(tensor: Tensor) -> bool:
    """Whether it is (B, C, H, W) and lies densely, its channels innermost."""
    return tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The sum of all products of two tensors of one shape."""
    return torch.dot(*flat(a, b))
