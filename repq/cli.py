"""The command line: each command parses, calls one stage and prints. Nothing heavy loads before a command runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from repq import __version__
from repq.cli_options import (
    ENGINES,
    RUNTIMES,
    Commands,
    Shell,
    Size,
    data_options,
    engine_option,
    imgsz_option,
    out_option,
    shared_options,
    threads_option,
)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="repq")
def main() -> None:
    """From a trained re-parameterized detector to a measured INT8 engine.

    MODEL is a checkpoint (.pt, .safetensors), an ONNX file or the folder of a built engine. Every command takes
    --json; errors that you can mend exit with 2, results outside a bound with 1.
    """


@main.command()
@click.argument("recipe", type=Path)
@click.option("--work", type=Path, help="Run folder.  [default: runs/NAME]")
@click.option("--weights", type=Path, help="Checkpoint instead of the recipe's.")
@click.option("--data", type=Path, help="data.yaml instead of the recipe's.")
@click.option("--imgsz", type=Size(), help="640 or HEIGHTxWIDTH instead of the recipe's.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override: ptq.calibration.images=256")
@click.option("--device", help="Instead of the recipe's: cpu, cuda …")
@click.option("--seed", type=int, help="Instead of the recipe's.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
def run(
    recipe: Path, work: Path | None, weights: Path | None, data: Path | None, imgsz: tuple[int, int] | None,
    overrides: tuple[str, ...], device: str | None, seed: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Run a whole recipe, from weights or data to a report.

    Stages: train or import, fuse, quantize, export, build, check, evaluate, time, report.
    What is already there is reused; a killed run goes on where it stopped.
    """
    from repq.pipeline import run_recipe
    from repq.recipe import load_recipe
    from repq.report.text import run_table

    flags = {
        "weights": weights and str(weights.resolve()),
        "data.path": data and str(data.resolve()),
        "imgsz": imgsz and list(imgsz),
        "device": device,
        "seed": seed,
    }
    given = [f"{key}={json.dumps(value)}" for key, value in flags.items() if value is not None]
    loaded = load_recipe(recipe, [*overrides, *given])
    shell = Shell(as_json)
    outcome = run_recipe(loaded, work or Path("runs") / loaded.name, progress=shell.progress, log=shell.log)
    values = {
        **outcome.headline,
        "report": str(outcome.report),
        "artifacts": {name: str(artifact.folder) for name, artifact in outcome.artifacts.items()},
        "reused": [name for name, artifact in outcome.artifacts.items() if artifact.reused],
    }
    shell.finish(values, lambda: run_table(outcome.headline) + f"\nreport: {outcome.report}")


@main.command()
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


@main.command()
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


@main.command()
@click.argument("weights", type=Path)
@click.option("--data", type=Path, required=True, help="data.yaml (YOLO) or a COCO .json.")
@click.option("--split", default="train", show_default=True, help="Split to measure and decide on; never report on it.")
@imgsz_option
@click.option("--scheme", type=click.Choice(["symmetric", "asymmetric"]), default="symmetric", show_default=True)
@click.option("--method", type=click.Choice(["max", "percentile", "mse", "entropy"]), default="mse", show_default=True)
@click.option("--calib-images", default=128, show_default=True, type=click.IntRange(1), help="Calibration images.")
@click.option("--images", default=16, show_default=True, type=click.IntRange(1), help="Images for the similarities.")
@click.option("--ap", multiple=True, type=click.Choice(["only_int8", "only_float"]), help="AP sweeps (slow).")
@click.option("--ap-images", type=click.IntRange(1), help="Images for AP.  [default: the whole split]")
@click.option("--measure", default="head.snr", show_default=True, help="Ranks the layers: head.snr, local.mse, ap …")
@click.option("--top", type=click.IntRange(0), help="Keep so many layers in float.  [default: 12]")
@click.option("--max-drop", type=click.FloatRange(0, 1), help="Keep the fewest in float that hold this AP budget.")
@out_option
@shared_options
def sensitivity(
    weights: Path, data: Path, split: str, imgsz: tuple[int, int], scheme: Any, method: Any, calib_images: int,
    images: int, ap: tuple[Any, ...], ap_images: int | None, measure: str, top: int | None, max_drop: float | None,
    out: Path, device: str, seed: int, as_json: bool,
) -> None:  # fmt: skip
    """Measure what quantizing each layer costs, and plan.

    The folder OUT gets sensitivity.json and plan.yaml, which a person can edit and `repq ptq --plan` reads. The same
    command goes on where it was stopped.
    """
    from repq.recipe import CalibrationConfig, EvalConfig, PlanConfig, PtqConfig, SensitivityConfig, parse_settings
    from repq.report.text import sensitivity_table
    from repq.stages import measure_sensitivity

    shell = Shell(as_json)
    aim = {"max_drop": max_drop} if max_drop is not None and top is None else {"top": 12 if top is None else top}
    if max_drop is not None and top is not None:
        raise click.UsageError("give --top or --max-drop, not both")
    calibration = CalibrationConfig(method=method, images=calib_images, seed=seed)
    measured, plan = measure_sensitivity(
        weights, out, SensitivityConfig(images=images, seed=seed, ap=ap, ap_images=ap_images),
        parse_settings(
            PlanConfig, {"measure": measure, "images": ap_images, "seed": seed, **aim}, what="planning"
        ),
        PtqConfig(scheme=scheme, calibration=calibration), data=data, split=split, imgsz=imgsz,
        eval_config=EvalConfig(), device=device, progress=shell.progress, log=shell.log,
    )  # fmt: skip
    values = {**measured.values(), "plan": plan.values(), "out": str(out)}
    shell.finish(values, lambda: sensitivity_table(measured, plan))


@main.command()
@click.argument("weights", type=Path)
@out_option
@data_options(required=True)
@imgsz_option
@click.option("--method", type=click.Choice(["max", "percentile", "mse", "entropy"]), default="mse", show_default=True)
@click.option("--percentile", default=99.99, show_default=True, help="For --method percentile.")
@click.option("--images", default=128, show_default=True, type=click.IntRange(1), help="Calibration images.")
@click.option("--calib", "manifest", type=Path, help="Manifest of calibration images instead of a random draw.")
@click.option("--scheme", type=click.Choice(["symmetric", "asymmetric"]), default="symmetric", show_default=True,
              help="symmetric: INT8 for TensorRT; asymmetric: UINT8 activations for CPU engines.")  # fmt: skip
@click.option("--keep-float", multiple=True, metavar="GLOB", help="Layer id or glob that stays in float.")
@click.option("--plan", type=Path, help="plan.yaml of `repq sensitivity`: its layers stay in float.")
@click.option("--batch", default=16, show_default=True, type=click.IntRange(1))
@shared_options
def ptq(
    weights: Path, out: Path, data: Path, split: str, imgsz: tuple[int, int], method: Any, percentile: float,
    images: int, manifest: Path | None, scheme: Any, keep_float: tuple[str, ...], plan: Path | None, batch: int,
    device: str, seed: int, as_json: bool,
) -> None:  # fmt: skip
    """Quantize WEIGHTS after training.

    Calibrates on the train split, evaluates before and after on --split.
    """
    from repq.recipe import CalibrationConfig, EvalConfig, PtqConfig
    from repq.report.text import ptq_table
    from repq.stages import ptq_checkpoint

    shell = Shell(as_json)
    calibration = CalibrationConfig(
        method=method, percentile=percentile, images=images, batch=batch, seed=seed, manifest=manifest
    )
    report = ptq_checkpoint(
        weights, out, PtqConfig(scheme=scheme, keep_float=keep_float, calibration=calibration),
        data=data, val_split=split, imgsz=imgsz, eval_config=EvalConfig(batch=batch), plan=plan, device=device,
        progress=shell.progress, log=shell.log,
    )  # fmt: skip
    values = {
        "ap_float": report.accuracy_float.ap,
        "ap_quantized": report.accuracy_quantized.ap,
        "layers_int8": [row.layer for row in report.layers if row.precision == "int8"],
        "layers_float": [row.layer for row in report.layers if row.precision == "float"],
        "out": str(out),
        **report.values(),
    }
    shell.finish(values, lambda: ptq_table(report))


@main.command()
@click.argument("model", type=Path)
@out_option
@imgsz_option
@click.option("--batch", default="1", show_default=True, help="Batch size, or 'dynamic'.")
@click.option("--opset", default=19, show_default=True, type=click.IntRange(19, 21))
@click.option("--merge-scales", "merge", is_flag=True, help="For TensorRT: one scale where unequal ones cost kernels.")
@click.option("--fp16", is_flag=True, help="For TensorRT: what is not INT8 becomes FP16.")
@shared_options
def export(
    model: Path, out: Path, imgsz: tuple[int, int], batch: str, opset: int, merge: bool, fp16: bool, as_json: bool
) -> None:
    """Write a checkpoint as ONNX.

    A quantized MODEL gets Q/DQ nodes; any other is fused and stays float.
    """
    from repq.recipe import ExportConfig
    from repq.stages import export_checkpoint

    if batch != "dynamic" and not (batch.isdigit() and int(batch) > 0):
        raise click.BadParameter("give a positive number or 'dynamic'", param_hint="--batch")
    size = None if batch == "dynamic" else int(batch)
    config = ExportConfig(opset=opset, batch=size, merge_scales=merge, float16=fp16)
    values = export_checkpoint(model, out, imgsz, config)
    text = (
        f"{out}: {values['layers_int8']} layers INT8, {values['layers_float']} float; {values['qdq']['quantize']} Q, "
        f"{values['qdq']['extra_kernels']} predicted extra kernels in TensorRT ({values['qdq']['avoidable']} avoidable)"
    )
    Shell(as_json).finish(values, text)


@main.command()
@click.argument("model", type=Path)
@click.option("--fail-on", type=click.Choice(["error", "warning", "info"]), default="warning", show_default=True,
              help="Exit with 1 from this severity on.")  # fmt: skip
@shared_options
def lint(model: Path, fail_on: Any, as_json: bool) -> None:
    """Look at an ONNX file through TensorRT's eyes.

    Says without a GPU which layers run in INT8, which Q/DQ the parser refuses and which cost extra kernels.
    """
    from dataclasses import asdict

    from repq.report.text import lint_table
    from repq.stages import lint_graph

    report = lint_graph(model)
    values = asdict(report)
    Shell(as_json).finish(values, lambda: lint_table(values))
    sys.exit(report.exit_code(fail_on))


@main.command()
@click.argument("model", type=Path)
@click.option("--engine", type=click.Choice(ENGINES), required=True)
@out_option
@threads_option
@shared_options
def build(model: Path, engine: Any, out: Path, threads: int | None, as_json: bool) -> None:
    """Build an engine from an ONNX file.

    Says which precision every layer of MODEL really runs in.
    """
    from repq.recipe import BuildConfig
    from repq.report.text import engine_table
    from repq.stages import build_engine

    description = build_engine(model, out, engine, BuildConfig(engines=(engine,), threads=threads))
    Shell(as_json).finish({**description.values(), "out": str(out)}, lambda: engine_table(description))


@main.command()
@click.argument("model", type=Path)
@engine_option
@imgsz_option
@threads_option
@shared_options
def describe(model: Path, engine: Any, imgsz: tuple[int, int], threads: int | None, as_json: bool) -> None:
    """List the layers of a model.

    Their ids and sizes, and the precision that the runtime uses.
    """
    from repq.stages import describe_model

    values, text = describe_model(model, engine, imgsz, threads)
    Shell(as_json).finish(values, text)


@main.command("eval")
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
    accuracy, predictor = evaluate_model(
        model, data, split, imgsz, EvalConfig(batch=batch, confidence=conf, iou=iou, letterbox=letterbox),
        engine=engine, device=device, threads=threads, progress=shell.progress, log=shell.log,
    )  # fmt: skip
    values = {
        **accuracy.values(),
        "model": str(model),
        "engine": predictor.engine,
        "precision": predictor.precision,
    }
    shell.finish(values, lambda: accuracy_table(accuracy, f"{model.name} ({predictor.engine}, {predictor.precision})"))


@main.command()
@click.argument("models", type=Path, nargs=-1, required=True, metavar="MODEL [MODEL]...")
@data_options(required=True)
@imgsz_option
@click.option("--engine", "engines", type=click.Choice(ENGINES), multiple=True, help="Default: all of them.")
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
        models, data, split, imgsz, config, EvalConfig(batch=batch), engines=engines or ENGINES, device=device,
        progress=shell.progress, log=shell.log,
    )  # fmt: skip
    shell.finish(report.values(), lambda: check_table(report))
    demand_agreement(report)


@main.command()
@click.argument("models", type=Path, nargs=-1, required=True, metavar="MODEL [MODEL]...")
@imgsz_option
@click.option("--engine", "engines", type=click.Choice(RUNTIMES), multiple=True, help="For checkpoints, ONNX files.")
@click.option("--batch", "batches", multiple=True, default=(1,), show_default=True, type=click.IntRange(1))
@click.option("--threads", multiple=True, type=click.IntRange(1), help="Repeat for several.  [default: all cores]")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
@click.option("--runs", default=20, show_default=True, type=click.IntRange(1), help="Timed runs per round.")
@click.option("--warmup", default=5, show_default=True, type=click.IntRange(0))
@click.option("--end-to-end/--infer-only", default=True, help="Also time with pre- and post-processing.")
@click.option("-o", "--out", type=Path, help="Folder for bench.json, bench.md and bench.svg.")
@shared_options
def bench(
    models: tuple[Path, ...], imgsz: tuple[int, int], engines: tuple[Any, ...], batches: tuple[int, ...],
    threads: tuple[int, ...], rounds: int, runs: int, warmup: int, end_to_end: bool, out: Path | None,
    device: str, seed: int, as_json: bool,
) -> None:  # fmt: skip
    """Time models side by side in one run.

    The first MODEL is what the others are compared with.
    """
    import os

    from repq.recipe import BenchConfig
    from repq.report.text import bench_table
    from repq.stages import bench_models, write_bench

    shell = Shell(as_json)
    config = BenchConfig(
        batches=batches, threads=threads or (os.cpu_count() or 1,), warmup=warmup, rounds=rounds,
        runs_per_round=runs, end_to_end=end_to_end,
    )  # fmt: skip
    report = bench_models(
        models, imgsz, config, engines=engines, device=device, seed=seed, progress=shell.progress, log=shell.log
    )
    if out is not None:
        write_bench(report, out)
    values = report.values()
    rows = [{key: value for key, value in row.items() if key != "samples_ms"} for row in values.pop("rows")]
    shell.finish({"models": rows, **values}, lambda: bench_table(report))


@main.command()
@click.option("--data", type=Path, required=True, help="data.yaml (YOLO) or a COCO .json.")
@click.option("--split", default="train", show_default=True)
@click.option("--images", default=128, show_default=True, type=click.IntRange(1))
@out_option
@shared_options
def calib(data: Path, split: str, images: int, out: Path, seed: int, as_json: bool) -> None:
    """Draw calibration images and write a manifest.

    The manifest holds names and hashes, no images.
    """
    from repq.stages import draw_calibration_set

    count = draw_calibration_set(data, split, images, seed, out)
    Shell(as_json).finish({"images": count, "out": str(out)}, f"{out}: {count} images")


@main.command()
@shared_options
def doctor(as_json: bool) -> None:
    """Say which engines work here, and why others do not."""
    from repq.report.text import doctor_table
    from repq.stages import diagnose_machine

    environment, rows = diagnose_machine()
    values = {
        "environment": environment.values(),
        "runtimes": [row.values() for row in rows],
    }
    Shell(as_json).finish(values, lambda: doctor_table(environment, rows))
