"""`repq predict` over images and over a video, against the same engine that is given ready input and nothing else.

The three take turns in one process, so that whatever else the machine does disturbs all alike; ratios are to the engine
of the same round. The cost of each part of the way, in milliseconds of one core, says what bounds them: where the
engine uses all cores, no arrangement gives more than ``engine / (engine + everything else)`` of its own throughput.

    python benchmarks/predict_throughput.py ENGINE IMAGES -o benchmarks/results/DATE-predict-throughput.json
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import cv2

from repq.api.opening import load
from repq.api.service import finder_of
from repq.data import read_image
from repq.files import write_text
from repq.machine.environment import capture_environment
from repq.predict import open_sources, predict
from repq.predict.outputs import as_file
from repq.report.boxes import draw_boxes


def written_video(paths: list[Path], out: Path) -> Path:
    """The images as frames of one size."""
    height, width = read_image(paths[0]).shape[:2]
    writer = cv2.VideoWriter(str(out), cv2.VideoWriter.fourcc(*"mp4v"), 25, (width, height))
    for path in paths:
        writer.write(cv2.resize(read_image(path, bgr=True), (width, height)))
    writer.release()
    return out


def parts(model: Any, paths: list[Path], video: Path, folder: Path) -> dict[str, float]:
    """Median milliseconds of one core for each part; those of the engine are of all its threads."""
    finder, times = finder_of(model, model.size(None), model.thresholds), dict[str, list[float]]()

    def note(name: str, work: Callable[[], Any], clock: Callable[[], float] = time.thread_time) -> Any:
        begin = clock()
        result = work()
        times.setdefault(name, []).append(1000 * (clock() - begin))
        return result

    writer = cv2.VideoWriter(str(folder / "parts.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 25, (640, 480))
    capture = cv2.VideoCapture(str(video))
    for path in paths:
        image = note("decode an image", lambda path=path: read_image(path))
        note("decode a frame", capture.read, time.process_time)
        ready = note("letterbox", lambda image=image: finder.take([image]))
        output = note("engine", lambda ready=ready: finder.infer(ready), time.process_time)
        (boxes,) = note("suppress", lambda output=output, ready=ready: finder.finish(output, ready))
        canvas = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        drawn = note("draw", lambda canvas=canvas, boxes=boxes: draw_boxes(canvas, boxes, model.class_names))
        note("encode an image", lambda drawn=drawn: as_file(drawn, "a.jpg"))
        frame = cv2.resize(drawn, (640, 480))
        note("encode a frame of 640x480", lambda frame=frame: writer.write(frame), time.process_time)
    writer.release()
    return {name: statistics.median(found) for name, found in times.items()}


@click.command(help=__doc__)
@click.argument("engine", type=click.Path(path_type=Path, exists=True))
@click.argument("images", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--count", default=64, show_default=True, help="Images of a round.")
@click.option("--rounds", default=5, show_default=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Write the figures as JSON.")
def main(engine: Path, images: Path, count: int, rounds: int, out: Path | None) -> None:
    model, paths = load(engine), sorted(path for path in images.iterdir() if path.suffix == ".jpg")[:count]
    finder = finder_of(model, model.size(None), model.thresholds)
    ready = [finder.take([read_image(path)]) for path in paths[:8]]

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        video = written_video(paths, folder / "clip.mp4")

        def alone() -> float:
            begin = time.perf_counter()
            for number in range(len(paths)):
                finder.infer(ready[number % len(ready)])
            return len(paths) / (time.perf_counter() - begin)

        def predicted(sources: list[str]) -> float:
            return predict(model, open_sources(sources), folder / "out").images_per_s

        ways: dict[str, Callable[[], float]] = {
            "engine": alone,
            "images": lambda: predicted(list(map(str, paths))),
            "video": lambda: predicted([str(video)]),
        }
        load_before = [round(value, 1) for value in os.getloadavg()]
        turns = [{name: way() for name, way in ways.items()} for _ in range(rounds + 1)][1:]  # the first warms up
        cost = parts(model, paths, video, folder)
    speeds = {name: [turn[name] for turn in turns] for name in ways}
    ratios = {name: statistics.median(turn[name] / turn["engine"] for turn in turns) for name in ways}
    shared = cost["letterbox"] + cost["suppress"] + cost["draw"]
    beside = {"images": shared + cost["decode an image"] + cost["encode an image"],
              "video": shared + cost["decode a frame"] + cost["encode a frame of 640x480"]}  # fmt: skip
    bounds = {name: cost["engine"] / (cost["engine"] + found) for name, found in beside.items()}
    click.echo(f"{model.label}, {len(paths)} images, {rounds} rounds; load before: {load_before}")
    for name, found in speeds.items():
        bound = f", at most {bounds[name]:.2f} where the engine uses all cores" if name in bounds else ""
        click.echo(f"{name:8} {statistics.median(found):7.1f} images/s  {ratios[name]:.2f}{bound}")
    for name, milliseconds in cost.items():
        click.echo(f"  {name:26} {milliseconds:6.2f} ms")
    if out is not None:
        figures = {"model": model.label, "images": len(paths), "load_before": load_before, "images_per_s": speeds,
                   "ratio_medians": ratios, "bounds": bounds, "core_ms": cost,
                   "environment": capture_environment().values()}  # fmt: skip
        write_text(out, json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
