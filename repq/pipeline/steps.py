"""What each stage of a run puts into its artifact."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import TypeVar

from repq import stages
from repq.errors import RecipeError
from repq.files import write_text
from repq.pipeline.context import VARIANTS, Context, engines_of
from repq.recipe import SensitivityConfig, TrainConfig
from repq.report.text import export_text
from repq.results import (
    Accuracy,
    BenchReport,
    CheckReport,
    EngineDescription,
    ExportReport,
    FusionReport,
    Pictures,
    PlanReport,
    PtqReport,
    QatReport,
    Result,
    Sensitivity,
    TrainReport,
)

R = TypeVar("R", bound=Result)


def draw_data(context: Context, payload: Path, resume: Path) -> None:
    from repq.data import make_demo_set

    assert context.recipe.data.demo is not None
    make_demo_set(payload / "demo", context.recipe.data.demo)


def train_with(context: Context, config: TrainConfig, payload: Path, resume: Path) -> None:
    recipe = context.recipe
    report = stages.train_detector(
        payload, resume / "state", config, data=context.data, splits=(recipe.data.train, recipe.data.val),
        imgsz=recipe.imgsz, eval_config=recipe.eval, device=recipe.device, seed=recipe.seed,
        progress=context.progress, log=context.log,
    )  # fmt: skip
    context.log(f"  best epoch {report.best_epoch}: AP {report.accuracy.ap:.4f}, AP50 {report.accuracy.ap50:.4f}")


def search(context: Context, payload: Path, resume: Path) -> None:
    assert context.recipe.search is not None
    train_with(context, context.recipe.search, payload, resume)


def train(context: Context, payload: Path, resume: Path) -> None:
    config = context.recipe.train
    assert config is not None
    if "search" in context.artifacts:
        scales = context.artifacts["search"] / "scales.safetensors"
        if not scales.is_file():
            raise RecipeError(
                "search found no scales", found=f"search.model is {context.recipe.search.model}",  # type: ignore[union-attr]
                fix="search with a hyper-search model, such as yolov6n_v2_hs",
            )  # fmt: skip
        config = config.model_copy(update={"rep_scales": scales})
    train_with(context, config, payload, resume)


def fuse(context: Context, payload: Path, resume: Path) -> None:
    recipe = context.recipe
    report = stages.fuse_checkpoint(
        context.weights, payload / "fused.safetensors", recipe.fuse, data=context.data, split=recipe.data.val,
        imgsz=recipe.imgsz, device=recipe.device, seed=recipe.seed, log=context.log,
    )  # fmt: skip
    context.log(f"  {len(report.blocks)} blocks, error {report.max_rel_error:.1e} of the output's range")
    write_text(payload / "fusion.json", report.model_dump_json(indent=1))


def sensitivity(context: Context, payload: Path, resume: Path) -> None:
    recipe = context.recipe
    _, plan = stages.measure_sensitivity(
        context.artifacts["fuse"] / "fused.safetensors", payload, recipe.sensitivity or SensitivityConfig(),
        recipe.plan, recipe.ptq, data=context.data, split=recipe.data.train, val_split=recipe.data.val,
        imgsz=recipe.imgsz, eval_config=recipe.eval, journal_folder=resume / "journal", device=recipe.device,
        progress=context.progress, log=context.log,
    )  # fmt: skip
    if plan is not None:
        context.log(f"  {len(plan.float_layers)} layers in float, {plan.int8_macs_share:.1%} of the MACs in INT8")


def ptq(context: Context, payload: Path, resume: Path) -> None:
    recipe = context.recipe
    plan = context.artifacts["sensitivity"] / "plan.yaml" if recipe.plan is not None else None
    report = stages.ptq_checkpoint(
        context.artifacts["fuse"] / "fused.safetensors", payload / "quantized.safetensors", recipe.ptq,
        data=context.data, train_split=recipe.data.train, val_split=recipe.data.val, imgsz=recipe.imgsz,
        eval_config=recipe.eval, plan=plan, device=recipe.device, progress=context.progress, log=context.log,
    )  # fmt: skip
    context.log(f"  AP {report.accuracy_float.ap:.4f} -> {report.accuracy_quantized.ap:.4f}")
    write_text(payload / "ptq.json", report.model_dump_json(indent=1))


def qat(context: Context, payload: Path, resume: Path) -> None:
    recipe, artifacts = context.recipe, context.artifacts
    assert recipe.qat is not None
    source = stages.QatSource(artifacts["ptq"] / "quantized.safetensors", artifacts["fuse"] / "fused.safetensors")
    report = stages.qat_checkpoint(
        source, payload / "quantized.safetensors", resume / "state", recipe.qat, data=context.data,
        splits=(recipe.data.train, recipe.data.val), imgsz=recipe.imgsz, eval_config=recipe.eval, device=recipe.device,
        seed=recipe.seed, progress=context.progress, log=context.log,
    )  # fmt: skip
    write_text(payload / "qat.json", report.model_dump_json(indent=1))


def export(context: Context, payload: Path, resume: Path) -> None:
    recipe = context.recipe
    fused = context.artifacts["fuse"] / "fused.safetensors"
    maxima = context.artifacts["ptq"] / "quantized.safetensors"
    plain = recipe.export.model_copy(update={"float16": False, "float16_io": False})
    files = [("float32", fused, plain), ("int8", context.quantized, plain)]
    if recipe.export.float16:
        files += [("float16", fused, recipe.export), ("int8_float16", context.quantized, recipe.export)]
    for name, checkpoint, config in files:
        onnx = payload / f"{name}.onnx"
        report = stages.export_checkpoint(checkpoint, onnx, recipe.imgsz, config, maxima_from=maxima)
        report = report.model_copy(update={"out": onnx.name})  # the folder is renamed when it is complete
        context.log("\n".join(f"  {line}" for line in export_text(report).splitlines()))
        write_text(payload / f"{name}.json", report.model_dump_json(indent=1))


def build(context: Context, payload: Path, resume: Path) -> None:
    for variant in VARIANTS:
        for engine in engines_of(context.recipe, variant):
            name = f"{engine}-{variant}"
            onnx = context.exported(engine, variant)
            description = stages.build_engine(onnx, payload / name, engine, context.recipe.build, log=context.log)
            counts = ", ".join(f"{count} {kind}" for kind, count in description.precision_counts().items())
            context.log(f"  {name}: {counts}")
            write_text(payload / f"{name}.json", description.model_dump_json(indent=1))


def check(context: Context, payload: Path, resume: Path) -> None:
    recipe = context.recipe
    models = [context.quantized, *context.built("int8")]
    report = stages.check_models(
        models, context.data, recipe.data.val, recipe.imgsz, recipe.check, recipe.eval, engines=recipe.build.engines,
        device=recipe.device, progress=context.progress, log=context.log,
    )  # fmt: skip
    for row in report.engines:
        context.log(f"  {row.engine}: AP {row.accuracy.ap:.4f} ({row.ap_gap:+.4f})")
    write_text(payload / "check.json", report.model_dump_json(indent=1))


def evaluate(context: Context, payload: Path, resume: Path) -> None:
    recipe = context.recipe
    for variant in VARIANTS:
        for folder in context.built(variant):
            accuracy, _ = stages.evaluate_model(
                folder, context.data, recipe.data.val, recipe.imgsz, recipe.eval, progress=context.progress
            )
            context.log(f"  {folder.name}: AP {accuracy.ap:.4f}, AP50 {accuracy.ap50:.4f}")
            write_text(payload / f"{folder.name}.json", accuracy.model_dump_json(indent=1))


def bench(context: Context, payload: Path, resume: Path) -> None:
    recipe = context.recipe
    engines = [folder for variant in VARIANTS for folder in context.built(variant)]
    report = stages.bench_models(
        engines, recipe.imgsz, recipe.bench, seed=recipe.seed,
        progress=context.progress, log=context.log,
    )  # fmt: skip
    write_text(payload / "bench.json", report.model_dump_json(indent=1))


def report(context: Context, payload: Path, resume: Path) -> None:
    from repq.report import ReportSummary, render_report

    recipe, artifacts = context.recipe, context.artifacts
    ptq = PtqReport.model_validate_json((artifacts["ptq"] / "ptq.json").read_text())
    bench = BenchReport.model_validate_json((artifacts["bench"] / "bench.json").read_text())
    names = [folder.name for variant in VARIANTS for folder in context.built(variant)]
    built = [(artifacts["build"] / f"{name}.json").read_text() for name in names]
    measured = [(artifacts["eval"] / f"{name}.json").read_text() for name in names]
    files = {
        "checkpoint": context.weights,
        "fused checkpoint": artifacts["fuse"] / "fused.safetensors",
        "float ONNX": artifacts["export"] / "float32.onnx",
        "INT8 ONNX": artifacts["export"] / "int8.onnx",
    }
    graph = "int8_float16" if recipe.export.float16 else "int8"
    drawn = stages.draw_detections(
        context.built("float32")[-1], context.built("int8")[-1], context.data, recipe.data.val, recipe.imgsz,
        recipe.report, recipe.eval,
    )  # fmt: skip
    results = {
        "train": _optional(context, "train", "train.json", TrainReport),
        "fuse": _optional(context, "fuse", "fusion.json", FusionReport),
        "sensitivity": _optional(context, "sensitivity", "sensitivity.json", Sensitivity),
        "plan": _optional(context, "sensitivity", "plan.json", PlanReport) if recipe.plan else None,
        "ptq": ptq,
        "qat": _optional(context, "qat", "qat.json", QatReport),
        "export": _optional(context, "export", f"{graph}.json", ExportReport),
        "build": dict(zip(names, map(EngineDescription.model_validate_json, built), strict=True)),
        "eval": dict(zip(names, map(Accuracy.model_validate_json, measured), strict=True)),
        "check": _optional(context, "check", "check.json", CheckReport),
        "bench": bench,
        "sizes": {name: path.stat().st_size for name, path in files.items()},
        "pictures": Pictures(engine=recipe.build.engines[-1], confidence=recipe.report.confidence, images=drawn),
    }
    summary = ReportSummary(
        title=recipe.report.title or f"{recipe.name}: {ptq.model} in INT8",
        created=date.today().isoformat(),
        environment=bench.environment,
        recipe=recipe.name,
        model=ptq.model,
        data=str(recipe.data.path or "drawn demo set"),
        imgsz=recipe.imgsz,
        results=results,
        manifests=tuple(artifact.manifest.model_dump(mode="json") for artifact in artifacts.values()),
    )
    render_report(summary, payload)


def _optional(context: Context, stage: str, name: str, kind: type[R]) -> R | None:
    """The result of a stage; None where the recipe does not have it."""
    artifact = context.artifacts.get(stage)
    return None if artifact is None else kind.model_validate_json((artifact / name).read_text())
