"""Images per second of the training loop, data loading included, against the plain arrangement of the same work.

Plain means: every sample decodes its images again, fits each of a mosaic's four into a canvas of twice the size and
warps that once more, objects are assigned image by image, and convolutions, the layout of tensors and the handling of
memory are left to torch and the C library, and kernels of a GPU are launched one by one; once with threads that load
ahead, and once loading in between. All make the same updates of the same model, each in a process of its own, in turns,
so that a busy machine disturbs all alike. The ratio is to the faster plain one, float32 on a CPU. Then the parts of a
step, apart.

    python benchmarks/train_throughput.py                                   # YOLOv6-N v2, 256x256, the demo set
    python benchmarks/train_throughput.py --data bccd/data.yaml --batch 16 --rounds 5
    python benchmarks/train_throughput.py --precision float32 --precision bfloat16 --no-plain   # side by side
    python benchmarks/train_throughput.py --model yolox_nano --data bccd/data.yaml              # another family
    python benchmarks/train_throughput.py --precision float32 --compiled --no-plain   # beside what torch.compile makes
    python benchmarks/train_throughput.py --loader opencv --loader dali --no-plain    # beside samples by NVIDIA DALI
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import click
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repq.concurrency import prefetch
from repq.data import (
    DetectionDataset,
    ImageCache,
    ImageRecord,
    load_dataset,
    make_demo_set,
    pixel_boxes,
    read_image,
)
from repq.data.augment import Placement, SamplePlan, adding_table, mirror, place_objects, recolour, shifting_table
from repq.files import write_text
from repq.machine.environment import capture_environment
from repq.memory import keep_freed_memory
from repq.model import build
from repq.model.yolov6.blocks import PointConv
from repq.preprocessing import Preprocessing
from repq.recipe import DemoConfig, TrainConfig
from repq.train import AnchorGrid, Assignment, MovingAverage, Objects, Rates, Updater
from repq.train.assigner import assign_in_slices
from repq.train.loader import TrainBatch, loading_threads, training_batches
from repq.train.precision import computing_in
from repq.train.rendering import renderer_of
from repq.train.update import LAYOUT

RATES = Rates(0.001, 0.001, 0.9)
Assign = Callable[[Tensor, Tensor, Objects, AnchorGrid], Assignment]
PLAIN: dict[str, int] = {"plain, 2 loader threads": 2, "plain, loading in between": 0}
"""Loader threads of the plain arrangements, by name."""


# --- the plain arrangement -------------------------------------------------------------------------------------------


class Sample(NamedTuple):
    """An image (H, W, 3) uint8 RGB and its objects."""

    image: NDArray[np.uint8]
    objects: NDArray[np.float32]


def plain_mosaic(records: list[ImageRecord], imgsz: int, config: TrainConfig, rng: np.random.Generator) -> Sample:
    """Four freshly decoded images on a canvas of twice the size, which is then warped to the input's size."""
    canvas = np.full((2 * imgsz, 2 * imgsz, 3), 114, np.uint8)
    joint = rng.integers(imgsz // 2, 3 * imgsz // 2, 2)
    rows: list[NDArray[np.float32]] = []
    for quarter, record in enumerate(records):
        image = read_image(record.path)
        ratio = imgsz / max(image.shape[:2])
        width, height = round(image.shape[1] * ratio), round(image.shape[0] * ratio)
        image = np.asarray(cv2.resize(image, (width, height)), np.uint8)
        bottom, right = divmod(quarter, 2)
        x1, y1 = joint[0] - (0 if right else width), joint[1] - (0 if bottom else height)
        left, top = max(x1, 0), max(y1, 0)
        to_x, to_y = min(x1 + width, 2 * imgsz), min(y1 + height, 2 * imgsz)
        canvas[top:to_y, left:to_x] = image[top - y1 : to_y - y1, left - x1 : to_x - x1]
        boxes = pixel_boxes(record.labels, width, height) + np.array([x1, y1, x1, y1])
        rows.append(np.concatenate((record.labels[:, :1], boxes), axis=1).astype(np.float32))
    zoom = rng.uniform(*config.scale)
    centre = rng.uniform(0.5 - config.translate, 0.5 + config.translate, 2) * imgsz
    angle = np.radians(rng.uniform(-config.rotate, config.rotate))
    slopes = np.tan(np.radians(rng.uniform(-config.shear, config.shear, 2)))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = zoom * turn @ np.array([[1, slopes[0]], [slopes[1], 1]])
    offset = centre - linear @ (imgsz, imgsz)
    matrix = np.column_stack((linear, offset))
    view = np.asarray(cv2.warpAffine(canvas, matrix, (imgsz, imgsz), borderValue=(114, 114, 114)), np.uint8)
    objects = place_objects(np.concatenate(rows), Placement(linear, offset, (0, 0, imgsz, imgsz)))
    for table in (*shifting_table(config.hsv, rng), *adding_table(config.hsv_shift, rng)):
        view = recolour(view, table)
    plan = SamplePlan((imgsz, imgsz), 114, (), objects)
    if rng.random() < config.flip:
        view, plan = np.ascontiguousarray(view[:, ::-1]), mirror(plan)
    return Sample(view, plan.objects)


def plain_batches(dataset: DetectionDataset, imgsz: int, config: TrainConfig, epoch: int) -> Iterator[TrainBatch]:
    def draw(index: int) -> Sample:
        rng = np.random.default_rng((epoch, index))
        others = rng.integers(0, len(dataset), 3)
        return plain_mosaic([dataset[index], *(dataset[int(i)] for i in others)], imgsz, config, rng)

    order = np.random.default_rng(epoch).permutation(len(dataset)).tolist()
    drawn = prefetch(draw, order, workers=config.workers or 0, ahead=2 * config.batch)
    for start in range(0, len(order) - config.batch + 1, config.batch):
        samples = [next(drawn) for _ in order[start : start + config.batch]]
        yield TrainBatch(np.stack([s.image for s in samples]), tuple(s.objects for s in samples))


class PlainUpdater(Updater):
    """Leaves images in torch's default layout."""

    def pixels(self, batch: TrainBatch, preprocessing: Preprocessing | None = None) -> Tensor:
        wanted = self.model.spec.preprocessing if preprocessing is None else preprocessing
        images = torch.from_numpy(batch.images).to(self.device).permute(0, 3, 1, 2)
        pixels: Tensor = wanted.normalize((images.flip(1) if wanted.bgr else images).to(torch.float32).contiguous())
        return pixels


def one_by_one(assign: Assign, scores: Tensor, boxes: Tensor, objects: Objects, grid: AnchorGrid) -> Assignment:
    """The same assignment with a Python loop over images, each with its own objects only."""
    parts = []
    for image in range(len(scores)):
        most = max(1, int(objects.valid[image].sum()))
        own = Objects(
            objects.boxes[image, None, :most], objects.classes[image, None, :most], objects.valid[image, None, :most]
        )
        parts.append(assign(scores[image, None], boxes[image, None], own, grid))
    return Assignment(*(torch.cat([getattr(part, name) for part in parts]) for name in Assignment.__annotations__))


# --- one arrangement, in a process of its own ------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """Of one arrangement; ``workers``: loader threads, None for the loop's own choice."""

    plain: bool = False
    workers: int | None = None
    precision: str = "auto"
    compiled: bool = False
    loader: str = "opencv"


@dataclass(frozen=True)
class Job:
    model: str
    data: Path
    imgsz: int
    config: TrainConfig
    threads: int
    steps: int
    device: str = "cpu"
    precisions: tuple[str, ...] = ("auto",)
    with_plain: bool = True
    with_compiled: bool = False
    loaders: tuple[str, ...] = ("opencv",)

    def arrangements(self) -> dict[str, Settings]:
        """Settings of each arrangement by name."""
        own = {
            f"repq, {precision}" + f", {loader}" * (loader != "opencv"): Settings(precision=precision, loader=loader)
            for precision in self.precisions
            for loader in self.loaders
        }
        if self.with_compiled:
            own |= {f"{name}, compiled": replace(settings, compiled=True) for name, settings in own.items()}
        usual = "float16" if self.device.startswith("cuda") else "float32"
        plain = {name: Settings(True, workers, usual) for name, workers in PLAIN.items() if self.with_plain}
        return {**own, **plain}


class Arrangement:
    """The training loop's own way, or the plain one."""

    def __init__(self, job: Job, settings: Settings) -> None:
        plain = settings.plain
        update = {"workers": settings.workers, "precision": settings.precision, "compile": settings.compiled}
        job = replace(job, config=job.config.model_copy(update={**update, "cuda_graphs": not plain}))
        torch.set_num_threads(job.threads)
        if plain:
            PointConv.forward = torch.nn.Conv2d.forward  # type: ignore[method-assign]
        else:
            keep_freed_memory()
        self.job, self.plain, self.dataset = job, plain, load_dataset(job.data, "train")
        self.size = (job.imgsz, job.imgsz)
        self.cache = ImageCache(self.dataset.records, self.size, job.config.cache_mib << 20)
        if not plain and settings.loader == "opencv":
            for index in range(len(self.cache)):
                self.cache.image(index)  # steady state
        torch.manual_seed(0)
        model = build(job.model, self.dataset.num_classes).train()
        device = torch.device(job.device)
        model = model.to(device) if plain else model.to(device, memory_format=LAYOUT)
        self.updater = (PlainUpdater if plain else Updater)(model, job.config, device)
        if plain:
            options = self.updater.objective.options
            self.updater.objective.options = replace(options, assign=partial(one_by_one, options.assign))
        self.average = MovingAverage(self.updater.model, 0.999, 100)
        grey, threads = self.updater.model.spec.preprocessing.pad, loading_threads(job.config, device.type)
        self.renderer = renderer_of(settings.loader, self.cache, grey, device, threads)
        self.source = self.batches(job.config)

    def batches(self, config: TrainConfig) -> Iterator[TrainBatch]:
        """Full batches of one epoch after another."""
        for epoch in count():
            epoch_of = (
                plain_batches(self.dataset, self.job.imgsz, config, epoch)
                if self.plain
                else training_batches(
                    self.cache,
                    self.size,
                    config,
                    seed=0,
                    epoch=epoch,
                    device=self.updater.device.type,
                    renderer=self.renderer,
                )
            )
            yield from (found for found in epoch_of if len(found.images) == config.batch)

    def images_per_s(self) -> float:
        started, images = time.perf_counter(), 0
        for _ in range(self.job.steps):
            batch = next(self.source)
            float(self.updater.update([batch], RATES)["total"])
            self.average.update(self.updater.model)
            images += len(batch.images)
        return images / (time.perf_counter() - started)

    def parts(self) -> dict[str, float]:
        """Seconds of each part of a step, in order; loading as it is without threads beside it."""
        source = self.batches(self.job.config.model_copy(update={"workers": 0}))
        next(source)
        return parts_of_a_step(self.updater, self.average, source)


def serve(job: Job, settings: Settings, line: Connection) -> None:
    """Answer what the main process asks for, a method by name, until it asks for nothing."""
    own = Arrangement(job, settings)
    for method in iter(line.recv, None):
        line.send(getattr(own, method)())


# --- measuring -------------------------------------------------------------------------------------------------------


def parts_of_a_step(updater: Updater, average: MovingAverage, source: Iterator[TrainBatch]) -> dict[str, float]:
    """Seconds of each part of one step, in order; loading as it is without threads beside it."""
    times, last = {}, time.perf_counter()

    def note(name: str) -> None:
        nonlocal last
        if updater.device.type == "cuda":
            torch.cuda.synchronize()
        times[name], last = time.perf_counter() - last, time.perf_counter()

    batch = next(source)
    note("loading")
    pixels = updater.pixels(batch)
    with computing_in(updater.precision, updater.model, updater.device):
        output = updater.model(pixels)
    note("forward")
    objects, grid = updater.objects(batch), updater.grid(*batch.images.shape[1:3])
    boxes = torch.cat((grid.points - grid.strides, grid.points + grid.strides), -1).expand(len(pixels), -1, -1)
    assign_in_slices(updater.objective.options.assign, output.scores.detach(), boxes, objects, grid)
    note("assignment")
    loss = updater.loss(batch)
    note("forward, assignment and losses")
    loss.total.backward()
    note("backward")
    updater.optimizer.step()
    updater.optimizer.zero_grad(set_to_none=True)
    average.update(updater.model)
    note("update and average")
    return times


@click.command(help=__doc__)
@click.option("--model", default="yolov6n_v2", show_default=True)
@click.option("--data", type=click.Path(path_type=Path, exists=True), help="A data.yaml; the demo set by default.")
@click.option("--imgsz", default=256, show_default=True)
@click.option("--batch", default=16, show_default=True)
@click.option("--steps", default=6, show_default=True, help="Updates a round.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--threads", default=2, show_default=True, help="Threads of torch.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--precision", "precisions", multiple=True, default=("auto",), show_default=True, help="Several: each.")
@click.option("--plain/--no-plain", "with_plain", default=True, show_default=True, help="Measure the plain ones too.")
@click.option("--compiled/--no-compiled", "with_compiled", default=False, show_default=True, help="Measure it too.")
@click.option("--loader", "loaders", multiple=True, default=("opencv",), show_default=True, help="Several: each.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Write the figures as JSON.")
def main(
    model: str, data: Path | None, imgsz: int, batch: int, steps: int, rounds: int, threads: int, device: str,
    precisions: tuple[str, ...], with_plain: bool, with_compiled: bool, loaders: tuple[str, ...],
    out: Path | None,
) -> None:  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = data or make_demo_set(Path(folder) / "demo", DemoConfig(train_images=max(64, 4 * batch), size=480))
        config = TrainConfig(model=model, batch=batch, mosaic=1.0, mixup=0.0, multi_scale=(1.0, 1.0))
        speeds, steps_apart = measure(
            Job(model, path, imgsz, config, threads, steps, device, precisions, with_plain, with_compiled, loaders),
            rounds,
        )
    medians = {name: statistics.median(found) for name, found in speeds.items()}
    first, *others = speeds
    rival = max((name for name in others if name in PLAIN), key=medians.__getitem__, default=first)
    ratios = {
        name: statistics.median(own / other for own, other in zip(found, speeds[rival], strict=True))
        for name, found in speeds.items()
        if name not in PLAIN and name != rival
    }
    click.echo(f"{model}, {imgsz}x{imgsz}, batch {batch}, {device}, {threads} threads")
    for name, found in speeds.items():
        rows = ", ".join(f"{speed:.1f}" for speed in found)
        click.echo(f"{name:26} {medians[name]:7.1f} images/s  (rounds: {rows})")
    for name, ratio in ratios.items():
        click.echo(f"{name} over {rival}, median of rounds: {ratio:.2f}")
    click.echo(f"\nmilliseconds of a step, medians; loading without threads beside it: {', '.join(steps_apart)}")
    parts = {}
    for part in steps_apart[first][0]:
        parts[part] = {n: 1000 * statistics.median(row[part] for row in rows) for n, rows in steps_apart.items()}
        click.echo(f"{part:40}" + "".join(f" {found:8.1f}" for found in parts[part].values()))
    if out is not None:
        figures = {
            "model": model, "data": data.parent.name if data else "demo", "imgsz": imgsz, "batch": batch,
            "threads": threads, "device": device, "images_per_s": speeds, "over": rival, "ratio_median": ratios,
            "parts_ms": parts, "environment": capture_environment().values(),
        }  # fmt: skip
        write_text(out, json.dumps(figures, indent=1))


def measure(job: Job, rounds: int) -> tuple[dict[str, list[float]], dict[str, list[dict[str, float]]]]:
    """Images per second of each round, and the parts of some steps, by arrangement."""
    spawn = multiprocessing.get_context("spawn")
    lines: dict[str, Connection] = {}
    with ExitStack() as stack:
        for name, settings in job.arrangements().items():
            lines[name], theirs = spawn.Pipe()
            process = spawn.Process(target=serve, args=(job, settings, theirs))
            process.start()
            stack.callback(process.join)
            stack.callback(lines[name].send, None)

        def asked(name: str, method: str) -> Any:
            lines[name].send(method)
            return lines[name].recv()

        def in_turns(method: str) -> dict[str, list[Any]]:
            found = [{name: asked(name, method) for name in lines} for _ in range(rounds + 1)][1:]  # the first warms up
            return {name: [row[name] for row in found] for name in lines}

        return in_turns("images_per_s"), in_turns("parts")


if __name__ == "__main__":
    main()
