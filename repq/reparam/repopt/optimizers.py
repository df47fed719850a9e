"""Optimizers that train one kernel exactly as if its branches were trained.

Both equal, step for step, the plain optimizer of the same name on the branch model with constant scales, where the
learning rate is the same for all branches and the weight decay as well. Decay needs no factor: every branch shrinks by
the same share, so their sum does, and the multiplier applies to the loss's gradient alone.

Clipping the norm of the gradients is the one thing that breaks the equality: the branch model's norm is another one.

Source: RepOptimizer (arXiv 2205.15242), section 3.1 and appendix A, for SGD. `RepAdamW` says why AdamW needs more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from repq.model import BranchScales, Detector
from repq.reparam.repopt.kernels import branch_factors, gradient_multiplier
from repq.reparam.repopt.scales import RepScales, matched

Groups = Iterable[dict[str, Any]]
KernelScales = Mapping[Tensor, BranchScales]


class RepSGD(torch.optim.SGD):
    """SGD with W' <- W' - lr v, v <- momentum v + (M G + decay W'): gradients times ``gradient_multiplier``.

    Momentum, Nesterov's too, is linear in the gradients, so the equality holds with it. The gradients of the kernels
    are multiplied in place at each step.

    Args:
        groups: parameter groups, as for ``torch.optim.SGD``; parameters without scales are trained plainly.
        scales: the scales of each kernel (out, in, k, k) that stands for branches.
        lr, momentum, nesterov: as for ``torch.optim.SGD``.

    The state dict is that of ``torch.optim.SGD``: multipliers follow from the scales and are not part of it.
    """

    def __init__(
        self, groups: Groups, scales: KernelScales, *, lr: float, momentum: float = 0.0, nesterov: bool = False
    ) -> None:
        super().__init__(groups, lr=lr, momentum=momentum, nesterov=nesterov)
        self.multipliers = {kernel: gradient_multiplier(kernel.detach(), own) for kernel, own in scales.items()}

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = _evaluate(closure)
        for kernel, multiplier in self.multipliers.items():
            if kernel.grad is not None:
                kernel.grad.mul_(multiplier)
        super().step()
        return loss


class RepAdamW(torch.optim.AdamW):
    """AdamW whose update is the sum of the branches' updates.

    A multiplied gradient would change nothing here: Adam divides by the root of the mean square, so M cancels. Branches
    keep their factors instead. With m, v the bias-corrected moments of G, a branch of factor a has the moments a m and
    a^2 v and moves by a m / (|a| sqrt(v) + eps), which moves W' by a times that. So

    W' <- (1 - lr decay) W' - lr sum_a a^2 m / (|a| sqrt(v) + eps),

    exactly; for eps far below |a| sqrt(v) the factor is |s| + |t| + 1 instead of M = s^2 + t^2 + 1.

    Args:
        groups: parameter groups, as for ``torch.optim.AdamW``; parameters without scales are trained plainly.
        scales: the scales of each kernel (out, in, k, k) that stands for branches.
        lr, betas: as for ``torch.optim.AdamW``.

    The state dict is that of ``torch.optim.AdamW``: factors follow from the scales and are not part of it.
    """

    def __init__(
        self, groups: Groups, scales: KernelScales, *, lr: float, betas: tuple[float, float] = (0.9, 0.999)
    ) -> None:
        super().__init__(groups, lr=lr, betas=betas)
        self.factors = {kernel: branch_factors(kernel.detach(), own) for kernel, own in scales.items()}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = _evaluate(closure)
        before = {kernel: kernel.clone() for kernel in self.factors if kernel.grad is not None}
        super().step()  # moves the moments on; its own update of these kernels is replaced
        for group in self.param_groups:
            for kernel in group["params"]:
                if kernel in before:
                    decayed = before[kernel].mul_(1 - group["lr"] * group["weight_decay"])
                    update = _adam_update(self.state[kernel], group, self.factors[kernel])
                    kernel.copy_(decayed.sub_(update, alpha=group["lr"]))
        return loss


def _adam_update(state: Mapping[str, Tensor], group: Mapping[str, Any], factors: Iterable[Tensor]) -> Tensor:
    """The sum of a^2 m / (|a| sqrt(v) + eps) over the branches."""
    steps = float(state["step"])  # a CPU tensor: no wait for the device
    mean = state["exp_avg"] / (1 - group["betas"][0] ** steps)
    root = (state["exp_avg_sq"] / (1 - group["betas"][1] ** steps)).sqrt_()
    update = torch.zeros_like(mean)
    for factor in factors:
        update += factor.square() * mean / (factor.abs() * root + group["eps"])
    return update


def _evaluate(closure: Callable[[], float] | None) -> float | None:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def build_rep_optimizer(
    model: Detector,
    scales: RepScales,
    groups: Groups,
    *,
    kind: Literal["sgd", "adamw"] = "sgd",
    learning_rate: float,
    momentum: float,
) -> RepSGD | RepAdamW:
    """The optimizer that trains a plain model with the scales of a hyper-search.

    Build it after the model has moved to its device and type.

    Args:
        groups: the model's parameters in groups with a ``weight_decay`` each; all kernels in groups of equal rates.
        kind: SGD with Nesterov momentum, or AdamW.
        momentum: of SGD, or AdamW's first beta.

    Raises:
        CheckpointError: the scales do not fit the model; the message names the first block that differs.
    """
    of_kernel = {block.conv.weight: own for _, block, own in matched(model, scales)}
    if kind == "adamw":
        return RepAdamW(groups, of_kernel, lr=learning_rate, betas=(momentum, 0.999))
    return RepSGD(groups, of_kernel, lr=learning_rate, momentum=momentum, nesterov=momentum > 0)
