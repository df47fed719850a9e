"""What a step of quantization-aware training costs, against a float step of the same fused model.

All steps are on the same batches, already drawn, and make the same update as the training loop, in its layout of
tensors: forward, loss, backward, clipped gradients, AdamW, average of the weights. They take turns, and the order
reverses every round.

    float               the fused model without quantizers, the detection loss
    float, teacher      the same, with the loss of QAT: the teacher's forward pass and the imitation of it
    QAT frozen          quantizers with frozen scales, the detection loss
    QAT learned         quantizers with learned scales, the detection loss
    QAT …, teacher      the same with the loss of QAT, as `repq qat` runs it by default

What quantizers cost is QAT over float with the same loss. A step of `repq qat` against an ordinary training step is
"QAT learned, teacher" over "float", and holds a forward pass more.

    python benchmarks/qat_step.py                             # YOLOv6Lite-S, 320x320, random weights
    python benchmarks/qat_step.py --model yolov6n_v2 --imgsz 256 --scheme asymmetric
"""

from __future__ import annotations

import copy
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from itertools import cycle
from pathlib import Path

import click
import torch

from repq.data import ImageCache, load_dataset, make_demo_set
from repq.layers import QuantPlan
from repq.machine.environment import capture_environment
from repq.memory import keep_freed_memory
from repq.model import Detector, build, layer_ids
from repq.quant import calibrate, insert_quantizers
from repq.quant.qat import QatUpdater, learn_scales
from repq.recipe import CalibrationConfig, DemoConfig, PtqConfig, QatConfig
from repq.train import MovingAverage, Rates, Teacher
from repq.train.loader import TrainBatch, training_batches
from repq.train.trainer import moved

FIRST = 4
"""Rounds that do not count."""
RATES = Rates(1e-4, 1e-4, 0.9)
RESULTS = Path(__file__).parent / "results"
LABELS_ALONE = {"task_weight": 1.0, "feature_weight": 0.0, "class_weight": 0.0, "box_weight": 0.0}


class WithoutTeacher(QatUpdater):
    """The detection loss alone; nobody asks the teacher."""

    def loss(self, batch: TrainBatch, *, warm_up: bool = False, progress: float = 0.0):  # type: ignore[no-untyped-def]
        return self.task_loss(self.answer(self.pixels(batch)), batch)


@dataclass
class Contender:
    updater: QatUpdater
    average: MovingAverage[Detector]
    seconds: list[float]

    def step(self, batch: TrainBatch) -> float:
        started = time.perf_counter()
        float(self.updater.update([batch], RATES)["total"])
        self.average.update(self.updater.model)
        return time.perf_counter() - started


def contenders(fused: Detector, calibrated: Detector, config: QatConfig, device: torch.device) -> dict[str, Contender]:
    found = {}
    for name, start, scales in (
        ("float", fused, None), ("QAT frozen", calibrated, "frozen"), ("QAT learned", calibrated, "learned"),
    ):  # fmt: skip
        for with_teacher in (False, True):
            model = moved(copy.deepcopy(start), device).train()
            if scales == "learned":
                learn_scales(model)
            kind = QatUpdater if with_teacher else WithoutTeacher
            settings = config if with_teacher else config.model_copy(update=LABELS_ALONE)
            teacher = Teacher(moved(copy.deepcopy(fused), device), model, settings, graphs=config.cuda_graphs)
            updater = kind(model, teacher, settings, device)
            title = f"{name}, teacher" if with_teacher else name
            found[title] = Contender(updater, MovingAverage(model, 0.99, 50), [])
    return found


def measure(runners: dict[str, Contender], batches: list[TrainBatch], rounds: int) -> None:
    """One step of each a round, after some that do not count: CUDA graphs are recorded in them."""
    source = cycle(batches)
    for number in range(1 - FIRST, rounds + 1):
        batch = next(source)
        order = list(runners.values())
        for runner in order if number % 2 else reversed(order):
            seconds = runner.step(batch)
            if number > 0:
                runner.seconds.append(seconds)


def ratio(own: list[float], other: list[float]) -> float:
    """Median of the ratios of each round: a machine that slows down slows both."""
    return statistics.median(a / b for a, b in zip(own, other, strict=True))


@click.command(help=__doc__)
@click.option("--model", default="yolov6lite_s", show_default=True)
@click.option("--imgsz", default=320, show_default=True)
@click.option("--batch", default=8, show_default=True)
@click.option("--scheme", type=click.Choice(["symmetric", "asymmetric"]), default="symmetric", show_default=True)
@click.option("--rounds", default=15, show_default=True)
@click.option("--threads", default=2, show_default=True, help="Threads of torch.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--graphs/--no-graphs", default=True, show_default=True, help="On a GPU, CUDA graphs of the passes.")
@click.option("--save", is_flag=True, help="Write the samples to benchmarks/results/.")
def main(
    model: str, imgsz: int, batch: int, scheme: str, rounds: int, threads: int, device: str, graphs: bool, save: bool
) -> None:  # fmt: skip
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    keep_freed_memory()
    size, config = (imgsz, imgsz), QatConfig(batch=batch, workers=0, cuda_graphs=graphs)
    with tempfile.TemporaryDirectory() as folder:
        drawn = make_demo_set(Path(folder) / "demo", DemoConfig(train_images=4 * batch, size=imgsz))
        dataset = load_dataset(drawn, "train")
        cache = ImageCache(dataset.records, size, config.cache_mib << 20)
        batches = list(training_batches(cache, size, config, seed=0, epoch=0))
    fused = build(model, dataset.num_classes, deploy=True).eval()
    settings = PtqConfig(scheme=scheme, calibration=CalibrationConfig(method="max"))  # type: ignore[arg-type]
    calibrated = insert_quantizers(fused, QuantPlan(layer_ids(fused)), settings)
    pixels = torch.from_numpy(batches[0].images).permute(0, 3, 1, 2).float() / 255
    calibrate(calibrated, [pixels.contiguous().numpy()], settings.calibration)

    runners = contenders(fused, calibrated, config, torch.device(device))
    measure(runners, batches, rounds)
    click.echo(f"{model}, {imgsz}x{imgsz}, batch {batch}, {scheme}, {device}, {threads} threads, {rounds} rounds")
    click.echo(f"{'':22} median ms  over float  over float with the same loss")
    rows = []
    for title, runner in runners.items():
        same = runners["float, teacher" if title.endswith("teacher") else "float"]
        row = {
            "step": title,
            "median_ms": 1000 * statistics.median(runner.seconds),
            "over_float": ratio(runner.seconds, runners["float"].seconds),
            "over_float_same_loss": ratio(runner.seconds, same.seconds),
            "samples_ms": [1000 * value for value in runner.seconds],
        }
        rows.append(row)
        click.echo(
            f"{title:22} {row['median_ms']:9.1f}  {row['over_float']:10.2f}  {row['over_float_same_loss']:10.2f}"
        )
    if save:
        path = RESULTS / f"{date.today().isoformat()}-qat-step-{model}-{imgsz}{'' if device == 'cpu' else '-gpu'}.json"
        environment = capture_environment().model_dump(mode="json")
        path.write_text(json.dumps({"settings": config.model_dump(mode="json"), "model": model, "imgsz": imgsz,
                                    "scheme": scheme, "device": device, "threads": threads, "environment": environment,
                                    "rows": rows}, indent=1) + "\n")  # fmt: skip
        click.echo(str(path))


if __name__ == "__main__":
    main()
