"""Processes of which one hangs when the others wait for it; started by a test: ``hanging_worker.py RANK HOW``."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from contextlib import nullcontext
from datetime import timedelta

from repq import roll_call
from repq.distributed import OWN_STORE, failing_together, gathered, joined_processes
from repq.errors import DataError, RepqError

PATIENCE = timedelta(seconds=2)


def hang(how: str) -> None:
    if how.startswith("fails"):
        raise DataError("this process found no image")
    if how == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    else:
        time.sleep(2.5 * PATIENCE.total_seconds())


def end_stopped(process: int) -> None:
    """End a process that is stopped once the others have looked for it, as ``torchrun`` would."""
    time.sleep(2 * roll_call.STORE_PATIENCE)
    os.kill(process, signal.SIGKILL)


if __name__ == "__main__":
    hanging, how = int(sys.argv[1]), sys.argv[2]
    roll_call.STORE_PATIENCE = 1.0
    # After one on another host ended, torchrun starts these again without counting it: hosts differ in the count.
    os.environ |= {"TORCHELASTIC_RESTART_COUNT": os.environ["RANK"], OWN_STORE: "1"}
    socket.gethostname = lambda: f"host{os.environ['RANK']}"
    try:
        with joined_processes("cpu", PATIENCE) as (processes, _):
            ids = gathered(os.getpid())
            with failing_together() if how == "fails with all" else nullcontext():
                if processes.rank == hanging:
                    hang(how)
            gathered("now one is not")
    except RepqError as error:
        print(error, file=sys.stderr, flush=True)
        if how == "stopped" and processes.rank == (hanging + 1) % processes.count:
            end_stopped(ids[hanging])
        sys.exit(error.exit_code)
