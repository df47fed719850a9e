"""Memory that a model needs: the peak of a process of its own that runs it and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from repq.errors import EngineError, reason

_RUNS = 3
_PATIENCE_S = 600


def footprint(model: Path, imgsz: tuple[int, int], batch: int, threads: int) -> int:
    """Highest resident memory, in bytes, of a process that opens a model and runs it on noise.

    Args:
        model: an engine's folder, or a checkpoint.

    Raises:
        EngineError: the process failed: the batch needs more memory than there is, or the model does not take it.
    """
    command = [sys.executable, "-P", "-m", __name__, str(model), *map(str, (*imgsz, batch, threads))]
    # It finds modules where this process does: with -m alone also in the working folder, in whatever lies there.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False, env=environment
        )
    except subprocess.TimeoutExpired:
        raise EngineError(f"no answer after {_PATIENCE_S} s") from None
    if ended.returncode != 0:
        lines = ended.stderr.strip().splitlines()
        raise EngineError(lines[-1] if lines else f"its process was ended (code {ended.returncode}): out of memory?")
    peak: int = json.loads(ended.stdout.splitlines()[-1])
    return peak


def peak_bytes() -> int:
    """Highest resident memory of this process so far. (Linux hands getrusage's figure down from parent to child.)"""
    status = Path("/proc/self/status")
    if status.is_file():
        return 1024 * int(next(row for row in status.read_text().splitlines() if row.startswith("VmHWM")).split()[1])
    import psutil

    found = psutil.Process().memory_info()
    return int(getattr(found, "peak_wset", found.rss))


def _run(model: Path, height: int, width: int, batch: int, threads: int) -> int:
    import numpy as np

    images = np.random.default_rng(0).random((batch, 3, height, width), dtype=np.float32)
    if model.is_dir():
        from repq.engine import load as load_engine

        engine = load_engine(model, threads=threads)
        for _ in range(_RUNS):
            engine.infer(images)
    else:
        from repq.api.opening import load

        opened = load(model, threads=threads)
        for _ in range(_RUNS):
            opened.infer(images)
    return peak_bytes()


if __name__ == "__main__":
    try:
        print(json.dumps(_run(Path(sys.argv[1]), *map(int, sys.argv[2:]))))
    except Exception as error:
        sys.exit(reason(error))
