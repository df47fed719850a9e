"""Two real processes over gloo evaluate as one does."""

from __future__ import annotations

from pathlib import Path

import pytest
from in_two_processes import computed_by_two, results_of
from shared_eval_worker import CASES, measured, prepare

from repq.machine.torch_threads import torch_threads
from repq.results import Accuracy

WORKER = Path(__file__).with_name("shared_eval_worker.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return computed_by_two(WORKER, tmp_path_factory.mktemp("eval"), prepare, CASES)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_evaluate_as_one(folder: Path, case: str) -> None:
    with torch_threads(1):  # as those: sums hang on how many there are
        alone = measured(folder, case)
    assert 0 < alone.ap < 1 and alone.images == 7
    assert results_of(folder, case, Accuracy) == [alone, alone]


def test_the_first_process_alone_speaks(folder: Path) -> None:
    assert "1 of 7 images has no label file" in (folder / "said0.txt").read_text()
    assert not (folder / "said1.txt").read_text()
