"""NCNN in FP16 and INT8, one thread, in turns: CPU time of the process, which other work on the machine disturbs least.

repq export fused.safetensors --imgsz 640 --fp16 -o float16.onnx
repq export int8.safetensors --imgsz 640 --target ncnn -o int8.onnx
python benchmarks/time_ncnn.py float16.onnx int8.onnx
"""

from __future__ import annotations

import time
from pathlib import Path

import click
import numpy as np

from repq.engine import build
from repq.machine.environment import capture_environment
from repq.recipe import BuildConfig


@click.command(help=__doc__)
@click.argument("graphs", nargs=-1, type=Path)
@click.option("--runs", default=20, show_default=True)
def main(graphs: tuple[Path, ...], runs: int) -> None:
    engines = [build("ncnn", graph, BuildConfig(threads=1)) for graph in graphs]
    images = np.random.default_rng(0).uniform(0, 1, engines[0].manifest.input.shape).astype(np.float32)
    times = np.zeros((len(engines), runs))
    for run in range(-1, runs):  # the first is not counted
        for index, engine in enumerate(engines):
            started = time.process_time()
            engine.infer(images)
            times[index, run] = (time.process_time() - started) * 1e3
    machine = capture_environment()
    click.echo(f"{machine.cpu}, {', '.join(machine.cpu_features)}; load {machine.load_average}\n")
    click.echo("| graph | layers | CPU ms, least | median | over the first (medians) | MB |\n|---|---|---|---|---|---|")
    for graph, engine, row in zip(graphs, engines, times, strict=True):
        found = engine.describe()
        counts = ", ".join(f"{count} {kind}" for kind, count in found.precision_counts().items())
        click.echo(
            f"| {graph.stem} | {counts} | {row.min():.0f} | {np.median(row):.0f} | "
            f"{np.median(row) / np.median(times[0]):.2f} | {found.size_bytes / 1e6:.1f} |"
        )


if __name__ == "__main__":
    main()
