"""In which type a training computes: float32, or fewer bits for what convolutions read and write (autocast).

Weights, their average, the optimizer, statistics of batch norms, assignment and losses are float32 in any case.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from repq.errors import TrainingError
from repq.machine import cpu
from repq.recipe import TrainConfig

AUTO_ON_CPU = "bfloat16"
"""What ``auto`` is on a CPU that multiplies bfloat16. The AP of full trainings over three seeds holds
(``benchmarks/results/2026-11-26-train-bfloat16.md``)."""

AUTOCAST = {"float16": torch.float16, "bfloat16": torch.bfloat16}
"""The types that autocast brings the inputs of convolutions to, by the name of the precision."""


def settled_precision(precision: str, device: torch.device | str) -> str:
    """The precision that a training has on a device: what ``auto`` means there, and anything else unchanged.

    Raises:
        TrainingError: the device does not compute in it, or only slower than in float32.
    """
    kind = torch.device(device).type
    if precision == "auto":
        if kind == "cuda":
            return "float16"
        return AUTO_ON_CPU if kind == "cpu" and cpu.has_bfloat16() else "float32"
    if precision == "bfloat16" and not _multiplies_bfloat16(kind):
        raise TrainingError(
            "training in bfloat16 needs a processor that multiplies it", found=_described(kind),
            fix="leave precision at auto or float32; bfloat16 wants a CPU with AVX-512 BF16 or AMX, or a GPU from "
            "NVIDIA's Ampere on",
        )  # fmt: skip
    if precision == "float16" and kind != "cuda":
        raise TrainingError(
            "training in float16 needs a GPU", found=f"the device {kind!r}",
            fix="leave precision at auto, or train with --device cuda",
        )  # fmt: skip
    return precision


def with_precision(config: TrainConfig, device: torch.device | str) -> TrainConfig:
    """The settings with the precision that a training has on a device.

    Raises:
        TrainingError: as for `settled_precision`.
    """
    settled: TrainConfig = config.model_copy(update={"precision": settled_precision(config.precision, device)})
    return settled


@contextmanager
def computing_in(precision: str, model: nn.Module, device: torch.device) -> Iterator[None]:
    """The context of the model's forward pass in a settled precision; not for two threads at once."""
    on_cpu = precision == "bfloat16" and device.type == "cpu"
    exempt = [module for module in model.modules() if _slow_in_bfloat16(module)] if on_cpu else []
    for module in exempt:
        vars(module)["forward"] = partial(_forward_in_float32, module)
    try:
        with torch.autocast(device.type, AUTOCAST.get(precision), enabled=precision in AUTOCAST):
            yield
    finally:
        for module in exempt:
            del vars(module)["forward"]


def _slow_in_bfloat16(module: nn.Module) -> bool:
    """Whether oneDNN has no bfloat16 kernel of its own for a gradient: depthwise, strided or of more than 3x3.

    It then takes those of dense convolutions, which need 3 to 60 times the time of float32.
    """
    if not isinstance(module, nn.Conv2d) or module.groups == 1:
        return False
    return max(module.stride) > 1 or max(module.kernel_size) > 3


def _forward_in_float32(module: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        found: Tensor = type(module).forward(module, x.float())
    return found.to(torch.bfloat16)


def gradient_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Keeps gradients in the range of float16; idle in other precisions, bfloat16 having the range of float32."""
    return torch.amp.GradScaler(device.type, enabled=precision == "float16")


def _multiplies_bfloat16(kind: str) -> bool:
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return kind == "cpu" and cpu.has_bfloat16()


def _described(kind: str) -> str:
    if kind == "cuda":
        return torch.cuda.get_device_name()
    if kind == "cpu":
        return f"{cpu.cpu_name()} with {', '.join(cpu.cpu_features()) or 'no instructions that matter'}"
    return f"the device {kind!r}"
