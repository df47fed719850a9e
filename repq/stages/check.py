"""Agreement of the simulation with the engines as a stage."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from repq.api.measuring import agreement
from repq.api.opening import engines_of, labels, load
from repq.errors import RepqError, ToleranceError
from repq.files import write_text
from repq.recipe import CheckConfig, EngineName, default_engines
from repq.results import Accuracies, Agreement, CheckReport
from repq.stages.build import built
from repq.stages.context import Context
from repq.stages.stage import Job, Section, Stage

ACCURACIES = "accuracies.json"
"""AP of the engines that were checked, apart from the bounds of the check."""


def check_models(
    models: Sequence[Path], config: CheckConfig, context: Context, *, engines: Sequence[EngineName] = ()
) -> CheckReport:
    """Compare models with the first one; alone, it is compared with the engines built from it.

    Args:
        engines: what runs ONNX files, and what is built of a checkpoint alone. Default: those on the CPU, and for a
            file in the form of a runtime that runtime.

    Raises:
        RepqError: a model or the data cannot be used.
    """
    dataset, imgsz, log = context.val_set(), context.imgsz, context.log
    reference_path, *others = models
    if not others and (reference_path.is_dir() or reference_path.suffix == ".onnx"):
        raise RepqError(
            f"{reference_path} has nothing to be compared with",
            fix="give the checkpoint that it was exported from as the first MODEL",
        )
    open_ = partial(load, imgsz=imgsz, graph=context.graph, log=log)
    reference = open_(reference_path, device=context.device)
    if others:
        candidates = [
            replace(open_(path, engine=engine), label=label)
            for path, label in zip(others, labels(others), strict=True)
            for engine in ((engines or engines_of(path)) if path.suffix == ".onnx" else (None,))
        ]
    else:
        candidates = [open_(reference_path, engine=engine) for engine in engines or default_engines()]
    return agreement(reference, candidates, dataset, imgsz, config, context.eval_config, context.progress, log)


def demand_agreement(report: CheckReport, proven: Collection[str] = ()) -> None:
    """Fail if the check did.

    Args:
        proven: engines whose own AP holds the budget; see `CheckReport.failing`.

    Raises:
        ToleranceError: an engine's AP or SNR is outside the bounds.
    """
    failing = report.failing(proven)
    if not failing:
        return
    worst = failing[0]
    if worst.ap_gap is None and report.min_snr_db is None:
        raise ToleranceError(
            "the engines cannot be compared by AP: the reference finds no object",
            found=f"AP 0 in {report.reference.images} images; {_snrs(worst)}",
            fix="look at what it finds (repq predict), its preset and image size; or compare outputs: --min-snr 30",
        )
    bound = "" if report.min_snr_db is None else f", and an SNR of {report.min_snr_db:g} dB or more"
    raise ToleranceError(
        "the engines do not compute what the reference computes",
        found=f"{worst.title}: AP gap {_gap(worst)}, {_snrs(worst)}; allowed: {report.max_drop:g}{bound}",
        fix="run `repq describe` on the engine and look for layers in another precision than planned",
    )


def _snrs(row: Agreement) -> str:
    return "SNR " + ", ".join(f"{snr:.1f} dB of {name}" for name, snr in row.snr_db.items())


def _gap(row: Agreement) -> str:
    return "not measurable" if row.ap_gap is None else f"{row.ap_gap:+.4f}"


def _check(job: Job) -> CheckReport | None:
    """Compare what was built in INT8 with the simulation; None where all that was built is in float."""
    config, engines = job.section("check", CheckConfig), built(job, "int8")
    if not engines:
        write_text(job.payload / ACCURACIES, Accuracies(models={}).model_dump_json(indent=1))
        return None
    report = check_models([job.quantized, *engines.values()], config, job.context)
    for row in report.engines:
        job.log(f"  {row.title}: AP {row.accuracy.ap:.4f} ({_gap(row)})")
    found = Accuracies(models={row.model: row.accuracy for row in report.engines})
    write_text(job.payload / ACCURACIES, found.model_dump_json(indent=1))
    typed = job.artifacts["export"] / "int8_float16.onnx"
    if typed.is_file():  # what TensorRT gets: ONNX Runtime can run it too
        pair = [job.artifacts["export"] / "int8.onnx", typed]
        against = check_models(pair, config, replace(job.context, device="cpu"), engines=("onnxruntime",))
        report = report.model_copy(update={"typed": against.engines[0]})
    return report


STAGE = Stage(
    "check", _check, {"check": Section(CheckConfig)}, ("imgsz", "eval", "device"),
    reads=("ptq/quantized.safetensors", "qat/quantized.safetensors", "build/*", "export/int8*.onnx"),
    splits=("val",), result=CheckReport, files={ACCURACIES: Accuracies}, on_machine=True,
)  # fmt: skip
