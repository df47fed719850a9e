"""Removing single weights: the same shapes, with zeros where the weights were smallest."""

from __future__ import annotations

import copy

import torch

from repq.model import Detector
from repq.model.detector import layers_of


@torch.no_grad()
def without_smallest(model: Detector, share: float) -> Detector:
    """A copy in which this share of all layers' weights is zero, those of least magnitude; biases stay.

    All layers compete (Han et al., "Learning both Weights and Connections", 1506.02626, section 3.1, whose threshold is
    per layer).
    """
    sparse = copy.deepcopy(model)
    weights = [module.weight for _, module in layers_of(sparse)]
    values = torch.cat([weight.flatten() for weight in weights])
    values[values.abs().topk(round(share * len(values)), largest=False).indices] = 0
    for weight, own in zip(weights, values.split([weight.numel() for weight in weights]), strict=True):
        weight.copy_(own.view_as(weight))
    return sparse


@torch.no_grad()
def share_of_zeros(model: Detector) -> float:
    """How many of all layers' weights are zero, 0..1."""
    weights = [module.weight for _, module in layers_of(model)]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)
