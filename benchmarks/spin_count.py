"""A training step with OpenMP's threads that wait in different ways, alone and beside processes that hold cores.

Every way has a process of its own, since OpenMP reads it once. They take their steps in turns, first alone and then
with --busy processes that do nothing but count, so that whatever else the machine does disturbs all alike; a process
whose turn it is not sleeps. Ratios are to ``torch's own``, of the same round. With --recipe a whole run is timed too,
in turns, each in a fresh folder.

    python benchmarks/spin_count.py -o benchmarks/results/DATE-spin-count.json
    python benchmarks/spin_count.py --recipe recipes/quickstart.yaml
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import click

from repq.spinning import COUNT, VARIABLES

WAYS: dict[str, dict[str, str]] = {
    "torch's own": {},
    "1000 turns": {"GOMP_SPINCOUNT": "1000"},
    f"{COUNT} turns (repq's)": {"GOMP_SPINCOUNT": str(COUNT)},
    "10000 turns": {"GOMP_SPINCOUNT": "10000"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
}
OWN = next(iter(WAYS))


@contextmanager
def environment(way: str) -> Iterator[None]:
    """Processes that start here wait in this way."""
    before = {name: os.environ.pop(name) for name in VARIABLES[1:] if name in os.environ}
    os.environ.update(WAYS[way])
    try:
        yield
    finally:
        for name in WAYS[way]:
            del os.environ[name]
        os.environ.update(before)


def serve(folder: Path, imgsz: int, batch: int, steps: int, line: Connection) -> None:
    """Milliseconds of a step, for each time that it is asked for."""
    from train_throughput import Arrangement, Job, Settings

    from repq.recipe import TrainConfig

    config = TrainConfig(batch=batch, mosaic=1.0)
    own = Arrangement(Job("yolov6n_v2", folder, imgsz, config, 2, steps), Settings())
    for _ in iter(line.recv, None):
        line.send(1000 * batch / own.images_per_s())


def count() -> None:
    """Hold a core for as long as the process that asks for it lives."""
    parent = os.getppid()
    while os.getppid() == parent:
        pass


@contextmanager
def busy(processes: int) -> Iterator[None]:
    started = [multiprocessing.get_context("spawn").Process(target=count, daemon=True) for _ in range(processes)]
    for process in started:
        process.start()
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.join()


def steps_in_turns(folder: Path, imgsz: int, batch: int, steps: int, rounds: int, held: int) -> dict[str, dict]:
    """Milliseconds of a step by situation, way and round."""
    spawn, lines = multiprocessing.get_context("spawn"), {}
    with ExitStack() as stack:
        for way in WAYS:
            with environment(way):
                lines[way], theirs = spawn.Pipe()
                process = spawn.Process(target=serve, args=(folder, imgsz, batch, steps, theirs))
                process.start()
            stack.callback(process.join)
            stack.callback(lines[way].send, None)

        def asked(way: str) -> float:
            lines[way].send(True)
            found: float = lines[way].recv()
            return found

        found: dict[str, dict] = {}
        for situation, processes in (("alone", 0), (f"beside {held} busy", held)):
            with busy(processes):
                for way in WAYS:
                    asked(way)  # warms up
                orders = [list(WAYS), list(WAYS)[::-1]]
                turns = [{way: asked(way) for way in orders[number % 2]} for number in range(rounds)]
            found[situation] = {way: [turn[way] for turn in turns] for way in WAYS}
    return found


def runs_in_turns(recipe: Path, folder: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of a whole run, by way and round."""
    found: dict[str, list[float]] = {way: [] for way in (OWN, f"{COUNT} turns (repq's)")}
    for number in range(rounds):
        for way, times in found.items():
            given = WAYS[way] or {"GOMP_SPINCOUNT": "300000"}  # OpenMP's own count; the command leaves what is given
            line = [
                sys.executable,
                "-m",
                "repq",
                "run",
                str(recipe),
                "--work",
                str(folder / f"{number}-{len(times)}-{way[:4]}"),
            ]
            started = time.perf_counter()
            subprocess.run(line, env={**os.environ, **given}, check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - started)
    return found


@click.command(help=__doc__)
@click.option("--imgsz", default=256, show_default=True)
@click.option("--batch", default=16, show_default=True)
@click.option("--steps", default=3, show_default=True, help="Steps of a turn.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--busy", "held", default=1, show_default=True, help="Processes that hold a core.")
@click.option("--recipe", type=click.Path(path_type=Path, exists=True), help="Time whole runs of it too.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Write the figures as JSON.")
def main(
    imgsz: int, batch: int, steps: int, rounds: int, held: int, recipe: Path | None, out: Path | None
) -> None:  # fmt: skip
    from repq.data import make_demo_set
    from repq.files import write_text
    from repq.machine.environment import capture_environment
    from repq.recipe import DemoConfig

    load = [round(value, 1) for value in os.getloadavg()]
    with tempfile.TemporaryDirectory() as folder:
        data = make_demo_set(Path(folder) / "demo", DemoConfig(train_images=64, size=480))
        found = steps_in_turns(data, imgsz, batch, steps, rounds, held)
        runs = {} if recipe is None else runs_in_turns(recipe, Path(folder), rounds)
    click.echo(
        f"yolov6n_v2, {imgsz}x{imgsz}, batch {batch}, 2 threads, {steps} steps a turn, {rounds} rounds, "
        f"load before: {load}"
    )
    rows = {**found, **({"whole run (s)": runs} if runs else {})}
    ratios: dict[str, dict[str, float]] = {}
    for situation, ways in rows.items():
        ratios[situation] = {
            way: statistics.median(one / own for one, own in zip(times, ways[OWN], strict=True))
            for way, times in ways.items()
        }
        for way, times in ways.items():
            turns = ", ".join(f"{one:.0f}" for one in times)
            click.echo(
                f"{situation:16} {way:20} {statistics.median(times):8.0f}  {ratios[situation][way]:.2f}  ({turns})"
            )
    if out is not None:
        figures = {
            "model": "yolov6n_v2", "imgsz": imgsz, "batch": batch, "threads": 2, "busy": held, "load_before": load,
            "load_after": [round(value, 1) for value in os.getloadavg()], "step_ms": found, "run_s": runs,
            "ratio_medians": ratios, "environment": capture_environment().values(),
        }  # fmt: skip
        write_text(out, json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
