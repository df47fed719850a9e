"""What branches with constant scales mean for the one kernel that replaces them.

A block computes s W3 * x + t W1 * x + D x, with constant scales s and t and trainable W3 (3x3), W1 (1x1) and D (a
factor per channel, for blocks with a bypass). Its merged kernel W' = s W3 + t pad(W1) + pad(diag(D)) has the gradient
G; the branches have s G, t centre(G) and diag(centre(G)).

Source: RepOptimizer (arXiv 2205.15242), section 3.1 and appendix A.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from repq.model import BranchScales, Detector
from repq.model.algebra import Affine, identity_affine, scaled, total
from repq.reparam.repopt.scales import RepScales, matched


def branch_factors(kernel: Tensor, scales: BranchScales) -> tuple[Tensor, ...]:
    """The constant factor that each branch has at each entry of a merged kernel: s; t at the centre; 1 on its diagonal.

    Zero where a branch does not reach. The bypass counts with the factor 1, whatever its scale: the scale is D itself,
    the branch's trainable part.

    Args:
        kernel: (out, in, k, k); the factors have its type and place.
        scales: of its block.

    Returns:
        One tensor per branch, of shapes that broadcast to the kernel's.
    """
    channels, size = kernel.shape[0], kernel.shape[-1]
    middle = size // 2
    point = kernel.new_zeros(channels, 1, size, size)
    point[:, 0, middle, middle] = scales.point.to(kernel)
    factors = (scales.conv.to(kernel).view(-1, 1, 1, 1), point)
    if scales.identity is None:
        return factors
    identity = torch.zeros_like(kernel)
    identity[:, :, middle, middle] = torch.eye(channels, dtype=kernel.dtype, device=kernel.device)
    return (*factors, identity)


def gradient_multiplier(kernel: Tensor, scales: BranchScales) -> Tensor:
    """M = the sum of the squared factors: s^2, + t^2 at the centre, + 1 on the centre's diagonal with a bypass.

    A step of SGD moves W3 by -lr s G, which moves W' by -lr s^2 G, and so on: all together W' by -lr M G.

    Args:
        kernel: (out, in, k, k).
        scales: of its block.

    Returns:
        A tensor like ``kernel``.
    """
    multiplier = torch.zeros_like(kernel)
    for factor in branch_factors(kernel, scales):
        multiplier += factor.square()
    return multiplier


def merged_kernel(conv: Tensor, point: Tensor, scales: BranchScales) -> Tensor:
    """W' = s W3 + t pad(W1) + pad(diag(D)), with D the scale of the bypass.

    Args:
        conv: W3, (out, in, 3, 3).
        point: W1, (out, in, 1, 1).
        scales: of the block.

    Returns:
        Like ``conv``; computed in float64 and rounded once.
    """
    no_bias = conv.new_zeros(scales.channels, dtype=torch.float64)

    def branch(kernel: Tensor, scale: Tensor) -> Affine:
        return scaled(Affine(kernel.detach().double(), no_bias), scale.to(kernel.device))

    branches = [branch(conv, scales.conv), branch(point, scales.point)]
    if scales.identity is not None:
        branches.append(branch(identity_affine(scales.channels, 1, conv.device).weight, scales.identity))
    return total(*branches).weight.to(conv)


def reinitialize(model: Detector, scales: RepScales, seed: int) -> None:
    """Start a freshly built plain model where a branch model with these scales would start; in place.

    W3 is the kernel that the model holds, W1 is drawn as ``nn.Conv2d`` draws its own, from ``seed`` and on the CPU, so
    that every device starts alike. Do it once, before training from scratch, and never to trained weights.

    Raises:
        CheckpointError: the scales do not fit the model; the message names the first block that differs.
    """
    generator = torch.Generator().manual_seed(seed)
    for _, block, own in matched(model, scales):
        kernel = block.conv.weight
        point = torch.empty(*kernel.shape[:2], 1, 1, dtype=kernel.dtype)
        nn.init.kaiming_uniform_(point, a=math.sqrt(5), generator=generator)
        with torch.no_grad():
            kernel.copy_(merged_kernel(kernel, point.to(kernel.device), own))
