"""Python programs as forks of one process that has loaded torch: a program starts in no time, and ends as any other.

Reads a program a line from standard input, as JSON, and answers with a line of exit statuses when all its processes
have ended. What a program's file imports is loaded before the first fork of it.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

import torch  # noqa: F401
from torch import _dynamo  # noqa: F401  (optimizers import it late)


def run(words: list[str], *, name: str) -> None:
    """A script, or with ``-m`` a module, in this process, which counts as the module ``name``."""
    is_module = words[0] == "-m"
    sys.argv = words[is_module:]
    if is_module:
        runpy.run_module(words[1], run_name=name, alter_sys=True)
        return
    sys.path.insert(0, str(Path(words[0]).parent))
    runpy.run_path(words[0], run_name=name)


def become(words: list[str], settings: dict[str, str], folder: str, messages: str) -> None:
    """Run a program in this process, which is a fork, as one that was started with these settings."""
    own = os.open(messages, os.O_WRONLY | os.O_APPEND)
    empty = os.open(os.devnull, os.O_RDONLY)
    for source, end in ((empty, 0), (2, 1), (own, 2)):
        os.dup2(source, end)
    os.environ.clear()
    os.environ.update(settings)
    os.chdir(folder)
    run(words, name="__main__")


def main() -> None:
    loaded: set[str] = set()
    while line := sys.stdin.buffer.readline():
        job: dict[str, Any] = json.loads(line)
        words, kept = job["words"], list(sys.path)
        if words[0] != "-m" and words[0] not in loaded:
            run(words, name="loaded")
            loaded.add(words[0])
            gc.freeze()  # a collection would copy what forks share
        sys.path[:] = kept
        assert len([*Path("/proc/self/task").iterdir()]) == 1, "a fork has the locks of other threads, but not them"
        processes = []
        for settings, messages in zip(job["settings"], job["messages"], strict=True):
            process = os.fork()
            if not process:
                become(words, {**job["environment"], **settings}, job["folder"], messages)
                return
            processes.append(process)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
        os.write(1, json.dumps(statuses).encode() + b"\n")


if __name__ == "__main__":
    main()
