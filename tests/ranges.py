"""The versions and extras that setup.cfg promises, each in a fresh environment: ``make test-ranges``.

    python tests/ranges.py                   # every case: install, then run tests that the case can answer for
    python tests/ranges.py --resolve lowest  # only ask pip whether the versions of a case go together

Nothing that takes gigabytes is installed: of the extras that bring CUDA libraries, pip resolves the versions alone.
"""

from __future__ import annotations

import argparse
import configparser
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("pytest", "hypothesis")  # of the extra dev: what the tests themselves need
COMMON = ("tests/test_recipe.py", "tests/test_files.py", "tests/data/test_load_yolo.py", "tests/model", "tests/reparam")
MADE = ("openvino", "ncnn", "report", "train", "docs")  # what `make` installs, and the light extras
BASE = (*COMMON, "tests/train/test_losses.py", "tests/train/test_loop.py", "tests/quant/test_ptq.py", "tests/graph")


HELP = """
from click.testing import CliRunner
from repq.cli import main
for name in main.list_commands(None):
    answer = CliRunner().invoke(main, [name, "--help"])
    assert answer.exit_code == 0, (name, answer.output)
assert CliRunner().invoke(main, ["config", "train"]).exit_code == 0
"""


@dataclass(frozen=True)
class Case:
    """An environment: the dependencies of repq with some extras, and the tests to run in it; none to resolve only.

    Attributes:
        python: its version; None is the one that runs this. Another one gets all but torch, whose CPU build is there
            for one version only, once pip has resolved the whole: every command then says what it takes.
    """

    tests: tuple[str, ...]
    extras: tuple[str, ...] = ()
    lowest: bool = False
    python: str | None = None


CASES = {
    "lowest": Case(
        (*BASE, "tests/test_export.py", "tests/engine", "tests/report"), ("openvino", "report"), lowest=True
    ),
    "none": Case(BASE),
    "openvino": Case(("tests/test_files.py", "tests/engine/test_engines.py"), ("openvino",)),
    "report": Case(("tests/test_files.py", "tests/report"), ("report",)),
    "train": Case(("tests/train/test_board.py",), ("train",)),
    "gpu": Case(("tests/bench/test_gpu.py",), ("gpu",)),
    "bench": Case((), ("bench",)),
    "docs": Case((), ("docs",)),
    "dali": Case((), ("dali",)),
    "tensorrt": Case((), ("tensorrt",)),
    **{f"python{version}": Case((), MADE, python=version) for version in ("3.11", "3.12", "3.13")},
}


def requirements(case: Case) -> list[str]:
    """What setup.cfg asks for, one requirement a line; with ``lowest`` the lowest version of each."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    extras = parser["options.extras_require"]
    lines = parser["options"]["install_requires"].split("\n")
    lines += [line for extra in case.extras for line in extras[extra].split("\n")]
    lines += [line for line in extras["dev"].split("\n") if line.startswith(TOOLS)]
    wanted = [line.strip() for line in lines if line.strip()]
    return [line.replace(">=", "==") for line in wanted] if case.lowest else wanted


def run(command: list[str | Path]) -> bool:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    print("$", *command, flush=True)
    try:
        return subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, check=False).returncode == 0
    except FileNotFoundError:
        return False


def tried(case: Case, folder: Path, resolve_only: bool) -> str:
    """How the case ends, in a few words."""
    named = sys.executable if case.python is None else f"python{case.python}"
    if not run([named, "--version"]):
        return f"skipped: {named} is not here"
    if not run([named, "-m", "venv", folder]):
        return "FAILED to make an environment"
    python = folder / "bin" / "python"
    install: list[str | Path] = [python, "-m", "pip", "install", "--quiet"]
    if not case.lowest:
        install += ["--constraint", ROOT / "constraints.txt"]
    wanted = requirements(case)
    if (resolve_only or not case.tests) and not run([*install, *wanted, "--dry-run"]):
        return "FAILED to resolve"
    if resolve_only or not (case.tests or case.python):
        return "resolves"
    if not run([*install, *(line for line in wanted if case.python is None or not line.startswith("torch"))]):
        return "FAILED to install"
    if not run([python, "-m", "repq", "--help"]):
        return "FAILED to start"
    if case.python is not None:
        return "says what commands take" if run([python, "-c", HELP]) else "FAILED to say what commands take"
    return "passed" if run([python, "-m", "pytest", "-q", *case.tests]) else "FAILED"


def main() -> int:
    parser = argparse.ArgumentParser(description="Try the versions and extras that setup.cfg promises.")
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; all when none is named")
    parser.add_argument("--resolve", action="store_true", help="only ask pip whether the versions go together")
    asked = parser.parse_args()
    ends = {}
    for name in asked.cases or CASES:
        with tempfile.TemporaryDirectory(prefix=f"repq-{name}-") as folder:
            ends[name] = tried(CASES[name], Path(folder), asked.resolve)
        print(f"{name}: {ends[name]}", flush=True)
    print(*(f"{name:12}{end}" for name, end in ends.items()), sep="\n")
    return int(any(end.startswith("FAILED") for end in ends.values()))


if __name__ == "__main__":
    sys.exit(main())
