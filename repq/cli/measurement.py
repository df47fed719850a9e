"""Commands that measure models: accuracy, agreement, latency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from repq.cli.options import (
    CPU_ENGINES,
    ENGINES,
    RUNTIMES,
    Shell,
    data_options,
    engine_option,
    imgsz_option,
    shared_options,
    threads_option,
)


@click.command("eval")
@click.argument("model", type=Path)
@data_options(required=True)
@imgsz_option
@engine_option
@threads_option
@click.option("--batch", default=16, show_default=True, type=click.IntRange(1))
@click.option("--conf", default=0.03, show_default=True, help="Score threshold.")
@click.option("--iou", default=0.65, show_default=True, help="NMS threshold.")
@click.option("--border", default=0, show_default=True, type=click.IntRange(0), help="Grey border of the letterbox.")
@click.option("--inner-size", type=click.IntRange(1), help="Long side of the image inside the letterbox.")
@shared_options
def evaluate(
    model: Path, data: Path, split: str, imgsz: tuple[int, int], engine: Any, threads: int | None, batch: int,
    conf: float, iou: float, border: int, inner_size: int | None, device: str, seed: int, as_json: bool,
) -> None:  # fmt: skip
    """COCO AP of a model on a data set."""
    from repq.recipe import EvalConfig, LetterboxConfig
    from repq.report.text import accuracy_table
    from repq.stages import evaluate_model

    shell = Shell(as_json)
    letterbox = LetterboxConfig(border=border, inner_size=inner_size)
    accuracy, opened = evaluate_model(
        model, data, split, imgsz, EvalConfig(batch=batch, confidence=conf, iou=iou, letterbox=letterbox),
        engine=engine, device=device, threads=threads, progress=shell.progress, log=shell.log,
    )  # fmt: skip
    values = {
        **accuracy.values(),
        "model": str(model),
        "engine": opened.running.engine,
        "precision": opened.precision,
    }
    shell.finish(
        values, lambda: accuracy_table(accuracy, f"{model.name} ({opened.running.engine}, {opened.precision})")
    )


@click.command()
@click.argument("models", type=Path, nargs=-1, required=True, metavar="MODEL [MODEL]...")
@data_options(required=True)
@imgsz_option
@click.option("--engine", "engines", type=click.Choice(ENGINES), multiple=True, help="Default: those on the CPU.")
@click.option("--max-ap-gap", default=0.005, show_default=True, help="Largest |AP - AP of the reference|.")
@click.option("--min-snr", type=float, help="Smallest SNR of an output, dB.")
@click.option("--images", type=click.IntRange(1), help="Use only the first images of the split.")
@click.option("--batch", default=16, show_default=True, type=click.IntRange(1))
@shared_options
def check(
    models: tuple[Path, ...], data: Path, split: str, imgsz: tuple[int, int], engines: tuple[Any, ...],
    max_ap_gap: float, min_snr: float | None, images: int | None, batch: int, device: str, seed: int, as_json: bool,
) -> None:  # fmt: skip
    """Compare a model with its engines on images.

    Gives the SNR of each output and the AP of each. The first MODEL is the reference; alone, engines are built from it.
    """
    from repq.recipe import CheckConfig, EvalConfig
    from repq.report.text import check_table
    from repq.stages import check_models, demand_agreement

    shell = Shell(as_json)
    config = CheckConfig(images=images, max_ap_gap=max_ap_gap, min_snr_db=min_snr)
    report = check_models(
        models, data, split, imgsz, config, EvalConfig(batch=batch), engines=engines or CPU_ENGINES, device=device,
        progress=shell.progress, log=shell.log,
    )  # fmt: skip
    shell.finish(report.values(), lambda: check_table(report))
    demand_agreement(report)


@click.command()
@click.argument("models", type=Path, nargs=-1, required=True, metavar="MODEL [MODEL]...")
@imgsz_option
@click.option("--engine", "engines", type=click.Choice(RUNTIMES), multiple=True, help="For checkpoints, ONNX files.")
@click.option("--batch", "batches", multiple=True, default=(1,), show_default=True, type=click.IntRange(1))
@click.option("--threads", multiple=True, type=click.IntRange(1), help="Repeat for several.  [default: all cores]")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
@click.option("--runs", default=20, show_default=True, type=click.IntRange(1), help="Timed runs per round.")
@click.option("--warmup", default=5, show_default=True, type=click.IntRange(0))
@click.option("--end-to-end/--infer-only", default=True, help="Also time with pre- and post-processing.")
@data_options(required=False)
@click.option("--images", default=64, show_default=True, type=click.IntRange(1), help="How many of --data.")
@click.option(
    "--loader",
    "loaders",
    type=click.Choice(["opencv", "dali"]),
    multiple=True,
    default=("opencv",),
    show_default=True,
    help="What decodes the images of --data.",
)
@click.option("-o", "--out", type=Path, help="Folder for bench.json and the report.")
@shared_options
def bench(
    models: tuple[Path, ...], imgsz: tuple[int, int], engines: tuple[Any, ...], batches: tuple[int, ...],
    threads: tuple[int, ...], rounds: int, runs: int, warmup: int, end_to_end: bool, data: Path | None, split: str,
    images: int, loaders: tuple[Any, ...], out: Path | None, device: str, seed: int, as_json: bool,
) -> None:  # fmt: skip
    """Time models side by side in one run.

    The first MODEL is what the others are compared with. With --data also the whole way from JPEG files to boxes, step
    by step: which side is the bottleneck.
    """
    import os

    from repq.recipe import BenchConfig
    from repq.report.text import bench_table
    from repq.stages import bench_models, bench_service, write_bench

    shell = Shell(as_json)
    config = BenchConfig(
        batches=batches, threads=threads or (os.cpu_count() or 1,), warmup=warmup, rounds=rounds,
        runs_per_round=runs, end_to_end=end_to_end,
    )  # fmt: skip
    report = bench_models(
        models, imgsz, config, engines=engines, device=device, seed=seed, progress=shell.progress, log=shell.log
    )
    if data is not None and end_to_end:
        rows_of_service = bench_service(
            models, data, split, imgsz, config, engines=engines, loaders=loaders, images=images, device=device,
            progress=shell.progress, log=shell.log,
        )  # fmt: skip
        report = report.model_copy(update={"service": rows_of_service})
    if out is not None:
        write_bench(report, out)
    values = report.values()
    rows = [{key: value for key, value in row.items() if key != "samples_ms"} for row in values.pop("rows")]
    shell.finish({"models": rows, **values}, lambda: bench_table(report))


@click.command()
@click.argument("model", type=Path)
@click.option(
    "--device",
    "devices",
    multiple=True,
    default=("t4",),
    show_default=True,
    help="t4, v100, a10, a100, l4, h100, orin, orin-nano; repeat for several.",
)
@click.option("--batch", "batches", multiple=True, default=(1, 32), show_default=True, type=click.IntRange(1))
@click.option("--fp16", is_flag=True, help="As if what is not INT8 had been exported as FP16.")
@click.option("--top", default=8, show_default=True, type=click.IntRange(0), help="Show this many kernels.")
@shared_options
def estimate(
    model: Path, devices: tuple[str, ...], batches: tuple[int, ...], fp16: bool, top: int, as_json: bool
) -> None:  # fmt: skip
    """Estimate how fast an ONNX graph runs on a device that is not here.

    A roofline model over the kernels that TensorRT is expected to run; nothing is measured.
    """
    from repq.report.text import estimate_tables
    from repq.stages import estimate_graph

    found = estimate_graph(model, devices, batches, as_fp16=fp16)
    values = {"estimated": True, "model": str(model), "estimates": [row.values() for row in found]}
    Shell(as_json).finish(values, lambda: estimate_tables(found, top))
