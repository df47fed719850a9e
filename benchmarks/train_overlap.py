"""Seconds of an update of two processes or more, with gradients summed after the backward pass and during it.

Both ways update the same models in the same processes, in turns, so that a busy machine disturbs both alike. A round is
some updates of one way, then of the other; which way begins changes from round to round. Images are random.

    torchrun --nproc-per-node 2 benchmarks/train_overlap.py --model yolov6n_v2 --imgsz 256
    torchrun --nproc-per-node 2 benchmarks/train_overlap.py --model yolov6s_v2 --imgsz 128 --bucket-mib 25
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

import click
import numpy as np
import torch

from repq.distributed import Processes, copy_from_first, wait_for_all
from repq.files import write_text
from repq.machine.environment import capture_environment
from repq.memory import keep_freed_memory
from repq.model import build
from repq.recipe import TrainConfig
from repq.train import Rates, Updater, joined_processes
from repq.train.gradients import GradientSum
from repq.train.loader import TrainBatch
from repq.train.trainer import moved

RATES = Rates(0.001, 0.001, 0.9)
AFTER = "after"


def drawn_batch(images: int, imgsz: int, seed: int) -> TrainBatch:
    """Noise with one object an image."""
    rng = np.random.default_rng(seed)
    rows = np.array([[0, imgsz / 4, imgsz / 4, imgsz / 2, imgsz / 2]], np.float32)
    return TrainBatch(rng.integers(0, 256, (images, imgsz, imgsz, 3), np.uint8), (rows,) * images)


def seconds_of(updater: Updater, batch: TrainBatch, updates: int) -> float:
    """Median seconds of an update."""
    times = []
    for _ in range(updates):
        started = time.perf_counter()
        float(updater.update([batch], RATES)["total"])
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def measure(
    updater: Updater, ways: dict[str, GradientSum], batch: TrainBatch, updates: int, rounds: int
) -> dict[str, list[float]]:
    """By way, the median seconds of an update of each round; the first round warms up."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(rounds + 1):
        for name in names if number % 2 else reversed(names):
            updater.gradient_sum = ways[name]
            wait_for_all()
            seconds = seconds_of(updater, batch, updates)
            if number:
                found[name].append(seconds)
    return found


@click.command(help=__doc__)
@click.option("--model", default="yolov6n_v2", show_default=True)
@click.option("--imgsz", default=256, show_default=True)
@click.option("--batch", default=16, show_default=True, help="Images of all processes together.")
@click.option("--updates", default=3, show_default=True, help="Of a round, for each way.")
@click.option("--rounds", default=5, show_default=True)
@click.option(
    "--bucket-mib", "sizes", multiple=True, type=float, default=(4.0,), show_default=True, help="Several: each."
)
@click.option("--threads", default=1, show_default=True, help="Threads of torch in each process.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--cuda-graphs/--no-cuda-graphs", "graphs", default=False, show_default=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Write the figures as JSON.")
def main(
    model: str, imgsz: int, batch: int, updates: int, rounds: int, sizes: tuple[float, ...], threads: int, device: str,
    graphs: bool, out: Path | None,
) -> None:  # fmt: skip
    torch.set_num_threads(threads)
    keep_freed_memory()
    config = TrainConfig(model=model, batch=batch, cuda_graphs=graphs, precision="float32")
    with joined_processes(device) as (processes, own):
        torch.manual_seed(0)
        detector = moved(build(model, 3), own).train()
        copy_from_first(detector)
        updater = Updater(detector, config, own)
        ways = {AFTER: GradientSum(updater.parameters, overlap=False)}
        ways |= {
            f"during, {size:g} MiB": GradientSum(updater.parameters, bucket_bytes=int(size * 2**20)) for size in sizes
        }
        images = drawn_batch(len(processes.share(range(batch))), imgsz, processes.rank)
        found = measure(updater, ways, images, updates, rounds)
        if processes.is_first:
            say(found, model, imgsz, batch, threads, device, processes, out)


def say(
    found: dict[str, list[float]], model: str, imgsz: int, batch: int, threads: int, device: str, processes: Processes,
    out: Path | None,
) -> None:  # fmt: skip
    click.echo(
        f"{model}, {imgsz}x{imgsz}, batch {batch}, {processes.count} processes, {threads} threads each, {device}"
    )
    ratios = {}
    for name, times in found.items():
        ratios[name] = statistics.median(own / other for own, other in zip(times, found[AFTER], strict=True))
        rows = ", ".join(f"{1000 * value:.0f}" for value in times)
        median = 1000 * statistics.median(times)
        click.echo(f"{name:20} {median:8.1f} ms, {ratios[name]:.3f} of {AFTER}, median of rounds ({rows})")
    if out is not None:
        figures = {
            "model": model, "imgsz": imgsz, "batch": batch, "processes": processes.count, "threads": threads,
            "device": device, "seconds": found, "ratio_median": ratios, "environment": capture_environment().values(),
        }  # fmt: skip
        write_text(out, json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
