"""Cases that a worker script computes in two processes, for tests that compare each with what one computes alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import BaseModel
from two_processes import all_end_well

from repq.errors import RepqError

Result = TypeVar("Result", bound=BaseModel)


def computed_by_two(worker: Path, folder: Path, prepare: Callable[[Path], None], cases: Iterable[str]) -> Path:
    """The folder, with what both processes made of the cases."""
    prepare(folder)
    all_end_well(worker, folder, *cases)
    return folder


def compute_cases(result: Callable[[Path, str], BaseModel]) -> tuple[Path, str]:
    """The work of such a script, ``WORKER FOLDER CASE…``; returns the folder and this process's rank."""
    torch.set_num_threads(1)
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    try:
        for case in sys.argv[2:]:
            (folder / f"{case}{rank}.json").write_text(result(folder, case).model_dump_json())
    except RepqError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    return folder, rank


def results_of(folder: Path, case: str, kind: type[Result]) -> list[Result]:
    """What each of the two processes got."""
    return [kind.model_validate_json((folder / f"{case}{rank}.json").read_text()) for rank in range(2)]
