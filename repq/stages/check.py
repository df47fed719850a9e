"""Agreement of the simulation with the engines as a stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from repq.errors import RepqError, ToleranceError
from repq.log import Log, quiet
from repq.predictor import Predictor, open_model
from repq.progress import Progress, silent
from repq.recipe import CheckConfig, EngineName, EvalConfig
from repq.results import CheckReport
from repq.stages.build import built
from repq.stages.data import demand_same_order, read_data
from repq.stages.evaluate import demand_fit, demand_plain, demand_size
from repq.stages.stage import Job, Section, Stage


def check_models(
    models: Sequence[Path],
    data: Path,
    split: str,
    imgsz: tuple[int, int],
    config: CheckConfig,
    eval_config: EvalConfig,
    *,
    engines: Sequence[EngineName],
    device: str = "cpu",
    progress: Progress = silent,
    log: Log = quiet,
) -> CheckReport:
    """Compare models with the first one; alone, it is compared with the engines built from it.

    Raises:
        RepqError: a model or the data cannot be used.
    """
    from repq.bench import Candidate, compare

    dataset = read_data(data, split, log)
    if config.images is not None:
        dataset = dataset.subset(dataset.records[: config.images])
    reference_path, *others = models
    if not others and (reference_path.is_dir() or reference_path.suffix == ".onnx"):
        raise RepqError(
            f"{reference_path} has nothing to be compared with",
            fix="give the checkpoint that it was exported from as the first MODEL",
        )
    reference = open_model(reference_path, device=device)
    if others:
        candidates = [
            open_model(path, engine=engine)
            for path in others
            for engine in (engines if path.suffix == ".onnx" else (None,))
        ]
    else:
        candidates = [open_model(reference_path, engine=engine, imgsz=imgsz) for engine in engines]
    demand_plain(reference)
    dataset = demand_fit(reference, dataset, imgsz, log)
    for predictor in candidates:
        demand_plain(predictor)
        demand_size(predictor, imgsz)
        demand_same_order(dataset, predictor.names, predictor.label)
    rows = [Candidate(_title(predictor), predictor.infer, *_layer_counts(predictor)) for predictor in candidates]
    return compare(reference.infer, rows, dataset, imgsz, config, eval_config, progress)


def demand_agreement(report: CheckReport) -> None:
    """Fail if the check did.

    Raises:
        ToleranceError: an engine's AP or SNR is outside the bounds.
    """
    if report.passed:
        return
    worst = max(report.engines, key=lambda row: abs(row.ap_gap))
    bound = "" if report.min_snr_db is None else f" or an SNR below {report.min_snr_db} dB"
    raise ToleranceError(
        "the engines do not compute what the reference computes",
        found=f"{worst.engine}: AP gap {worst.ap_gap:+.4f}, SNR {worst.snr_db}; allowed: {report.max_ap_gap}{bound}",
        fix="run `repq describe` on the engine and look for layers in another precision than planned",
    )


def _title(predictor: Predictor) -> str:
    return predictor.engine if predictor.engine in predictor.label else f"{predictor.label} ({predictor.engine})"


def _layer_counts(predictor: Predictor) -> tuple[int, int]:
    if predictor.description is None:
        return 0, 0
    int8 = predictor.description.precision_counts().get("int8", 0)
    return int8, len(predictor.description.layers) - int8


def _check(job: Job) -> CheckReport:
    recipe = job.recipe
    report = check_models(
        [job.quantized, *built(job, "int8").values()], job.data, recipe.data.val, recipe.imgsz,
        job.section("check", CheckConfig), recipe.eval, engines=(), device=recipe.device, progress=job.progress,
        log=job.log,
    )  # fmt: skip
    for row in report.engines:
        job.log(f"  {row.title}: AP {row.accuracy.ap:.4f} ({row.ap_gap:+.4f})")
    typed = job.artifacts["export"] / "int8_float16.onnx"
    if typed.is_file():  # what TensorRT gets: ONNX Runtime can run it too
        pair = [job.artifacts["export"] / "int8.onnx", typed]
        found = check_models(
            pair, job.data, recipe.data.val, recipe.imgsz, job.section("check", CheckConfig), recipe.eval,
            engines=("onnxruntime",), progress=job.progress, log=job.log,
        )  # fmt: skip
        report = report.model_copy(update={"typed": found.engines[0]})
    return report


STAGE = Stage(
    "check", _check, {"check": Section(CheckConfig)}, ("imgsz", "eval", "device"),
    reads=("ptq/quantized.safetensors", "qat/quantized.safetensors", "build/*", "export/int8*.onnx"),
    splits=("val",), result=CheckReport, on_machine=True,
)  # fmt: skip
