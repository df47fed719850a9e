"""How OpenMP's threads wait: shortly in the processes of the command line, or as the user says."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from repq.spinning import COUNT, VARIABLES

SHOWN = """
import atexit, os, sys
atexit.register(lambda: print("torch" in sys.modules, os.environ.get("GOMP_SPINCOUNT")))
sys.argv = ["repq", "--help"]
from repq.__main__ import main
main()
"""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, str(COUNT)),
        ({"GOMP_SPINCOUNT": "77"}, "77"),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, "None"),
        ({"KMP_BLOCKTIME": "1"}, "None"),
        ({"OMP_NUM_THREADS": "1"}, str(COUNT)),
    ],
)
def test_the_command_line_sets_it_before_torch_loads(given: dict[str, str], expected: str) -> None:
    bare = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    ran = subprocess.run([sys.executable, "-c", SHOWN], env=bare | given, check=True, capture_output=True, text=True)
    assert ran.stdout.splitlines()[-1] == f"False {expected}"


@pytest.mark.parametrize(
    ("quota", "given", "threads"), [(2.5, {}, "2"), (None, {}, "None"), (2.5, {"OMP_NUM_THREADS": "3"}, "3")]
)
def test_threads_stay_within_a_quota(quota: float | None, given: dict[str, str], threads: str) -> None:
    """Each thread beyond it would be stopped in turn, with all others waiting for it."""
    code = f"""
import os
os.sched_getaffinity = lambda _: set(range(4))
from repq.machine import cpu
cpu.cpu_quota = lambda: {quota}
from repq import __main__
__main__.threads_within_quota()
print(os.environ.get("OMP_NUM_THREADS"))
"""
    bare = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    ran = subprocess.run([sys.executable, "-c", code], env=bare | given, check=True, capture_output=True, text=True)
    assert ran.stdout == f"{threads}\n"


def test_importing_repq_leaves_the_environment_as_it_is() -> None:
    code = "import os, repq; print(os.environ.get('GOMP_SPINCOUNT'))"
    bare = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    assert subprocess.run([sys.executable, "-c", code], env=bare, capture_output=True, text=True).stdout == "None\n"
