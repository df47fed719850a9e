"""A worker script as two processes that know of each other."""

from __future__ import annotations

import atexit
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

PATIENCE = 300  # seconds
FORKS = Path(__file__).with_name("process_forks.py")


def launch_two(worker: Path, *arguments: object, restarts: int = 0) -> None:
    """Let ``torchrun`` start both, anew where one ends; both have to end well."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, f"--max-restarts={restarts}", str(worker), *map(str, arguments)]
    own_store = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"} if restarts else {}
    ((status, message),) = _ended(command, [own_store])
    assert status == 0, message


def start_two(worker: Path, *arguments: object, count: int = 2) -> list[tuple[int, str]]:
    """Start both, or ``count``, without ``torchrun``, which would end all when one dies; status and stderr of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return _ended([str(worker), *map(str, arguments)], [{"RANK": str(rank), **group} for rank in range(count)])


def all_end_well(worker: Path, *arguments: object, count: int = 2) -> None:
    """`start_two`, and every process has to end without an error."""
    for status, message in start_two(worker, *arguments, count=count):
        assert status == 0, message


def _ended(words: list[str], settings: list[dict[str, str]]) -> list[tuple[int, str]]:
    """Status and stderr of one program's processes, one for each of the settings."""
    forks = _forks()
    assert forks.stdin is not None and forks.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        messages = [Path(folder, str(number)) for number in range(len(settings))]
        for path in messages:
            path.touch()
        job = {
            "words": words,
            "folder": str(Path.cwd()),
            "environment": dict(os.environ),
            "settings": settings,
            "messages": list(map(str, messages)),
        }
        statuses = None
        try:
            forks.stdin.write(json.dumps(job).encode() + b"\n")
            if select.select([forks.stdout], [], [], PATIENCE)[0]:
                statuses = json.loads(forks.stdout.readline() or "null")
        finally:
            if statuses is None:
                os.killpg(forks.pid, signal.SIGKILL)
                forks.wait()
                _forks.cache_clear()
        texts = [path.read_text() for path in messages]
    assert statuses is not None, "\n".join(["the processes do not end, or their files cannot be loaded", *texts])
    return list(zip(statuses, texts, strict=True))


@functools.cache
def _forks() -> subprocess.Popen[bytes]:
    """What forks processes that have loaded torch, which takes longer than most that tests do with it."""
    ends = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}
    forks = subprocess.Popen([sys.executable, str(FORKS)], start_new_session=True, **ends)  # type: ignore[call-overload]
    atexit.register(_end, forks)
    return forks


def _end(forks: subprocess.Popen[bytes]) -> None:
    assert forks.stdin is not None
    forks.stdin.close()
    forks.wait(PATIENCE)
