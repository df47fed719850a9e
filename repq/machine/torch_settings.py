"""torch as this package computes with it, whatever a program that calls it has set for itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import Any

_LOCK = Lock()
_CALLERS: list[Any] = []
"""The caller's default type, once for every block that is entered: the type is one for all threads."""


@contextmanager
def usual_torch() -> Iterator[None]:
    """In the block, which may be a function that this decorates, torch works as it does when it is loaded.

    New tensors are float32 and on the CPU, gradients can be computed, nothing is cast by itself. After the block all is
    as the caller had it. Where nobody has loaded torch, nothing was set, and it is not loaded for this.
    """
    if "torch" not in sys.modules:
        yield
        return
    import torch  # which waits for a thread that is loading it

    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if not torch.is_grad_enabled():
            stack.enter_context(torch.enable_grad())
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(_float32(torch))
        yield


@contextmanager
def _float32(torch: Any) -> Iterator[None]:
    with _LOCK:
        _CALLERS.append(_CALLERS[0] if _CALLERS else torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        with _LOCK:
            before = _CALLERS.pop()
            if not _CALLERS:
                torch.set_default_dtype(before)
