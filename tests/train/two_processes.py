"""A worker script as two processes that know of each other."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

PATIENCE = 300  # seconds


def launch_two(worker: Path, *arguments: object, restarts: int = 0) -> None:
    """Let ``torchrun`` start both, anew where one ends; both have to end well."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, f"--max-restarts={restarts}", str(worker), *map(str, arguments)]
    own_store = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"} if restarts else {}
    subprocess.run(command, check=True, timeout=PATIENCE, env={**os.environ, **own_store})


def start_two(worker: Path, *arguments: object, count: int = 2) -> list[tuple[int, str]]:
    """Start both, or ``count``, without ``torchrun``, which would end all when one dies; status and stderr of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    workers = []
    for rank in range(count):
        settings = {"RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, str(worker), *map(str, arguments)]
        workers.append(subprocess.Popen(command, env={**os.environ, **settings}, stderr=subprocess.PIPE, text=True))
    try:
        messages = [worker.communicate(timeout=PATIENCE)[1] for worker in workers]
    finally:
        for running in workers:
            running.kill()
    return [(running.returncode, message) for running, message in zip(workers, messages, strict=True)]
