"""One of several processes that sum gradients: ``gradients_worker.py FOLDER WHAT``, started by a test."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from small_training import QUICK, SIZE, interrupted_after, settled, tiny_model
from torch import Tensor, nn

from repq.data import ImageCache, load_dataset
from repq.distributed import wait_for_all
from repq.errors import TrainingError
from repq.identity import hash_tensors
from repq.model import Detector, build
from repq.reparam.repopt import RepScales, extract_scales
from repq.train import Processes, Rates, Updater, joined_processes, train, update
from repq.train.gradients import GradientSum
from repq.train.loader import TrainBatch, training_batches

RATES = Rates(0.01, 0.01, 0.9)
SIZES = (1, 3000, 1 << 30)  # bytes: a bucket for each gradient, several, one
CASES = (
    ("yolov6n_v2", "float32"),
    ("yolov6n_v2", "auto"),  # bfloat16 where this CPU multiplies it
    ("yolov6n_v2_hs", "float32"),
    ("yolov6n_v2_opt", "float32"),
    ("yolox_nano", "float32"),
)
UPDATES = ((0, 1), (1, 4), (4, 5))  # of five batches
CPU = torch.device("cpu")
NETS = 12


class Watched(GradientSum):
    """Notes how many sums had begun when the backward pass ended, and how many have since the start."""

    early = begun = 0

    def _begin(self, tensors: Any) -> None:
        self.begun += 1
        super()._begin(tensors)

    def finish(self, others: Any = ()) -> list[Tensor]:
        self.early = len(self._pending)
        return super().finish(others)


class Net(nn.Module):
    """Random layers, some of them used twice, some never, some in later passes alone."""

    def __init__(self, rng: torch.Generator) -> None:
        super().__init__()

        def drawn(limit: int) -> int:
            return int(torch.randint(limit, (), generator=rng))

        self.width, depth = 1 + drawn(40), 2 + drawn(6)
        self.layers = nn.ModuleList(nn.Linear(self.width, self.width) for _ in range(depth))
        self.order = [drawn(depth) for _ in range(depth)]
        self.later = drawn(depth)
        for parameter in self.parameters():
            nn.init.normal_(parameter, 0, 0.5, generator=rng)

    def forward(self, x: Tensor, number: int) -> Tensor:
        for layer in (*self.order, *([self.later] if number > 1 else [])):
            x = self.layers[layer](x).tanh()
        return x.sum()


def summed(net: Net, ways: GradientSum, parts: list[Tensor], number: int) -> tuple[list[Tensor | None], Tensor]:
    """The gradients of batches, the last of which is summed as it comes; and the sum of another tensor."""
    other = torch.ones(3)
    for part in parts[:-1]:
        net(part, number).backward()
    with ways.beginning():
        net(parts[-1], number).backward()
    ways.finish([other])
    gradients = [None if p.grad is None else p.grad.clone() for p in net.parameters()]
    net.zero_grad(set_to_none=True)
    return gradients, other


def random_nets(folder: Path, processes: Processes) -> None:
    """Sums in buckets are those after the backward pass, and those of one process."""
    torch.set_default_dtype(torch.float64)  # terms of a sum cancel
    began = 0
    for seed in range(NETS):
        rng = torch.Generator().manual_seed(seed)
        net = Net(rng)
        parameters = list(net.parameters())
        size = SIZES[seed % len(SIZES)]
        own, after = Watched(parameters, bucket_bytes=size), GradientSum(parameters, overlap=False)
        for number in range(4):
            batches = 1 + seed % 3
            data = torch.randn(batches, processes.count, 2, net.width, generator=rng)
            parts = list(data[:, processes.rank])
            found, other = summed(net, own, parts, number)
            began += own.early
            wanted, _ = summed(net, after, parts, number)
            for part in data:
                net(part.flatten(0, 1), number).backward()
            assert torch.equal(other, torch.full((3,), float(processes.count)))
            for mine, theirs, parameter in zip(found, wanted, parameters, strict=True):
                assert (mine is None) == (theirs is None) == (parameter.grad is None)
                if mine is None or theirs is None:
                    continue
                torch.testing.assert_close(mine, parameter.grad, rtol=1e-10, atol=1e-10)
                if processes.count == 2:
                    assert torch.equal(mine, theirs)
                else:  # the order in which the values of three or more processes are added up
                    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
            net.zero_grad(set_to_none=True)
    (folder / f"began{processes.rank}.txt").write_text(str(began))


def batches_of(folder: Path, processes: Processes) -> list[TrainBatch]:
    """Five batches of two images, the last of which has one."""
    config = QUICK.model_copy(update={"batch": 2})
    few = load_dataset(folder / "set" / "data.yaml", "train")
    few = few.subset(few.records[:9])
    cache = ImageCache(few.records, SIZE, 1 << 24)
    return list(training_batches(cache, SIZE, config, seed=0, epoch=0, processes=processes))


def made(name: str) -> tuple[Detector, RepScales | None]:
    """A small detector, and the scales that RepOptimizer trains it with."""
    if name == "yolox_nano":
        torch.manual_seed(0)
        return build(name, 2), None
    model = tiny_model(name=name)
    return model, extract_scales(tiny_model(name="yolov6n_v2_hs")) if name.endswith("opt") else None


def detectors(folder: Path, processes: Processes) -> None:
    """Updates of detectors of several families are the same to the bit; the gradients of one are left for the test."""
    batches = batches_of(folder, processes)
    assert [batch.counts for batch in batches].count(False) == (processes.rank == 0)
    for name, precision in CASES:
        hashes = set()
        for size in (None, *(SIZES if (name, precision) == CASES[0] else SIZES[1:2])):
            model, scales = made(name)
            config = QUICK.model_copy(update={"precision": precision})
            updater = Updater(model.train(), config, CPU, scales=scales)
            updater.gradient_sum = Watched(updater.parameters, overlap=size is not None, bucket_bytes=size or 1)
            for start, end in UPDATES:
                updater.update(batches[start:end], RATES)
            hashes.add(hash_tensors(updater.model.state_dict()))
            assert (updater.gradient_sum.early > 0) == (size is not None), (name, size)
            sums = 0 if size is None else len(updater.gradient_sum.buckets) + 1
            assert updater.gradient_sum.begun == sums * len(UPDATES), "the last batch of an update sums, no other"
        assert len(hashes) == 1, name
    for size in SIZES:
        updater = Updater(settled(tiny_model()), QUICK, CPU)
        updater.gradient_sum = GradientSum(updater.parameters, bucket_bytes=size)
        torch.save(list(gradients(updater, batches)), folder / f"gradients{size}-{processes.rank}.pt")


def gradients(updater: Updater, batches: list[TrainBatch]) -> Iterator[list[Tensor]]:
    """Of some updates that take no steps."""
    for start, end in UPDATES:
        updater.add_gradients(batches[start:end])
        yield [parameter.grad.clone() for parameter in updater.parameters if parameter.grad is not None]
        updater.forget_gradients()


def trainings(folder: Path, processes: Processes) -> None:
    """A training whose sums overlap, stopped and gone on with, ends as one whose sums follow the backward pass."""
    sets = [load_dataset(folder / "set" / "data.yaml", split) for split in ("train", "val")]
    ends = []
    for overlap in (True, False):
        update.overlaps = lambda device, overlap=overlap: overlap  # type: ignore[assignment]
        state = folder / f"state{overlap}.safetensors"
        if overlap:
            try:
                train(tiny_model(), *sets, SIZE, QUICK, state_path=state, progress=interrupted_after(7))
            except KeyboardInterrupt:
                wait_for_all()
        outcome = train(tiny_model(), *sets, SIZE, QUICK, state_path=state)
        ends.append((hash_tensors(outcome.model.state_dict()), [row.losses for row in outcome.report.epochs]))
    assert ends[0] == ends[1]


def dying(folder: Path, processes: Processes) -> None:
    """The second process ends in its backward pass."""
    rng = torch.Generator().manual_seed(0)
    net = Net(rng)
    ways = GradientSum(list(net.parameters()), bucket_bytes=1)
    parts = [torch.randn(2, net.width, generator=rng)]
    summed(net, ways, parts, 0)
    if processes.rank == 1:
        used = net.layers[net.order[0]].weight
        used.register_hook(lambda gradient: os._exit(3))
    summed(net, ways, parts, 0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        with joined_processes("cpu") as (processes, _):
            globals()[sys.argv[2]](Path(sys.argv[1]), processes)
    except TrainingError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
