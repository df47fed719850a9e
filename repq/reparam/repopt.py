"""RepOptimizer: train a plain kernel as if it had branches.

A block computes s W3 * x + t W1 * x + D x, with constant scales s and t and trainable W3 (3x3), W1 (1x1) and D (a
factor per channel, for blocks with a bypass). Its merged kernel W' = s W3 + t pad(W1) + pad(diag(D)) has the gradient
G; the branches have s G, t centre(G) and diag(centre(G)). The scales are the product of a hyper-search.

Both optimizers equal, step for step, the plain optimizer of the same name on the branch model with constant scales,
where the learning rate is the same for all branches and the weight decay as well. Decay needs no factor: every branch
shrinks by the same share, so their sum does, and the multiplier applies to the loss's gradient alone. Clipping the norm
of the gradients is the one thing that breaks the equality: the branch model's norm is another one.

Source: RepOptimizer (arXiv 2205.15242), section 3.1 and appendix A, for SGD. `RepAdamW` says why AdamW needs more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from repq.errors import CheckpointError
from repq.layers import LayerId
from repq.model import BranchScales, Detector, Plain, Searched, search_and_target
from repq.model.algebra import Affine, identity_affine, scaled, total
from repq.model.tensorfile import read_tensors, write_tensors

FORMAT = "repq-branch-scales-1"
_ENTRIES = {"scale_conv": "conv", "scale_1x1": "point", "scale_identity": "identity"}


@dataclass(frozen=True, eq=False)
class RepScales:
    """The scales of a whole model, for the plain model of the same layout that RepOptimizer trains.

    Attributes:
        model: name of the hyper-search model they come from.
        blocks: the convolution of the plain model that a block turns into (``backbone.stem.conv``) to its scales, in
            any order.
    """

    model: str
    blocks: Mapping[LayerId, BranchScales]


def has_scales(model: Detector) -> bool:
    """Whether a model is one of a hyper-search, from before fusing."""
    return not model.deploy and any(isinstance(module, Searched) for module in model.modules())


def takes_scales(model: Detector) -> bool:
    """Whether a model is one that RepOptimizer trains, from before fusing."""
    return not model.deploy and any(isinstance(module, Plain) for module in model.modules())


def extract_scales(model: Detector) -> RepScales:
    """Copy the scales out of a trained hyper-search model.

    Raises:
        CheckpointError: the model has no blocks with scales, is fused, or holds scales that are not finite.
    """
    if not has_scales(model):
        raise CheckpointError(
            "there are no branch scales in this model",
            found=_form(model),
            fix=f"give the checkpoint of a hyper-search ({search_and_target(model.spec)[0]}) from before fusing",
        )
    blocks = {
        LayerId(f"{path}.conv"): BranchScales(
            *(value.detach().cpu().clone() for value in block.branch_scales().named().values())
        )
        for path, block in model.named_modules()
        if isinstance(block, Searched)
    }
    for layer, scales in blocks.items():
        if scales.problem:
            raise CheckpointError(
                "the branch scales of this model cannot be used",
                found=f"{layer}: {scales.problem}",
                fix="take an earlier checkpoint of the hyper-search",
            )
    return RepScales(model.spec.name, blocks)


def _form(model: Detector) -> str:
    return model.spec.name + (", fused" if model.deploy else "")


def matched(model: Detector, scales: RepScales) -> Iterator[tuple[LayerId, Plain, BranchScales]]:
    """The plain blocks of a model, each with its scales, in module order. Checks all before it gives the first.

    Raises:
        CheckpointError: the scales do not fit the model; the message names the first block that differs.
    """
    if not takes_scales(model):
        raise CheckpointError(
            "branch scales cannot guide the training of this model",
            found=_form(model),
            fix=f"train {search_and_target(model.spec)[1]}",
        )
    targets = {LayerId(f"{path}.conv"): block for path, block in model.named_modules() if isinstance(block, Plain)}
    for layer, block in targets.items():
        found = _misfit(block, scales.blocks.get(layer))
        if found:
            _refuse(model, scales, layer, found)
    for layer in scales.blocks:
        if layer not in targets:
            _refuse(model, scales, layer, "the model has no such block")
    return ((layer, block, scales.blocks[layer]) for layer, block in targets.items())


def _misfit(block: Plain, scales: BranchScales | None) -> str | None:
    """How the scales differ from what a plain block needs, if they do."""
    if scales is None:
        return "no scales for this block"
    conv = block.branched_conv()
    if scales.channels != conv.out_channels:
        return f"scales of {scales.channels} channels for a block of {conv.out_channels}"
    bypass = conv.in_channels == conv.out_channels and conv.stride == (1, 1)
    if bypass != (scales.identity is not None):
        return "scales without a bypass for a block with one" if bypass else "a bypass scale for a block without one"
    return scales.problem


def _refuse(model: Detector, scales: RepScales, layer: LayerId, found: str) -> NoReturn:
    fix = f"take the scales of a hyper-search of {search_and_target(model.spec)[0]}"
    what = f"the scales of {scales.model} do not fit {model.spec.name}"
    raise CheckpointError(what, found=f"{layer}: {found}", fix=fix)


def save_scales(path: Path, scales: RepScales) -> None:
    """Write scales as safetensors, atomically; ``load_scales`` reads them back bit for bit.

    Raises:
        CheckpointError: the file cannot be written.
    """
    tensors = {
        f"{layer}.{entry}": value.contiguous()
        for layer, block in scales.blocks.items()
        for entry, value in block.named().items()
    }
    try:
        write_tensors(path, tensors, {"format": FORMAT, "model": scales.model})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {path}", found=str(error), fix="check the folder and its space") from None


def load_scales(path: Path) -> RepScales:
    """Read what ``save_scales`` wrote.

    Raises:
        CheckpointError: the file is absent, damaged, or no file of scales.
    """
    entries: dict[LayerId, dict[str, Tensor]] = {}
    try:
        header, tensors = read_tensors(path)
        if header.get("format") != FORMAT:
            raise ValueError(f"the format {header.get('format')!r}, not {FORMAT!r}")
        for key, value in tensors.items():
            layer, _, entry = key.rpartition(".")
            entries.setdefault(LayerId(layer), {})[entry] = value
        blocks = {layer: _block(layer, found) for layer, found in entries.items()}
        broken = [f"{layer}: {block.problem}" for layer, block in blocks.items() if block.problem]
        if broken or not blocks:
            raise ValueError(broken[0] if broken else "no block at all")
        return RepScales(header.get("model", "an unnamed model"), blocks)
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"cannot read branch scales from {path}",
            found=str(error),
            fix="give the scales file that a hyper-search training wrote",
        ) from None


def _block(layer: str, entries: Mapping[str, Tensor]) -> BranchScales:
    """The scales of one block from its entries in a file."""
    if not {"scale_conv", "scale_1x1"} <= entries.keys() <= _ENTRIES.keys():
        raise ValueError(f"{layer} has the entries {', '.join(sorted(entries))}; known are {', '.join(_ENTRIES)}")
    return BranchScales(**{_ENTRIES[entry]: value for entry, value in entries.items()})


# --- kernels ----------------------------------------------------------------------------------------------------------


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
        kernel = block.branched_conv().weight
        point = torch.empty(*kernel.shape[:2], 1, 1, dtype=kernel.dtype)
        nn.init.kaiming_uniform_(point, a=math.sqrt(5), generator=generator)
        with torch.no_grad():
            kernel.copy_(merged_kernel(kernel, point.to(kernel.device), own))


# --- optimizers -------------------------------------------------------------------------------------------------------

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
        learning = [(kernel.grad, own) for kernel, own in self.multipliers.items() if kernel.grad is not None]
        if learning:
            gradients, multipliers = map(list, zip(*learning, strict=True))
            torch._foreach_mul_(gradients, multipliers)
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
    of_kernel = {block.branched_conv().weight: own for _, block, own in matched(model, scales)}
    if kind == "adamw":
        return RepAdamW(groups, of_kernel, lr=learning_rate, betas=(momentum, 0.999))
    return RepSGD(groups, of_kernel, lr=learning_rate, momentum=momentum, nesterov=momentum > 0)
