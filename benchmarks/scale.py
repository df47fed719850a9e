"""How cost and memory grow: one factor at a time, each point in a process of its own.

    images       a data set in YOLO form of so many 128x128 JPEGs (hard links to 100 files, 7 objects each): the first
                 look and the next, which reads what the first one kept
    objects      COCO metrics of 500 images with so many objects and as many detections each
    calibration  observing so many images at 64x64 in every layer of YOLOv6-N
    weights      post-training quantization of N to L with 4 images at 128x128, by thousands of weights
    processes    evaluating 64 images of YOLOv6-N at 320x320 in so many processes of torchrun (gloo)

A point is CPU seconds, of all its processes, seconds by the clock, and the peak memory of the largest one. Imports are
in it: the first point of a factor holds little else. A process starts with the memory of the one that measures: no peak
is below that, and growth from there says nothing. The exponent is that of growth from one point to the next, with
the first point's cost taken off: 1 is linear.

    python benchmarks/scale.py                                  # all factors; some minutes
    python benchmarks/scale.py --factor objects --factor weights -o /tmp/scale
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import click
import numpy as np

FLOOR = "No peak is below the memory of the process that measures, and growth from there says nothing."
RESULTS = Path(__file__).parent / "results"
FACTORS: dict[str, tuple[int | str, ...]] = {
    "images": (100, 1_000, 10_000, 100_000),
    "images, again": (100, 1_000, 10_000, 100_000),
    "objects": (1, 10, 100, 500),
    "calibration": (16, 128, 512, 2_000),
    "weights": ("yolov6n_v2", "yolov6s_v2", "yolov6m_v2", "yolov6l"),
    "processes": (1, 2, 4),
}


# --- what is measured, in a process of its own -----------------------------------------------------------------------


def look_at_images(count: int, folder: Path) -> None:
    from repq.data import load_dataset

    os.environ["REPQ_CACHE"] = str(folder / f"cache-{count}")
    assert len(load_dataset(folder / str(count) / "data.yaml", "train")) == count


def measure_objects(count: int, folder: Path) -> None:
    from repq.data import load_dataset
    from repq.evaluate import Detections, coco_accuracy

    dataset = load_dataset(folder / "objects" / str(count) / "data.yaml", "train")
    rng, boxes = np.random.default_rng(0), []
    for record in dataset.records:
        found = rng.normal(0, 2, (count, 4)).astype(np.float32)
        found[:, :2] += rng.uniform(0, 64, (count, 2)).astype(np.float32)
        found[:, 2:] = found[:, :2] + rng.uniform(8, 64, (count, 2)).astype(np.float32)
        classes = rng.integers(0, dataset.num_classes, (count, 1))
        boxes.append(np.hstack([found, rng.random((count, 1)), classes]).astype(np.float32))
        assert len(record.labels) == count
    coco_accuracy(Detections(tuple(record.name for record in dataset.records), tuple(boxes)), dataset)


def calibrate_images(count: int, folder: Path) -> None:
    from repq.layers import QuantPlan
    from repq.model import build, layer_ids
    from repq.quant import calibrate, insert_quantizers
    from repq.recipe import PtqConfig

    fused = build("yolov6n_v2", 3, deploy=True).eval()
    model = insert_quantizers(fused, QuantPlan(layer_ids(fused)), PtqConfig(auto=False))
    rng = np.random.default_rng(0)
    batches = (rng.random((16, 3, 64, 64), np.float32) for _ in range(count // 16))
    calibrate(model, batches, PtqConfig().calibration)


def quantize_model(name: str, folder: Path) -> None:
    import torch

    import repq
    from repq.model import build, save_checkpoint

    torch.manual_seed(0)
    weights = folder / f"{name}.safetensors"
    save_checkpoint(weights, build(name, 3, deploy=True).eval())
    pictures = [np.random.default_rng(i).integers(0, 255, (128, 128, 3), np.uint8) for i in range(4)]
    model = repq.load(weights).quantize(pictures, imgsz=128, auto=False)
    click.echo(sum(value.numel() for value in model.weights.model.parameters()) // 1000)


def evaluate_in_processes(count: int, folder: Path) -> None:
    import torch

    from repq.model import build, save_checkpoint

    weights = folder / "n.safetensors"
    if not weights.exists():
        torch.manual_seed(0)
        save_checkpoint(weights, build("yolov6n_v2", 3, deploy=True).eval())
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "-m", "repq"]
    words = ["eval", weights, "--data", folder / "64" / "data.yaml", "--split", "train", "--imgsz", 320]
    subprocess.run([str(word) for word in [*start, *words]], check=True, capture_output=True)


POINTS: dict[str, Callable[..., None]] = {
    "images": look_at_images,
    "images, again": look_at_images,
    "objects": measure_objects,
    "calibration": calibrate_images,
    "weights": quantize_model,
    "processes": evaluate_in_processes,
}


# --- data ------------------------------------------------------------------------------------------------------------


def make_images(folder: Path, count: int, objects: int, files: int = 100) -> None:
    """A data set in YOLO form whose images are hard links to a few JPEGs of noise."""
    import cv2

    rng = np.random.default_rng(0)
    images, labels, sources = folder / "images", folder / "labels", folder / "sources"
    for each in (images, labels, sources):
        each.mkdir(parents=True)
    for number in range(min(count, files)):
        cv2.imwrite(str(sources / f"{number}.jpg"), rng.integers(0, 255, (128, 128, 3), np.uint8))
    lines = [
        f"{rng.integers(3)} {x:.4f} {y:.4f} {w:.4f} {h:.4f}"
        for x, y, w, h in rng.uniform(0.2, 0.4, (objects, 4))
    ]  # fmt: skip
    for number in range(count):
        os.link(sources / f"{number % files}.jpg", images / f"{number:06}.jpg")
        (labels / f"{number:06}.txt").write_text("\n".join(lines))
    (folder / "data.yaml").write_text("train: images\nval: images\nnames: [ring, triangle, cross]\n")


def prepare(factor: str, folder: Path) -> None:
    if factor == "images":
        for count in FACTORS[factor]:
            make_images(folder / str(count), int(count), 7)
    elif factor == "objects":
        for count in FACTORS[factor]:
            make_images(folder / "objects" / str(count), 500, int(count))
    elif factor == "processes":
        make_images(folder / "64", 64, 7)


# --- measuring -------------------------------------------------------------------------------------------------------


def measured(factor: str, value: int | str, folder: Path) -> dict[str, float | int | str]:
    """One point: CPU seconds, seconds by the clock and peak memory of a process and its children."""
    code = f"import scale; from pathlib import Path; scale.POINTS[{factor!r}]({value!r}, Path({str(folder)!r}))"
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=Path(__file__).parent)
    assert process.stdout is not None
    told = process.stdout.read().decode().strip()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise click.ClickException(f"{factor}, {value}: the process ended with {status}")
    size = int(told) if told else value
    return {
        "value": value, "size": size, "cpu_s": usage.ru_utime + usage.ru_stime,
        "s": time.perf_counter() - started, "peak_mib": usage.ru_maxrss / 1024,
    }  # fmt: skip


def exponent(points: list[dict[str, float]], key: str, number: int) -> float | None:
    """Growth from the point before to this one, less the cost of the first; None where there is no such growth."""
    first, before, here = points[0], points[number - 1], points[number]
    grown = [point[key] - first[key] for point in (before, here)]
    if number < 2 or min(grown) <= 0:
        return None
    return math.log(grown[1] / grown[0]) / math.log((here["size"] - first["size"]) / (before["size"] - first["size"]))


def draw(found: dict[str, list[dict[str, float]]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(found), 6), layout="constrained")
    axes = figure.subplots(2, len(found), squeeze=False)
    for column, (factor, points) in enumerate(found.items()):
        for row, (key, unit) in enumerate((("cpu_s", "CPU, s"), ("peak_mib", "peak, MiB"))):
            axes[row][column].plot([p["size"] for p in points], [p[key] for p in points], "o-")
            axes[row][column].set(title=factor if row == 0 else "", ylabel=unit, xlabel=factor if row else "")
            axes[row][column].set_ylim(bottom=0)
    figure.savefig(path)


def table(found: dict[str, list[dict[str, float]]]) -> str:
    lines = [
        "| factor | value | CPU s | s | peak MiB | exponent, CPU | exponent, memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for factor, points in found.items():
        for number, point in enumerate(points):
            growth = [exponent(points, key, number) for key in ("cpu_s", "peak_mib")]
            told = [f"{point['cpu_s']:.1f}", f"{point['s']:.1f}", f"{point['peak_mib']:.0f}"]
            told += ["–" if value is None else f"{value:.2f}" for value in growth]
            name = point["value"] if point["value"] == point["size"] else f"{point['value']}, {point['size']}"
            lines.append(f"| {factor} | {name} | {' | '.join(told)} |")
    return "\n".join(lines)


@click.command(help=__doc__)
@click.option("--factor", "factors", type=click.Choice(list(FACTORS)), multiple=True, help="Default: all.")
@click.option("-o", "--out", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(factors: tuple[str, ...], out: Path) -> None:
    from repq.machine.environment import capture_environment

    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for factor in FACTORS:
            if factors and factor not in factors and not (factor == "images" and "images, again" in factors):
                continue
            prepare(factor, folder)
            found[factor] = []
            for value in FACTORS[factor]:
                found[factor].append(measured(factor, value, folder))  # type: ignore[arg-type]
                click.echo(
                    f"{factor}, {value}: " + ", ".join(f"{k} {v}" for k, v in found[factor][-1].items()), err=True
                )
    text, name = table(found), f"{date.today().isoformat()}-scale"
    click.echo(text)
    out.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg()
    (out / f"{name}.md").write_text(
        f"# How cost and memory grow\n\nLoad at the end: {load[0]:.1f}. {FLOOR}\n\n{text}\n"
    )
    values = {"environment": capture_environment().values(), "load": load, "factors": found}
    (out / f"{name}.json").write_text(json.dumps(values, indent=1) + "\n")
    draw(found, out / f"{name}.svg")


if __name__ == "__main__":
    main()
