"""Milliseconds of one update on a GPU, the average of the weights included, on batches that are drawn already.

With CUDA graphs and without, in every precision, in turns; then what one step is made of: the time of its kernels, and
how many the CPU launches.

    python benchmarks/train_step.py                                        # YOLOv6-N v2, 256x256, batch 16
    python benchmarks/train_step.py --model yolov6s --imgsz 640 --batch 16
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from itertools import product
from pathlib import Path

import click
import torch
from torch.autograd.profiler_util import FunctionEventAvg

from repq.data import ImageCache, load_dataset, make_demo_set
from repq.files import write_text
from repq.machine.environment import capture_environment
from repq.machine.torch_device import without_tf32
from repq.model import build
from repq.recipe import DemoConfig, TrainConfig
from repq.train import MovingAverage, Rates, Updater
from repq.train.loader import TrainBatch, training_batches
from repq.train.trainer import moved

RATES = Rates(0.001, 0.001, 0.9)
FIRST = 8
"""Steps that do not count: kernels are chosen and graphs recorded in them."""


class Contender:
    def __init__(self, model: str, classes: int, config: TrainConfig) -> None:
        torch.manual_seed(0)
        device = torch.device("cuda")
        self.updater = Updater(moved(build(model, classes), device).train(), config, device)
        self.average = MovingAverage(self.updater.model, 0.99, 100)
        self.ms: list[float] = []

    def step(self, batch: TrainBatch) -> float:
        torch.cuda.synchronize()
        started = time.perf_counter()
        self.updater.update([batch], RATES)
        self.average.update(self.updater.model)
        torch.cuda.synchronize()
        return 1000 * (time.perf_counter() - started)

    def parts(self, batches: list[TrainBatch]) -> dict[str, float]:
        """Of one step: milliseconds of kernels on the device, and launches of kernels and graphs by the CPU."""
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as seen:
            for batch in batches:
                self.step(batch)
        rows: list[FunctionEventAvg] = list(seen.key_averages())
        kernels = sum(row.self_device_time_total for row in rows if row.device_type == torch.autograd.DeviceType.CUDA)
        launches = sum(row.count for row in rows if "Launch" in row.key)
        return {"device_ms": kernels / 1000 / len(batches), "launches": launches / len(batches)}


@click.command(help=__doc__)
@click.option("--model", default="yolov6n_v2", show_default=True)
@click.option("--imgsz", default=256, show_default=True)
@click.option("--batch", default=16, show_default=True)
@click.option("--steps", default=20, show_default=True)
@click.option("--precision", "precisions", multiple=True, default=("float16", "bfloat16"), show_default=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Write the figures as JSON.")
def main(model: str, imgsz: int, batch: int, steps: int, precisions: tuple[str, ...], out: Path | None) -> None:
    without_tf32()
    config, size = TrainConfig(batch=batch, workers=0), (imgsz, imgsz)
    with tempfile.TemporaryDirectory() as folder:
        drawn = make_demo_set(Path(folder) / "demo", DemoConfig(train_images=2 * batch, size=imgsz))
        dataset = load_dataset(drawn, "train")
        cache = ImageCache(dataset.records, size, config.cache_mib << 20)
        batches = list(training_batches(cache, size, config, seed=0, epoch=0))
    runners = {
        (precision, graphs): Contender(
            model, dataset.num_classes, config.model_copy(update={"precision": precision, "cuda_graphs": graphs})
        )
        for precision, graphs in product(precisions, (True, False))
    }
    for number in range(FIRST + steps):
        for runner in runners.values():
            taken = runner.step(batches[number % len(batches)])
            if number >= FIRST:
                runner.ms.append(taken)
    click.echo(f"{torch.cuda.get_device_name()}, {model}, {imgsz}x{imgsz}, batch {batch}, {steps} steps")
    rows = []
    for (precision, graphs), runner in runners.items():
        row = {"precision": precision, "graphs": graphs, "median_ms": statistics.median(runner.ms), "ms": runner.ms}
        rows.append({**row, **runner.parts(batches)})
        title = f"{precision}, {'CUDA graphs' if graphs else 'kernel by kernel'}"
        click.echo(f"{title:28} {rows[-1]['median_ms']:7.2f} ms  {rows[-1]['device_ms']:7.2f} ms of kernels  "
                   f"{rows[-1]['launches']:5.0f} launches")  # fmt: skip
    if out is not None:
        figures = {"model": model, "imgsz": imgsz, "batch": batch, "rows": rows}
        write_text(out, json.dumps({**figures, "environment": capture_environment().values()}, indent=1))


if __name__ == "__main__":
    main()
