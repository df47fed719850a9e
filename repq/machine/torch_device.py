"""The device that torch computes on, that float32 is float32 there, and how images lie in its memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from repq.errors import EngineError, reason

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor


def resolve_device(device: str) -> str:
    """Check that torch can use the device, and compute in true float32 from now on; see `without_tf32`.

    Raises:
        EngineError: the device is unknown or not usable here.
    """
    import torch

    device = str(device) if isinstance(device, torch.device) else device
    if not isinstance(device, str):
        what = "this is no device of torch"
        raise EngineError(what, found=repr(device), fix="give 'cpu', 'cuda', or 'cuda:1' for the second GPU")
    try:
        torch.zeros(1, device=device).cpu()  # a device without values, such as meta, gives none back
    except (RuntimeError, AssertionError) as error:
        what = f"torch cannot use the device {device!r}"
        raise EngineError(what, found=reason(error), fix="use --device cpu") from None
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


def layout(device: str) -> torch.memory_format:
    """How images lie in memory where networks infer: on a CPU with the channels last, where convolutions are faster.

    All that a network computes of them follows.
    """
    import torch

    return torch.contiguous_format if device.startswith("cuda") else torch.channels_last


def network_input(images: NDArray[np.float32] | Tensor, device: torch.device | str) -> Tensor:
    """Images as a network takes them to infer: float32 (B, 3, H, W) on the device, in its `layout`."""
    import torch

    values = torch.as_tensor(images, dtype=torch.float32, device=device)
    return values.contiguous(memory_format=layout(str(device)))


def on_device(values: Tensor, device: torch.device) -> Tensor:
    """Values on the device, without waiting for it: a GPU copies those of a CPU from pinned memory in its own time."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)
