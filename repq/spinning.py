"""How long OpenMP's threads wait with their core held, for the processes of the command line.

Threads that wait for others spin: 300,000 turns of a loop, some milliseconds, unless told otherwise. Alone on a machine
that saves the time of waking up. Where another process holds one of the cores, the threads that are done spin on theirs
while the last one waits for a core, and a training step takes several times as long. A hundredth of it saves nearly all
of the waking up, and costs little where cores are shared (`benchmarks/spin_count.py`).
"""

from __future__ import annotations

import os

COUNT = 3000
"""Of turns of the waiting loop of GNU's OpenMP, which torch brings; its own default is 300,000."""

VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""What OpenMP reads of the environment, which times on a CPU depend on."""


def spin_shortly() -> None:
    """Let the threads of this process and its children wait so, unless the user has said how they are to wait.

    OpenMP reads it when torch loads: before is when to call this.
    """
    if not any(name in os.environ for name in VARIABLES[1:]):
        os.environ["GOMP_SPINCOUNT"] = str(COUNT)
