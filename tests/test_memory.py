"""Freed memory is used again."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import resource, sys
from repq.memory import keep_freed_memory
kept = sys.argv[1] == "kept" and keep_freed_memory()
import ctypes
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def touch():
    block = libc.malloc(64 << 20)
    ctypes.memset(block, 1, 64 << 20)
    libc.free(block)
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_no_page_is_mapped_twice() -> None:
    def faults(how: str) -> int:
        return int(subprocess.run([sys.executable, "-c", CODE, how], check=True, capture_output=True, text=True).stdout)

    pages = 10 * (64 << 20) // 4096
    assert faults("kept") < pages // 100
    assert faults("default") > 10 * faults("kept")
