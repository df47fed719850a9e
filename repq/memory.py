"""How the process gives memory back to the system."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # <malloc.h>
_INT_MAX = 2**31 - 1
_MIB = 1 << 20


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed for what is allocated next; says whether that can be done here.

    By default glibc maps every large block anew and unmaps it when it is freed, so each activation and each gradient
    of a network that runs on the CPU is page-faulted in again, and zeroed by the kernel: a fifth of a training step
    (``benchmarks/train_throughput.py``). The setting holds for the whole process (mallopt(3)); its memory then stays
    at its peak until it ends. No value that is computed changes.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _INT_MAX), (_M_TOP_PAD, 64 * _MIB))
    taken = [mallopt(name, value) for name, value in settings]
    return all(taken)
