"""Two real processes over gloo: together they are one process with the joined batch, and one's death is told."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_training import QUICK, SIZE, noisy_oracle, settled, tiny_model
from two_processes import all_end_well, launch_two, start_two

from repq import distributed
from repq.data import DetectionDataset, ImageCache, load_dataset, make_demo_set
from repq.errors import TrainingError
from repq.evaluate import evaluate
from repq.recipe import DemoConfig, EvalConfig
from repq.results import Accuracy, TrainReport
from repq.train import Processes, Updater, train
from repq.train.job import TrainJob
from repq.train.loader import training_batches

WORKER = Path(__file__).with_name("distributed_worker.py")
HANGING = Path(__file__).with_name("hanging_worker.py")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draw(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two processes that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    draw(folder)
    all_end_well(WORKER, folder, -1)
    return folder


def draw(folder: Path) -> None:
    make_demo_set(folder / "set", DemoConfig(train_images=10, val_images=5, size=64, classes=2))


def sets(folder: Path) -> tuple[DetectionDataset, DetectionDataset]:
    path = folder / "set" / "data.yaml"
    return load_dataset(path, "train"), load_dataset(path, "val")


def test_two_processes_are_one_with_the_joined_batch(whole: Path) -> None:
    folder = whole
    train_set, val_set = sets(folder)

    updater = Updater(settled(tiny_model()), QUICK, torch.device("cpu"))
    cache = ImageCache(train_set.records, SIZE, 1 << 24)
    parts = updater.add_gradients([next(training_batches(cache, SIZE, QUICK, seed=0, epoch=0))])
    images = 0
    for rank in range(2):
        count, own_parts, gradients = torch.load(folder / f"gradients{rank}.pt", weights_only=True)
        images += count
        for name, value in parts.items():
            assert own_parts[name].item() == pytest.approx(value.item(), rel=1e-5)
        for parameter, gradient in zip(updater.parameters, gradients, strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)  # another order of sums
    assert images == QUICK.batch

    alone = evaluate(noisy_oracle(val_set), val_set, SIZE, EvalConfig())
    assert 0.05 < alone.ap < 0.95
    for rank in range(2):
        together = Accuracy.model_validate_json((folder / f"accuracy{rank}.json").read_text())
        assert together.ap == pytest.approx(alone.ap, abs=1e-6)
        assert together == alone

    # One image for two processes: the same gradients as alone, and equal weights.
    few, config = train_set.subset(train_set.records[:3]), QUICK.model_copy(update={"batch": 2})
    updater = Updater(settled(tiny_model()), config, torch.device("cpu"))
    few_cache = ImageCache(few.records, SIZE, 1 << 24)
    updater.add_gradients(list(training_batches(few_cache, SIZE, config, seed=0, epoch=0))[1:])
    (found, *first), (others, *second) = (torch.load(folder / f"few{rank}.pt", weights_only=True) for rank in range(2))
    assert first == second
    for parameter, gradient, other in zip(updater.parameters, found, others, strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)
        assert torch.equal(gradient, other)

    assert (folder / "weights0.txt").read_text() == (folder / "weights1.txt").read_text()
    reports = [TrainReport.model_validate_json((folder / f"report{rank}.json").read_text()) for rank in range(2)]
    assert reports[0].accuracy == reports[1].accuracy
    assert [row.losses for row in reports[0].epochs] == [row.losses for row in reports[1].epochs]


def test_a_dead_process_ends_the_others_with_a_word_and_a_state(folder: Path) -> None:
    (first, message), (second, _) = start_two(WORKER, folder, 1)
    assert (first, second) == (2, 3)
    assert "another of the 2 processes of this command ended" in message
    assert "run the same command again" in message
    report = train(tiny_model(), *sets(folder), SIZE, QUICK, state_path=folder / "state.safetensors").report
    assert len(report.epochs) == QUICK.epochs


@pytest.mark.parametrize(("how", "hanging"), [("stopped", 0), ("asleep", 1)])  # the first keeps the store of all
def test_a_hanging_process_ends_the_others_with_a_word_of_which(hanging: int, how: str) -> None:
    ends = start_two(HANGING, hanging, how, count=3)
    if how == "stopped":
        assert ends.pop(hanging)[0] == -signal.SIGKILL
    for status, message in ends:
        assert status == 2
        assert "another of the 3 processes of this command ended or does not answer" in message
        assert "run the same command again" in message
    waited = ends if how == "stopped" else [end for rank, end in enumerate(ends) if rank != hanging]
    for _, message in waited:
        assert re.findall(r"rank \d+ on host\d+", message) == [f"rank {hanging} on host{hanging}"]


@pytest.mark.parametrize("failing", [0, 1])
def test_a_process_that_fails_tells_the_others_why(failing: int) -> None:
    ends = start_two(HANGING, failing, "fails", count=3)
    assert [status for status, _ in ends] == [2, 2, 2]
    assert "processes of this command" not in ends.pop(failing)[1]
    for _, message in ends:
        assert f"found: rank {failing} on host{failing} ended: this process found no image; " in message


def test_what_fails_in_one_share_of_the_work_fails_in_all() -> None:
    assert start_two(HANGING, 1, "fails with all", count=3) == [(2, "this process found no image\n")] * 3


def test_torchrun_starts_again_after_a_dead_process_and_gives_the_same_weights(folder: Path, whole: Path) -> None:
    launch_two(WORKER, folder, 1, restarts=1)
    for rank in range(2):
        assert (folder / f"weights{rank}.txt").read_text() == (whole / "weights0.txt").read_text()
        ends = [TrainReport.model_validate_json((at / f"report{rank}.json").read_text()) for at in (folder, whole)]
        assert ends[0].accuracy == ends[1].accuracy
        assert [row.losses for row in ends[0].epochs] == [row.losses for row in ends[1].epochs]


def test_a_restart_that_cannot_meet_says_what_torchrun_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in str(distributed.left_alone(RuntimeError("refused"), 2))
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    assert "run the same command again" in str(distributed.left_alone(RuntimeError("refused"), 2))


STOPPED = """
import os, signal
from repq.errors import TrainingError
from repq import distributed

distributed.current_processes = lambda: distributed.Processes(0, 2)
before = signal.getsignal(signal.SIGTERM)
try:
    with distributed.told_when_stopped():
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
except TrainingError as error:
    print(error)
assert signal.getsignal(signal.SIGTERM) == before
"""


def test_a_process_that_torchrun_stops_says_why() -> None:
    """In a process of its own: other libraries that are loaded here handle signals as well."""
    run = subprocess.run([sys.executable, "-c", STOPPED], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert re.search(r"another of the 2 processes .* ended", run.stdout)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_shares_join_to_the_batches_of_one_process(folder: Path, count: int) -> None:
    train_set, _ = sets(folder)
    cache = ImageCache(train_set.records, SIZE, 1 << 24)
    whole = list(training_batches(cache, SIZE, QUICK, seed=0, epoch=1))
    shares = [
        list(training_batches(cache, SIZE, QUICK, seed=0, epoch=1, processes=Processes(rank, count)))
        for rank in range(count)
    ]
    for number, batch in enumerate(whole):
        parts = [share[number] for share in shares]
        assert all(len(part.images) for part in parts), "no process is without an image to keep step with"
        images = [image for part in parts if part.counts for image in part.images]
        assert all((own == other).all() for own, other in zip(images, batch.images, strict=True))


def test_more_processes_than_images_are_refused(folder: Path) -> None:
    job = TrainJob(tiny_model(), *sets(folder), SIZE, QUICK, 0, EvalConfig())
    job.check(processes=3)
    with pytest.raises(TrainingError, match="for 5 processes"):
        job.check(processes=5)


OTHER_DISK = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from small_training import QUICK, SIZE, tiny_model
from repq.data import load_dataset
from repq.errors import TrainingError
from repq.train import train

if __name__ == "__main__":
    path = Path(sys.argv[1]) / f"disk{os.environ['RANK']}" / "data.yaml"
    try:
        train(tiny_model(), load_dataset(path, "train"), load_dataset(path, "val"), SIZE, QUICK)
    except TrainingError as error:
        sys.exit(str(error))
"""


def test_a_disk_with_other_labels_is_refused_and_named(tmp_path: Path) -> None:
    for rank in range(2):
        make_demo_set(tmp_path / f"disk{rank}", DemoConfig(train_images=6, val_images=2, size=64, classes=2))
    label = next((tmp_path / "disk1" / "labels" / "train").glob("*.txt"))
    label.write_text(label.read_text() + "1 0.5 0.5 0.1 0.1\n")
    worker = tmp_path / "worker.py"
    worker.write_text(OTHER_DISK)
    for status, message in start_two(worker, tmp_path, Path(__file__).parent):
        assert status == 1
        assert "1 of the 2 processes have other data than the first" in message
        assert f"rank 1 on {socket.gethostname()} has [6, 2] images" in message
