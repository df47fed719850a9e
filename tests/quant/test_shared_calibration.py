"""Two real processes over gloo quantize as one does: the same file to the byte, the same figures."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from in_two_processes import computed_by_two, results_of
from shared_ptq_worker import CASES, FEWER, prepare, quantized

from repq.machine.torch_threads import torch_threads
from repq.quant.calibration.histogram import Histogram
from repq.quant.calibration.observation import ChannelRange
from repq.results import PtqReport

WORKER = Path(__file__).with_name("shared_ptq_worker.py")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, PtqReport]]:
    """What one process makes of each case, and where its files are. It goes first: two would both export the model."""
    folder = tmp_path_factory.mktemp("alone")
    prepare(folder)
    with pytest.MonkeyPatch.context() as patch, torch_threads(1):  # as those: sums hang on how many there are
        for where, name, value in FEWER:
            patch.setattr(where, name, value)
        return folder, {case: quantized(folder, case, folder / f"{case}.safetensors") for case in CASES}


@pytest.fixture(scope="module")
def folder(alone: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return computed_by_two(WORKER, tmp_path_factory.mktemp("ptq"), prepare, CASES)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_quantize_as_one(folder: Path, case: str, alone: tuple[Path, dict[str, PtqReport]]) -> None:
    own, reports = alone
    accuracy = reports[case].accuracy_float
    assert accuracy is not None and accuracy.ap > 0
    assert (folder / f"{case}.safetensors").read_bytes() == (own / f"{case}.safetensors").read_bytes()
    assert results_of(folder, case, PtqReport) == [reports[case]] * 2


def test_the_first_process_alone_writes(folder: Path) -> None:
    plan = folder / "over the budget.safetensors.sensitivity"
    assert [path.name for path in (plan / "journal").iterdir()] == ["sweep-0.jsonl"]
    made = {f"{case}.safetensors" for case in CASES}
    assert {path.name for path in folder.glob("*.safetensors*")} == {"weights.safetensors", plan.name, *made}


values = st.lists(st.floats(-8, 8, width=32), max_size=20)


@given(st.lists(values, min_size=1, max_size=4))
def test_histograms_of_shares_make_that_of_all_values(shares: list[list[float]]) -> None:
    whole, parts = Histogram("x", 16), [Histogram("x", 16) for _ in shares]
    for part, share in zip(parts, shares, strict=True):
        part.add(torch.tensor(share))
        whole.add(torch.tensor(share))
    merged = Histogram.merged(pickle.loads(pickle.dumps(parts)), "x")
    assert merged.same_values(whole)


@given(st.lists(st.lists(st.floats(-8, 8, width=32), min_size=6, max_size=6), min_size=1, max_size=4), st.booleans())
def test_ranges_of_shares_make_that_of_all_values(images: list[list[float]], empty: bool) -> None:
    whole, parts = ChannelRange(), [ChannelRange() for _ in range(len(images) + empty)]
    for part, image in zip(parts, images, strict=False):
        part.add(torch.tensor(image).view(1, 2, 1, 3))
        whole.add(torch.tensor(image).view(1, 2, 1, 3))
    merged = ChannelRange.merged(pickle.loads(pickle.dumps(parts)))
    assert [edge.tolist() for edge in merged.arrays()] == [edge.tolist() for edge in whole.arrays()]
