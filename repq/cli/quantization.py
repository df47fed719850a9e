"""Commands that quantize, and that find out what to leave in float."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from repq.cli.options import ENGINES, Shell, data_options, imgsz_option, out_option, shared_options


@click.command()
@click.argument("weights", type=Path)
@click.option("--data", type=Path, required=True, help="data.yaml (YOLO) or a COCO .json.")
@click.option("--split", default="train", show_default=True, help="Split to measure and decide on; never report on it.")
@imgsz_option
@click.option("--scheme", type=click.Choice(["symmetric", "asymmetric"]), default="symmetric", show_default=True)
@click.option("--method", type=click.Choice(["max", "percentile", "mse", "entropy"]), default="mse", show_default=True)
@click.option("--auto", is_flag=True, help="Choose --method and all corrections by what they gain on train images.")
@click.option("--calib-images", default=128, show_default=True, type=click.IntRange(1), help="Calibration images.")
@click.option("--images", default=16, show_default=True, type=click.IntRange(1), help="Images for the similarities.")
@click.option("--ap", multiple=True, type=click.Choice(["only_int8", "only_float"]), help="AP sweeps (slow).")
@click.option("--ap-images", type=click.IntRange(1), help="Images for AP.  [default: the whole split]")
@click.option("--measure", metavar="NAME", help="Rank the layers by local.snr, head.mse, ap.only_int8 … "
              "[default: local.snr; with --max-drop the best of several]")  # fmt: skip
@click.option("--top", type=click.IntRange(0), help="Keep so many layers in float.  [default: 12]")
@click.option("--max-drop", type=click.FloatRange(0, 1), help="Keep the fewest in float that hold this AP budget.")
@click.option("--min-int8", default=0.9, show_default=True, type=click.FloatRange(0, 1),
              help="Share of the multiply-adds that stays in INT8 in any case.")  # fmt: skip
@click.option("--latency", type=click.Choice(ENGINES), help="Weigh by milliseconds in this engine; needs --max-drop.")
@click.option("--keep-float", multiple=True, metavar="GLOB", help="Layer id or glob that every plan keeps in float.")
@out_option
@shared_options
def sensitivity(
    weights: Path, data: Path, split: str, imgsz: tuple[int, int], scheme: Any, method: Any, auto: bool,
    calib_images: int, images: int, ap: tuple[Any, ...], ap_images: int | None, measure: str | None, top: int | None,
    max_drop: float | None, min_int8: float, latency: Any, keep_float: tuple[str, ...], out: Path, device: str,
    seed: int, as_json: bool,
) -> None:  # fmt: skip
    """Measure what quantizing each layer costs, and plan.

    The folder OUT gets sensitivity.json, report.html and plan.yaml, which a person can edit and `repq ptq --plan`
    reads. The same command goes on where it was stopped. Under torchrun several processes share the work.
    """
    from repq.recipe import CalibrationConfig, EvalConfig, PlanConfig, PtqConfig, SensitivityConfig, parse_settings
    from repq.report.text import sensitivity_table
    from repq.stages import measure_sensitivity

    shell = Shell(as_json)
    if max_drop is not None and top is not None:
        raise click.UsageError("give --top or --max-drop, not both")
    aim = {"top": 12 if top is None else top} if max_drop is None else {"max_drop": max_drop, "min_int8": min_int8}
    calibration = CalibrationConfig(method=method, images=calib_images, seed=seed)
    measured, plan = measure_sensitivity(
        weights, out, SensitivityConfig(images=images, seed=seed, ap=ap, ap_images=ap_images),
        parse_settings(
            PlanConfig, {"measure": measure, "images": ap_images, "seed": seed, "latency": latency, **aim},
            what="planning",
        ),
        PtqConfig(scheme=scheme, calibration=calibration, keep_float=keep_float, auto=auto), data=data, split=split,
        imgsz=imgsz, eval_config=EvalConfig(), device=device, progress=shell.progress, log=shell.log,
    )  # fmt: skip
    assert plan is not None
    values = {**measured.values(), "plan": plan.values(), "out": str(out)}
    shell.finish(values, lambda: sensitivity_table(measured, plan))


@click.command()
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
@click.option("--share-scales", type=click.Choice(["none", "largest", "joint"]), default="none", show_default=True,
              help="One scale for tensors that meet in a Concat or an addition.")  # fmt: skip
@click.option("--keep-float", multiple=True, metavar="GLOB", help="Layer id or glob that stays in float.")
@click.option("--plan", type=Path, help="plan.yaml of `repq sensitivity`: its layers stay in float.")
@click.option("--auto", is_flag=True, help="Choose --method and all corrections by what they gain on train images.")
@click.option("--channel-inputs", is_flag=True, help="A scale per channel for the inputs of depthwise convolutions.")
@click.option("--equalize", is_flag=True, help="Even out ranges along chains of convolutions.")
@click.option(
    "--split-below",
    type=float,
    metavar="DB",
    help="Run layers whose weights have a lower SNR in INT8 as two convolutions.",
)
@click.option("--rounding", type=click.Choice(["nearest", "adaptive"]), default="nearest", show_default=True)
@click.option(
    "--outputs",
    type=click.Choice(["as_they_are", "mean", "moments"]),
    default="as_they_are",
    show_default=True,
    help="Correct the mean, or mean and variance, of every layer's outputs.",
)
@click.option("--batch", default=16, show_default=True, type=click.IntRange(1))
@shared_options
def ptq(
    weights: Path, out: Path, data: Path, split: str, imgsz: tuple[int, int], method: Any, percentile: float,
    images: int, manifest: Path | None, scheme: Any, share_scales: Any, keep_float: tuple[str, ...], plan: Path | None,
    auto: bool, channel_inputs: bool, equalize: bool, split_below: float | None, rounding: Any, outputs: Any,
    batch: int, device: str, seed: int, as_json: bool,
) -> None:  # fmt: skip
    """Quantize WEIGHTS after training.

    Calibrates on the train split, evaluates before and after on --split. With --auto the images of the last quarter of
    the calibration set judge instead of calibrating.
    """
    from repq.recipe import CalibrationConfig, CorrectionConfig, EvalConfig, PtqConfig
    from repq.report.text import ptq_table
    from repq.stages import ptq_checkpoint

    shell = Shell(as_json)
    calibration = CalibrationConfig(
        method=method, percentile=percentile, images=images, batch=batch, seed=seed, manifest=manifest
    )
    correct = CorrectionConfig(
        channel_inputs=channel_inputs, equalize=equalize, split_below_db=split_below, rounding=rounding,
        outputs=outputs,
    )  # fmt: skip
    if auto and correct != CorrectionConfig():
        raise click.UsageError("--auto chooses the corrections itself: give either it or them")
    report = ptq_checkpoint(
        weights, out,
        PtqConfig(
            scheme=scheme, share_scales=share_scales, keep_float=keep_float, calibration=calibration, correct=correct,
            auto=auto,
        ),
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


@click.command()
@click.argument("weights", type=Path)
@out_option
@data_options(required=True)
@imgsz_option
@click.option("--teacher", type=Path, help="Float checkpoint to imitate.  [default: the float weights of WEIGHTS]")
@click.option("--epochs", default=30, show_default=True, type=click.IntRange(1))
@click.option("--batch", default=8, show_default=True, type=click.IntRange(1))
@click.option("--scales", type=click.Choice(["learned", "frozen"]), default="learned", show_default=True,
              help="Whether scales are learned with the weights or stay as calibrated.")  # fmt: skip
@click.option("--task-weight", type=click.FloatRange(0), help="Weight of the labels; 0 needs none.")
@click.option("--keep-float", multiple=True, metavar="GLOB", help="Layer id or glob that stays in float.")
@click.option("--plan", type=Path, help="plan.yaml of `repq sensitivity`: its layers stay in float.")
@click.option("--scheme", type=click.Choice(["symmetric", "asymmetric"]),
              help="To calibrate float WEIGHTS with.  [default: symmetric]")  # fmt: skip
@click.option("--method", type=click.Choice(["max", "percentile", "mse", "entropy"]), default="mse", show_default=True,
              help="To calibrate float WEIGHTS with.")  # fmt: skip
@click.option("--images", default=128, show_default=True, type=click.IntRange(1), help="Calibration images.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Other settings: learning_rate=0.0005")
@shared_options
def qat(
    weights: Path, out: Path, data: Path, split: str, imgsz: tuple[int, int], teacher: Path | None, epochs: int,
    batch: int, scales: str, task_weight: float | None, keep_float: tuple[str, ...], plan: Path | None, scheme: Any,
    method: Any, images: int, overrides: tuple[str, ...], device: str, seed: int, as_json: bool,
) -> None:  # fmt: skip
    """Train WEIGHTS to answer in INT8 as they do in float.

    WEIGHTS is what `repq ptq` wrote, or a float checkpoint, which is calibrated first. OUT has the form of what
    `repq ptq` writes. The same command goes on where it was stopped. Under torchrun several processes share the work.
    """
    from repq.recipe import CalibrationConfig, EvalConfig, QatConfig, parse_settings
    from repq.report.text import qat_table
    from repq.stages import QatSource, qat_checkpoint

    shell = Shell(as_json)
    given = {"epochs": epochs, "batch": batch, "scales": scales, "task_weight": task_weight}
    source = QatSource(
        weights,
        teacher,
        scheme,
        keep_float,
        plan,
        CalibrationConfig(method=method, images=images, batch=batch, seed=seed),
    )
    report = qat_checkpoint(
        source, out, out.with_name(f"{out.name}.state"), parse_settings(QatConfig, given, overrides, what="QAT"),
        data=data, splits=("train", split), imgsz=imgsz, eval_config=EvalConfig(batch=batch), device=device, seed=seed,
        progress=shell.progress, log=shell.log,
    )  # fmt: skip
    values = {
        "ap_float": report.accuracy_float.ap,
        "ap_calibrated": report.accuracy_calibrated.ap,
        "ap_trained": report.accuracy_trained.ap,
        "out": str(out),
        **report.values(),
    }
    shell.finish(values, lambda: qat_table(report))


@click.command()
@click.argument("weights", type=Path)
@click.option("--data", type=Path, required=True, help="data.yaml (YOLO) or a COCO .json.")
@click.option("--split", default="train", show_default=True, help="Split to look at; it is never reported on.")
@imgsz_option
@click.option("--scheme", type=click.Choice(["symmetric", "asymmetric"]), default="symmetric", show_default=True)
@click.option("--method", type=click.Choice(["max", "percentile", "mse", "entropy"]), default="mse", show_default=True)
@click.option("--images", default=48, show_default=True, type=click.IntRange(2), help="Two thirds calibrate.")
@click.option("--batch", default=16, show_default=True, type=click.IntRange(1))
@shared_options
def diagnose(
    weights: Path, data: Path, split: str, imgsz: tuple[int, int], scheme: Any, method: Any, images: int, batch: int,
    device: str, seed: int, as_json: bool,
) -> None:  # fmt: skip
    """Say which way to INT8 WEIGHTS need.

    Looks at ranges and errors of every layer, tries what needs no training, and gives the evidence: plain PTQ,
    corrections, some layers in float, retraining with RepOptimizer, or QAT.
    """
    from repq.recipe import CalibrationConfig, EvalConfig, PtqConfig
    from repq.report.diagnosis import ADVICE, diagnosis_table
    from repq.stages import diagnose_checkpoint

    shell = Shell(as_json)
    calibration = CalibrationConfig(method=method, images=images, batch=batch, seed=seed)
    diagnosis = diagnose_checkpoint(
        weights, PtqConfig(scheme=scheme, calibration=calibration), data=data, split=split, imgsz=imgsz,
        eval_config=EvalConfig(batch=batch), device=device, progress=shell.progress, log=shell.log,
    )  # fmt: skip
    values = {**diagnosis.values(), "says": ADVICE[diagnosis.advice]}
    shell.finish(values, lambda: diagnosis_table(diagnosis))
