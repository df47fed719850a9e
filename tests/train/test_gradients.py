"""Sums of gradients that begin in the backward pass are those that follow it, in real processes over gloo."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gradients_worker import CPU, SIZES, batches_of, gradients
from small_training import QUICK, settled, tiny_model
from two_processes import all_end_well, start_two

from repq.data import make_demo_set
from repq.recipe import DemoConfig
from repq.train import Processes, Updater
from repq.train.gradients import GradientSum
from repq.train.update import marking_last

WORKER = Path(__file__).with_name("gradients_worker.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gradients")
    make_demo_set(folder / "set", DemoConfig(train_images=10, val_images=4, size=64, classes=2))
    return folder


@pytest.mark.parametrize("count", [2, 3])
def test_sums_of_random_networks(tmp_path: Path, count: int) -> None:
    all_end_well(WORKER, tmp_path, "random_nets", count=count)
    for rank in range(count):
        assert int((tmp_path / f"began{rank}.txt").read_text()) > 40, "sums begin in the backward pass"


def test_updates_of_detectors(folder: Path) -> None:
    all_end_well(WORKER, folder, "detectors")
    alone = batches_of(folder, Processes())
    wanted = list(gradients(Updater(settled(tiny_model()), QUICK, CPU), alone))
    for size in SIZES:
        for rank in range(2):
            found = torch.load(folder / f"gradients{size}-{rank}.pt", weights_only=True)
            for mine, theirs in zip(found, wanted, strict=True):
                for own, other in zip(mine, theirs, strict=True):
                    torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-6)  # another order of sums


def test_a_stopped_training_goes_on(folder: Path) -> None:
    all_end_well(WORKER, folder, "trainings")


def test_a_process_that_ends_in_its_backward_pass_is_told_of(tmp_path: Path) -> None:
    (first, message), (second, _) = start_two(WORKER, tmp_path, "dying")
    assert (first, second) == (2, 3)
    assert "another of the 2 processes of this command ended" in message


def test_alone_nothing_is_summed() -> None:
    layer = torch.nn.Linear(2, 2)
    own = GradientSum(list(layer.parameters()))
    with own.beginning():
        layer(torch.ones(1, 2)).sum().backward()
    other = torch.ones(1)
    assert [gradient.tolist() for gradient in own.finish([other])] == [[[1, 1], [1, 1]], [1, 1]]
    assert other == 1
    assert own.buckets is None


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_the_last_batch_is_known(count: int) -> None:
    marked = list(marking_last(range(count)))  # type: ignore[arg-type]
    assert marked == [(number, number == count - 1) for number in range(count)]
