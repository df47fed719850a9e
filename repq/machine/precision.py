"""In which precision a training computes on a device; known without torch, since results are found again by it."""

from __future__ import annotations

from repq.errors import TrainingError
from repq.machine import cpu
from repq.recipe import TrainConfig

AUTO = "bfloat16"
"""What ``auto`` is where it is multiplied, on a CPU or a GPU. The AP of full trainings over three seeds holds on both
(``benchmarks/results/2026-11-26-train-bfloat16.md`` and ``2026-11-26-gpu-h200.md``)."""


def settled_precision(precision: str, device: object) -> str:
    """The precision that a training has on a device (torch's, or its name): what ``auto`` means there, or as it is.

    Raises:
        TrainingError: the device does not compute in it, or only slower than in float32.
    """
    kind = str(device).partition(":")[0]
    if precision == "auto":
        otherwise = "float16" if kind == "cuda" else "float32"
        return AUTO if _multiplies_bfloat16(kind) else otherwise
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


def with_precision(config: TrainConfig, device: object) -> TrainConfig:
    """The settings with the precision that a training has on a device.

    Raises:
        TrainingError: as for `settled_precision`.
    """
    settled: TrainConfig = config.model_copy(update={"precision": settled_precision(config.precision, device)})
    return settled


def _multiplies_bfloat16(kind: str) -> bool:
    if kind == "cuda":
        import torch

        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return kind == "cpu" and cpu.has_bfloat16()


def _described(kind: str) -> str:
    if kind == "cuda":
        import torch

        return torch.cuda.get_device_name()
    if kind == "cpu":
        return f"{cpu.cpu_name()} with {', '.join(cpu.cpu_features()) or 'no instructions that matter'}"
    return f"the device {kind!r}"
