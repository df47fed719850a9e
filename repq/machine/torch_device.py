"""The device that torch computes on, and that float32 is float32 there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from repq.errors import EngineError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def resolve_device(device: str) -> str:
    """Check that torch can use the device, and compute in true float32 from now on; see `without_tf32`.

    Raises:
        EngineError: the device is unknown or not usable here.
    """
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise EngineError(f"torch cannot use the device {device!r}", found=first, fix="use --device cpu") from None
    without_tf32()
    return device


def without_tf32() -> None:
    """Let no convolution or matrix product on a GPU round its float32 inputs to TF32, for the whole process.

    By torch's default, convolutions do, from Ampere on. TF32 has a mantissa of 10 bits: values in fake quantization
    would no longer lie on their integers, and a float baseline would not be one.
    """
    import torch

    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def on_device(values: Tensor, device: torch.device) -> Tensor:
    """Values on the device, without waiting for it: a GPU copies those of a CPU from pinned memory in its own time."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)
