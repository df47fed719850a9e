"""FP32 against INT8 on this CPU: repq's engines, NNCF and ONNX Runtime's own quantizer, side by side in one run.

The weights are random, with batch-norm statistics from real forward passes: speed does not depend on their values, as
long as no activation is dead or infinite. Files that ``repq export --for`` writes run in the plain runtimes, too.

    python benchmarks/compare_int8_cpu.py                      # YOLOv6-S, 640x640, batch 1, two threads
    python benchmarks/compare_int8_cpu.py --weights ../shared/checkpoints/yolov6lite_s_coco.pt --imgsz 320
    python benchmarks/compare_int8_cpu.py --model yolov6n_v2 --imgsz 320 --threads 1 --threads 2
"""

from __future__ import annotations

import datetime
import tempfile
from importlib.util import find_spec
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from peers import NncfPeer, OnnxRuntimePeer, OpenVinoPeer, Peer, QuantizeStaticPeer, summary

from repq.bench import Runner, TimedModel, bench
from repq.engine import build as build_engine
from repq.engine import load as load_engine
from repq.export import export_float, export_quantized, load_onnx, save_onnx
from repq.graph.forms import in_form
from repq.machine.cpu import has_dot_products
from repq.model import Detector, build
from repq.progress import on_terminal
from repq.quant import load_weights, quantize
from repq.recipe import BenchConfig, BuildConfig, CalibrationConfig, EngineName, ExportConfig, PtqConfig
from repq.reparam import fuse
from repq.report.findings import disturbed, load_of
from repq.report.numbers import significant
from repq.results import BenchReport, ModelInfo

RESULTS = Path(__file__).parent / "results"


def smooth_noise(count: int, imgsz: tuple[int, int], seed: int) -> list[NDArray[np.float32]]:
    """Images (1, 3, H, W) in 0..1 of coarse and fine noise: something with edges and flat parts."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        image = np.zeros((1, 3, *imgsz), np.float32)
        for cell in (64, 16, 4, 1):
            shape = (1, 3, -(-imgsz[0] // cell), -(-imgsz[1] // cell))
            coarse = rng.random(shape, dtype=np.float32).repeat(cell, 2).repeat(cell, 3)
            image += coarse[..., : imgsz[0], : imgsz[1]] / 4
        images.append(image)
    return images


def random_model(name: str, imgsz: tuple[int, int], seed: int) -> Detector:
    """A fused detector with random weights whose batch norms have seen real activations."""
    torch.manual_seed(seed)
    model = build(name)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the plain average of all passes
    model.train()
    batch = torch.from_numpy(np.concatenate(smooth_noise(4, imgsz, seed)))
    with torch.no_grad():
        for _ in range(2):
            model(batch)
    return fuse(model.eval())


def float_and_int8(
    model: Detector, images: list[NDArray[np.float32]], imgsz: tuple[int, int], batch: int, folder: Path
) -> dict[str, Path]:
    """Write the float graph and repq's two Q/DQ graphs."""
    config = ExportConfig(batch=batch)
    paths = {"FP32": folder / "float.onnx"}
    save_onnx(paths["FP32"], export_float(model, imgsz, config))
    calibration = CalibrationConfig(method="percentile", images=len(images))
    for scheme in ("symmetric", "asymmetric"):
        ptq = PtqConfig(scheme=scheme, calibration=calibration)
        quantized = quantize(model, [torch.from_numpy(image) for image in images], ptq)
        paths[f"repq INT8 ({scheme})"] = folder / f"{scheme}.onnx"
        save_onnx(paths[f"repq INT8 ({scheme})"], export_quantized(quantized.model, imgsz, config))
    return paths


def plain_files(path: Path, label: str) -> list[Peer]:
    """The file of a graph in each form that is right on this CPU, run by its runtime alone."""
    kinds: dict[str, type[OnnxRuntimePeer] | type[OpenVinoPeer]] = {
        "onnxruntime": OnnxRuntimePeer,
        **({"onnxruntime-vnni": OnnxRuntimePeer} if has_dot_products() else {}),
        "openvino": OpenVinoPeer,
    }
    found: list[Peer] = []
    for form, kind in kinds.items():
        written = path.with_suffix(f".{form}.onnx")
        save_onnx(written, in_form(load_onnx(path), form)[0])
        found.append(kind(f"{label}, file --for {form}", written))
    return found


def repq_model(label: str, engine: EngineName, onnx_path: Path, folder: Path) -> TimedModel:
    """Build and save one of repq's engines, and open it again for every number of threads."""
    built = build_engine(engine, onnx_path, BuildConfig())
    saved = folder / f"{engine}-{onnx_path.stem}"
    built.save(saved)
    description = built.describe()

    def opened(threads: int) -> Runner:
        return Runner(load_engine(saved, threads=threads).infer)

    info = ModelInfo(
        model=f"{label}, {engine}",
        engine=engine,
        variant="int8" if built.manifest.int8_layers else "float32",
        precision=summary(description.layers),
        size_bytes=description.size_bytes,
    )
    return TimedModel(info, opened, built.batch)


def markdown(report: BenchReport, title: str) -> str:
    """The report as a table, with every model's speed relative to FP32 in its own engine too."""
    environment = report.environment
    base = {
        (row.engine, row.batch, row.threads): row.latency_ms_median
        for row in report.rows
        if row.model.startswith("FP32")
    }
    lines = [
        f"# {title}",
        "",
        f"{environment.cpu}, {environment.cores} cores, {', '.join(environment.cpu_features)}; load at the start "
        f"{environment.load_average}; {environment.os}; Python {environment.python}.",
        "",
        ", ".join(f"{name} {version}" for name, version in environment.libraries.items()) + ".",
        "",
        f"{report.imgsz[0]}x{report.imgsz[1]} pixels, {report.rounds} rounds in alternating order, "
        f"{report.rows[0].runs} runs of each. Times are of a whole batch. {load_of(report)}.",
        *(f"\n**{note.text}**" for note in disturbed(report)),
        "",
        "| model | convolutions that run as | batch | threads | median ms | p95 ms | images/s | "
        "times FP32, same engine | times the first row | MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in report.rows:
        own = base[row.engine, row.batch, row.threads] / row.latency_ms_median
        lines.append(
            f"| {row.model} | {row.precision} | {row.batch} | {row.threads} | {row.latency_ms_median:.1f} | "
            f"{significant(row.latency_ms_p95)} | {row.images_per_s:.1f} | {own:.2f} | {row.speedup or 0:.2f} | "
            f"{row.size_bytes / 1e6:.1f} |"
        )
    return "\n".join(lines) + "\n"


@click.command(help=__doc__)
@click.option("--model", "name", default="yolov6s", show_default=True)
@click.option("--weights", type=Path, help="A checkpoint in place of random weights.")
@click.option("--imgsz", default=640, show_default=True)
@click.option("--batch", default=1, show_default=True)
@click.option("--threads", multiple=True, type=int, default=(2,), show_default=True)
@click.option("--rounds", default=8, show_default=True)
@click.option("--runs", default=8, show_default=True, help="Runs of each model in a round.")
@click.option("--images", "count", default=8, show_default=True, help="Calibration images.")
@click.option("--seed", default=0, show_default=True)
@click.option("--out", type=Path, default=RESULTS, show_default=True)
def main(
    name: str,
    weights: Path | None,
    imgsz: int,
    batch: int,
    threads: tuple[int, ...],
    rounds: int,
    runs: int,
    count: int,
    seed: int,
    out: Path,
) -> None:
    size = (imgsz, imgsz)
    images = [image.repeat(batch, 0) for image in smooth_noise(count, size, seed + 1)]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = random_model(name, size, seed) if weights is None else fuse(load_weights(weights).model)
        name = model.spec.name
        paths = float_and_int8(model, images, size, batch, folder)
        engines: tuple[EngineName, ...] = ("openvino", "onnxruntime")
        models = [repq_model(label, engine, path, folder) for label, path in paths.items() for engine in engines]
        peers = [peer for label, path in paths.items() if label != "FP32" for peer in plain_files(path, label)]
        peers.append(QuantizeStaticPeer(paths["FP32"], images, folder))
        if find_spec("nncf"):
            peers.append(NncfPeer(paths["FP32"], images, "performance"))
        models += [peer.timed(batch) for peer in peers]
        config = BenchConfig(
            batches=(batch,), threads=threads, warmup=3, rounds=rounds, runs_per_round=runs, end_to_end=False
        )
        report = bench(models, size, config, seed=seed, progress=on_terminal)
    title = f"INT8 on a CPU: {name} at {imgsz}x{imgsz}"
    out.mkdir(parents=True, exist_ok=True)
    stem = f"{datetime.date.today():%Y-%m-%d}-int8-cpu-{name}-{imgsz}"
    (out / f"{stem}.json").write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    (out / f"{stem}.md").write_text(markdown(report, title), encoding="utf-8")
    click.echo(markdown(report, title))
    click.echo(f"written: {out / stem}.md and .json", err=True)


if __name__ == "__main__":
    main()
