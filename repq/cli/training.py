"""Commands on float checkpoints: train and fuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from repq.cli.options import Shell, data_options, imgsz_option, out_option, shared_options


@click.command()
@click.option("--data", type=Path, required=True, help="data.yaml (YOLO) or a COCO .json with both splits.")
@imgsz_option
@click.option("--model", default="yolov6n_v2", show_default=True, help="yolov6s, yolov6n_v2_hs, yolov6n_v2_opt …")
@click.option("--weights", type=Path, help="Checkpoint to fine-tune.")
@click.option("--rep-scales", type=Path, help="scales.safetensors of a hyper-search (…_hs) training, for …_opt models.")
@click.option("--teacher", type=Path, help="Checkpoint of the same model for self-distillation.")
@click.option("--epochs", default=60, show_default=True, type=click.IntRange(1))
@click.option("--batch", default=16, show_default=True, type=click.IntRange(1))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Other settings: learning_rate=0.02")
@out_option
@shared_options
def train(
    data: Path, imgsz: tuple[int, int], model: str, weights: Path | None, rep_scales: Path | None,
    teacher: Path | None, epochs: int, batch: int, overrides: tuple[str, ...], out: Path,
    device: str, seed: int, as_json: bool,
) -> None:  # fmt: skip
    """Train a detector, plain or with RepOptimizer.

    The folder OUT gets weights.safetensors, train.json and, from a hyper-search model (…_hs), scales.safetensors for
    the RepOptimizer training of the matching …_opt model. The same command goes on where it was stopped. Under
    torchrun several processes share the work.
    """
    from repq.recipe import EvalConfig, TrainConfig, parse_settings
    from repq.report.text import train_table
    from repq.stages import train_detector

    shell = Shell(as_json)
    given: dict[str, Any] = {"model": model, "epochs": epochs, "batch": batch, "weights": weights}
    given |= {"rep_scales": rep_scales, "distill": {"teacher": teacher} if teacher else None}
    config = parse_settings(TrainConfig, given, overrides, what="training")
    report = train_detector(
        out, out / "state", config, data=data, imgsz=imgsz, eval_config=EvalConfig(batch=batch), device=device,
        seed=seed, progress=shell.progress, log=shell.log,
    )  # fmt: skip
    shell.finish({**report.values(), "out": str(out)}, lambda: train_table(report))


@click.command()
@click.argument("weights", type=Path)
@out_option
@data_options(required=False)
@imgsz_option
@click.option("--images", default=8, show_default=True, type=click.IntRange(1), help="Images for the proof.")
@click.option("--tolerance", default=1e-3, show_default=True, help="Bound of the relative error.")
@shared_options
def fuse(
    weights: Path, out: Path, data: Path | None, split: str, imgsz: tuple[int, int], images: int, tolerance: float,
    device: str, seed: int, as_json: bool,
) -> None:  # fmt: skip
    """Fold the branches of WEIGHTS, with a proof per block.

    Every block becomes one plain convolution; the error is measured on images.
    """
    from repq.recipe import FuseConfig
    from repq.report.text import fusion_table
    from repq.stages import fuse_checkpoint

    shell = Shell(as_json)
    report = fuse_checkpoint(
        weights, out, FuseConfig(tolerance=tolerance, images=images), data=data, split=split, imgsz=imgsz,
        device=device, seed=seed, log=shell.log,
    )  # fmt: skip
    shell.finish({**report.values(), "out": str(out)}, lambda: fusion_table(report))
