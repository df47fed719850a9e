"""Freed memory is used again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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


THREADS = """
import ctypes, os, re, sys, threading
from repq.memory import few_arenas
limit = max(2, os.cpu_count() // 2)
if sys.argv[1] == "few":
    assert few_arenas()
libc = ctypes.CDLL(None)
gate = threading.Barrier(4 * limit)
def work():
    libc.malloc(1000)
    gate.wait()
threads = [threading.Thread(target=work) for _ in range(4 * limit)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc.fopen.restype, libc.fclose.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]
file = libc.fopen(sys.argv[2].encode(), b"w")
libc.malloc_info(0, file)
libc.fclose(file)
print(len(re.findall("<heap nr", open(sys.argv[2]).read())) <= limit)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_threads_share_arenas(tmp_path: Path) -> None:
    def shared(how: str) -> bool:
        call = [sys.executable, "-c", THREADS, how, str(tmp_path / how)]
        return subprocess.run(call, check=True, capture_output=True, text=True).stdout == "True\n"

    assert shared("few")
    assert not shared("default")


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_no_page_is_mapped_twice() -> None:
    def faults(how: str) -> int:
        return int(subprocess.run([sys.executable, "-c", CODE, how], check=True, capture_output=True, text=True).stdout)

    pages = 10 * (64 << 20) // 4096
    assert faults("kept") < pages // 100
    assert faults("default") > 10 * faults("kept")
