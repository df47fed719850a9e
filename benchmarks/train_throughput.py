"""Images per second of the training loop, data loading included, against the plain arrangement of the same work.

Plain means: every sample decodes its images again, fits each of a mosaic's four into a canvas of twice the size and
warps that once more, and objects are assigned image by image. Both make the same updates of the same model with the
same number of loader threads, in turns, so that a busy machine disturbs both alike. Then the parts of a step, apart.

    python benchmarks/train_throughput.py                                   # YOLOv6-N v2, 256x256, the demo set
    python benchmarks/train_throughput.py --data bccd/data.yaml --batch 16 --rounds 5
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import click
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repq.data import (
    DetectionDataset,
    ImageCache,
    ImageRecord,
    Sample,
    load_dataset,
    make_demo_set,
    pixel_boxes,
    prefetch,
    read_image,
)
from repq.data.augment import Placement, mirror, place_objects, shift_colours
from repq.model import build
from repq.recipe import DemoConfig, TrainConfig
from repq.train import AnchorGrid, Assignment, MovingAverage, Objects, Rates, Updater, assign_task_aligned, pad_objects
from repq.train.assigner import assign_in_slices
from repq.train.loader import TrainBatch, training_batches

RATES = Rates(0.001, 0.001, 0.9)


# --- the plain arrangement -------------------------------------------------------------------------------------------


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
    zoom = rng.uniform(1 - config.scale, 1 + config.scale)
    centre = rng.uniform(0.5 - config.translate, 0.5 + config.translate, 2) * imgsz
    offset = centre - zoom * imgsz
    matrix = np.array([[zoom, 0, offset[0]], [0, zoom, offset[1]]])
    view = np.asarray(cv2.warpAffine(canvas, matrix, (imgsz, imgsz), borderValue=(114, 114, 114)), np.uint8)
    objects = place_objects(np.concatenate(rows), Placement(np.eye(2) * zoom, offset, (0, 0, imgsz, imgsz)))
    sample = Sample(shift_colours(view, config.hsv, rng), objects)
    return mirror(sample) if rng.random() < config.flip else sample


def plain_batches(dataset: DetectionDataset, imgsz: int, config: TrainConfig, epoch: int) -> Iterator[TrainBatch]:
    def draw(index: int) -> Sample:
        rng = np.random.default_rng((epoch, index))
        others = rng.integers(0, len(dataset), 3)
        return plain_mosaic([dataset[index], *(dataset[int(i)] for i in others)], imgsz, config, rng)

    order = np.random.default_rng(epoch).permutation(len(dataset)).tolist()
    drawn = prefetch(draw, order, workers=config.workers, ahead=2 * config.batch)
    for start in range(0, len(order) - config.batch + 1, config.batch):
        samples = [next(drawn) for _ in order[start : start + config.batch]]
        yield TrainBatch(np.stack([s.image for s in samples]), tuple(s.objects for s in samples))


def assign_one_by_one(scores: Tensor, boxes: Tensor, objects: Objects, grid: AnchorGrid) -> Assignment:
    """The same assignment with a Python loop over images, each with its own objects only."""
    parts = []
    for image in range(len(scores)):
        most = max(1, int(objects.valid[image].sum()))
        own = Objects(
            objects.boxes[image, None, :most], objects.classes[image, None, :most], objects.valid[image, None, :most]
        )
        parts.append(assign_task_aligned(scores[image, None], boxes[image, None], own, grid))
    return Assignment(*(torch.cat([getattr(part, name) for part in parts]) for name in Assignment.__annotations__))


# --- measuring -------------------------------------------------------------------------------------------------------


def endless(epoch_of: Callable[[int], Iterator[TrainBatch]], batch: int) -> Iterator[TrainBatch]:
    """Full batches of one epoch after another."""
    epoch = 0
    while True:
        yield from (found for found in epoch_of(epoch) if len(found.images) == batch)
        epoch += 1


def images_per_s(updater: Updater, average: MovingAverage, source: Iterator[TrainBatch], steps: int) -> float:
    started, images = time.perf_counter(), 0
    for _ in range(steps):
        batch = next(source)
        float(updater.update([batch], RATES)["total"])
        average.update(updater.model)
        images += len(batch.images)
    return images / (time.perf_counter() - started)


def parts_of_a_step(updater: Updater, average: MovingAverage, source: Iterator[TrainBatch]) -> dict[str, float]:
    """Seconds of each part of one step on the CPU, in order; loading as it is without threads beside it."""
    times, last = {}, time.perf_counter()

    def note(name: str) -> None:
        nonlocal last
        times[name], last = time.perf_counter() - last, time.perf_counter()

    batch = next(source)
    note("loading")
    pixels = torch.from_numpy(batch.images).permute(0, 3, 1, 2).float() / 255
    output = updater.model(pixels)
    note("forward")
    objects, grid = pad_objects(batch.objects), updater.grid(*batch.images.shape[1:3])
    boxes = torch.cat((grid.points - grid.strides, grid.points + grid.strides), -1).expand(len(pixels), -1, -1)
    assign_in_slices(updater.options.assign, output.scores.detach(), boxes, objects, grid)
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
@click.option("--workers", default=2, show_default=True, help="Loader threads of both.")
@click.option("--threads", default=2, show_default=True, help="Threads of torch.")
def main(
    model: str, data: Path | None, imgsz: int, batch: int, steps: int, rounds: int, workers: int, threads: int
) -> None:
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        path = data or make_demo_set(Path(folder) / "demo", DemoConfig(train_images=max(64, 4 * batch), size=480))
        dataset = load_dataset(path, "train")
        config = TrainConfig(batch=batch, workers=workers, mosaic=1.0)
        compare(dataset, model, imgsz, config, steps, rounds)


def compare(dataset: DetectionDataset, model: str, imgsz: int, config: TrainConfig, steps: int, rounds: int) -> None:
    size = (imgsz, imgsz)
    cache = ImageCache(dataset.records, size, config.cache_mib << 20)
    for index in range(len(cache)):
        cache.image(index)  # steady state

    def updater(*, plain: bool) -> Updater:
        torch.manual_seed(0)
        found = Updater(build(model, dataset.num_classes).train(), config, torch.device("cpu"))
        if plain:
            found.options = replace(found.options, assign=assign_one_by_one)
        return found

    def cached(settings: TrainConfig) -> Callable[[int], Iterator[TrainBatch]]:
        return lambda epoch: training_batches(cache, size, settings, seed=0, epoch=epoch)

    def uncached(settings: TrainConfig) -> Callable[[int], Iterator[TrainBatch]]:
        return lambda epoch: plain_batches(dataset, imgsz, settings, epoch)

    arrangements = {"repq": (updater(plain=False), cached), "plain": (updater(plain=True), uncached)}
    averages = {name: MovingAverage(own.model, 0.999, 100) for name, (own, _) in arrangements.items()}
    sources = {name: endless(batches(config), config.batch) for name, (_, batches) in arrangements.items()}
    speeds: dict[str, list[float]] = {name: [] for name in arrangements}
    for number in range(rounds + 1):
        for name, (own, _) in arrangements.items():
            speed = images_per_s(own, averages[name], sources[name], steps)
            if number:  # the first round warms up
                speeds[name].append(speed)
    for source in sources.values():
        source.close()  # type: ignore[attr-defined]

    click.echo(
        f"{model}, {imgsz}x{imgsz}, batch {config.batch}, {len(dataset)} images, {torch.get_num_threads()} threads"
    )
    for name, found in speeds.items():
        click.echo(
            f"{name:6} {statistics.median(found):7.1f} images/s  (rounds: {', '.join(f'{s:.1f}' for s in found)})"
        )
    ratios = [own / other for own, other in zip(speeds["repq"], speeds["plain"], strict=True)]
    click.echo(f"repq over plain, median of rounds: {statistics.median(ratios):.2f}")

    alone = config.model_copy(update={"workers": 0})
    steps_apart: dict[str, list[dict[str, float]]] = {}
    for name, (own, batches) in arrangements.items():
        source = endless(batches(alone), config.batch)
        steps_apart[name] = [parts_of_a_step(own, averages[name], source) for _ in range(rounds + 1)][1:]
    click.echo("\nmilliseconds of a step, medians; loading without threads beside it   repq    plain")
    for part in steps_apart["repq"][0]:
        medians = [1000 * statistics.median(row[part] for row in rows) for rows in steps_apart.values()]
        click.echo(f"{part:66} {medians[0]:8.1f} {medians[1]:8.1f}")


if __name__ == "__main__":
    main()
