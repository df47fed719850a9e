"""Training in a precision: float32, or fewer bits for what convolutions read and write (autocast).

Weights, their average, the optimizer, statistics of batch norms, assignment and losses are float32 in any case. Which
precision a training has, `repq.machine.precision` decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MethodType

import torch
from torch import Tensor, nn

AUTOCAST = {"float16": torch.float16, "bfloat16": torch.bfloat16}
"""The types that autocast brings the inputs of convolutions to, by the name of the precision."""


@contextmanager
def computing_in(precision: str, model: nn.Module, device: torch.device) -> Iterator[None]:
    """The context of the model's forward pass in a settled precision; not for two threads at once."""
    on_cpu = precision == "bfloat16" and device.type == "cpu"
    exempt = [module for module in model.modules() if _slow_in_bfloat16(module)] if on_cpu else []
    for module in exempt:
        vars(module)["forward"] = MethodType(_forward_in_float32, module)  # torch.compile knows it again, no partial
    try:
        # Cast weights are not kept: a CUDA graph would go on with those of its recording, and inside an autocast of the
        # caller's every step with those of the first.
        with torch.autocast(device.type, AUTOCAST.get(precision), enabled=precision in AUTOCAST, cache_enabled=False):
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


def scaler_state(scaler: torch.amp.GradScaler) -> dict[str, float]:
    """What changes of a scaler while training; empty where it is idle. The rest is the same in every training."""
    return {name: float(value) for name, value in scaler.state_dict().items() if name in _CHANGING}


def restore_scaler(scaler: torch.amp.GradScaler, state: Mapping[str, float]) -> None:
    """Let a scaler go on from what `scaler_state` gave."""
    changed = {name: kind(state[name]) for name, kind in _CHANGING.items() if name in state}
    if changed:
        scaler.load_state_dict({**scaler.state_dict(), **changed})


_CHANGING: dict[str, type] = {"scale": float, "_growth_tracker": int}
"""The entries of a scaler's state that training changes, and their types: a file holds numbers."""
