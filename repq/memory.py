"""How the process gives memory back to the system, and when Python looks for what is left over."""

from __future__ import annotations

import copy
import ctypes
import gc
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8  # <malloc.h>
_INT_MAX = 2**31 - 1
_MIB = 1 << 20


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed for what is allocated next; says whether that can be done here.

    By default glibc maps every large block anew and unmaps it when it is freed, so each activation and each gradient
    of a network that runs on the CPU is page-faulted in again, and zeroed by the kernel: a fifth of a training step
    (``benchmarks/train_throughput.py``). The setting holds for the whole process (mallopt(3)); its memory then stays
    at its peak until it ends. No value that is computed changes.
    """
    return _taken({_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: _INT_MAX, _M_TOP_PAD: 64 * _MIB})


def few_arenas() -> bool:
    """Let threads share what they freed: at most one arena of glibc's for two cores, and two in all at least.

    By default each thread has an arena of its own, which keeps what it freed from the others: with threads that come
    and go, `keep_freed_memory` then holds nearly twice as much. Says whether it can be set here, which must be before
    the first thread begins.
    """
    return _taken({_M_ARENA_MAX: max(2, (os.cpu_count() or 1) // 2)})


def _taken(settings: Mapping[int, int]) -> bool:
    """Set options of glibc's malloc, where that is what allocates."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None  # None: musl
    taken = [mallopt is not None and mallopt(name, value) for name, value in settings.items()]
    return all(taken)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Keep Python's collector out of the block: a look at all that torch loads takes a fifth of a second."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def copied(value: T) -> T:
    """``copy.deepcopy``; of a model it makes so many objects that the collector would look several times."""
    with no_garbage_collection():
        return copy.deepcopy(value)
