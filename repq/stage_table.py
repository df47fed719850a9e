"""The stages of a run: what each reads, which settings it depends on, and what it puts into its artifact."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from repq import stages
from repq.artifact import Artifact
from repq.errors import RecipeError
from repq.files import write_text
from repq.log import Log
from repq.progress import Progress
from repq.recipe import Config, Recipe, TrainConfig
from repq.results import Accuracy, BenchReport, CheckReport, EngineDescription, FusionReport, PtqReport, TrainReport

Settings = Mapping[str, Any]
VARIANTS = ("float32", "int8")


@dataclass(frozen=True)
class Context:
    """What a stage may read: the recipe and the artifacts of the stages that it needs."""

    recipe: Recipe
    artifacts: Mapping[str, Artifact]
    progress: Progress
    log: Log

    @property
    def data(self) -> Path:
        """The data.yaml: the recipe's own, or that of the drawn set."""
        if self.recipe.data.path is not None:
            return self.recipe.data.path
        return self.artifacts["data"] / "demo/data.yaml"

    @property
    def weights(self) -> Path:
        """The checkpoint that the run starts from: brought, or trained here."""
        if self.recipe.weights is not None:
            return self.recipe.weights
        return self.artifacts["train"] / "weights.safetensors"

    def built(self, variant: str) -> list[Path]:
        """The engine folders of one variant (``float32`` or ``int8``), in the order of the recipe."""
        return [self.artifacts["build"] / f"{engine}-{variant}" for engine in self.recipe.build.engines]


@dataclass(frozen=True)
class Stage:
    """One row of the table.

    Attributes:
        name: the stage, and its folder.
        needs: stages whose artifacts it reads.
        settings: the part of the recipe that its result depends on.
        run: fills the payload folder (second argument); keeps state to continue from in the third.
        libraries: distributions whose version its result depends on.
        reads_data: whether it reads a data set that the recipe names.
        reads_weights: whether it reads checkpoints or scales that the recipe names.
        wanted: whether a recipe has this stage at all.
    """

    name: str
    needs: tuple[str, ...]
    settings: Callable[[Recipe], Settings]
    run: Callable[[Context, Path, Path], None]
    libraries: tuple[str, ...]
    reads_data: bool = False
    reads_weights: bool = False
    wanted: Callable[[Recipe], bool] = lambda recipe: True


# --- the stages ------------------------------------------------------------------------------------------------------


def _draw_data(context: Context, payload: Path, resume: Path) -> None:
    from repq.data import make_demo_set

    assert context.recipe.data.demo is not None
    make_demo_set(payload / "demo", context.recipe.data.demo)


def _train_with(context: Context, config: TrainConfig, payload: Path, resume: Path) -> None:
    recipe = context.recipe
    report = stages.train_detector(
        payload, resume / "state", config, data=context.data, splits=(recipe.data.train, recipe.data.val),
        imgsz=recipe.imgsz, eval_config=recipe.eval, device=recipe.device, seed=recipe.seed,
        progress=context.progress, log=context.log,
    )  # fmt: skip
    context.log(f"  best epoch {report.best_epoch}: AP {report.accuracy.ap:.4f}, AP50 {report.accuracy.ap50:.4f}")


def _search(context: Context, payload: Path, resume: Path) -> None:
    assert context.recipe.search is not None
    _train_with(context, context.recipe.search, payload, resume)


def _train(context: Context, payload: Path, resume: Path) -> None:
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
    _train_with(context, config, payload, resume)


def _fuse(context: Context, payload: Path, resume: Path) -> None:
    recipe = context.recipe
    report = stages.fuse_checkpoint(
        context.weights, payload / "fused.safetensors", recipe.fuse, data=context.data, split=recipe.data.val,
        imgsz=recipe.imgsz, device=recipe.device, seed=recipe.seed, log=context.log,
    )  # fmt: skip
    context.log(f"  {len(report.blocks)} blocks, error {report.max_rel_error:.1e} of the output's range")
    write_text(payload / "fusion.json", report.model_dump_json(indent=1))


def _ptq(context: Context, payload: Path, resume: Path) -> None:
    recipe = context.recipe
    report = stages.ptq_checkpoint(
        context.artifacts["fuse"] / "fused.safetensors", payload / "quantized.safetensors", recipe.ptq,
        data=context.data, train_split=recipe.data.train, val_split=recipe.data.val, imgsz=recipe.imgsz,
        eval_config=recipe.eval, device=recipe.device, progress=context.progress, log=context.log,
    )  # fmt: skip
    context.log(f"  AP {report.accuracy_float.ap:.4f} -> {report.accuracy_quantized.ap:.4f}")
    write_text(payload / "ptq.json", report.model_dump_json(indent=1))


def _export(context: Context, payload: Path, resume: Path) -> None:
    sources = (("float32", context.artifacts["fuse"] / "fused.safetensors"),
               ("int8", context.artifacts["ptq"] / "quantized.safetensors"))  # fmt: skip
    for variant, checkpoint in sources:
        config = context.recipe.export.model_copy(update={"float16": False} if variant == "float32" else {})
        stages.export_checkpoint(checkpoint, payload / f"{variant}.onnx", context.recipe.imgsz, config)


def _build(context: Context, payload: Path, resume: Path) -> None:
    for engine in context.recipe.build.engines:
        for variant in VARIANTS:
            name = f"{engine}-{variant}"
            onnx = context.artifacts["export"] / f"{variant}.onnx"
            description = stages.build_engine(onnx, payload / name, engine, context.recipe.build)
            counts = ", ".join(f"{count} {kind}" for kind, count in description.precision_counts().items())
            context.log(f"  {name}: {counts}")
            write_text(payload / f"{name}.json", description.model_dump_json(indent=1))


def _check(context: Context, payload: Path, resume: Path) -> None:
    recipe = context.recipe
    models = [context.artifacts["ptq"] / "quantized.safetensors", *context.built("int8")]
    report = stages.check_models(
        models, context.data, recipe.data.val, recipe.imgsz, recipe.check, recipe.eval, engines=recipe.build.engines,
        device=recipe.device, progress=context.progress, log=context.log,
    )  # fmt: skip
    for row in report.engines:
        context.log(f"  {row.engine}: AP {row.accuracy.ap:.4f} ({row.ap_gap:+.4f})")
    write_text(payload / "check.json", report.model_dump_json(indent=1))


def _evaluate(context: Context, payload: Path, resume: Path) -> None:
    recipe = context.recipe
    for variant in VARIANTS:
        for folder in context.built(variant):
            accuracy, _ = stages.evaluate_model(
                folder, context.data, recipe.data.val, recipe.imgsz, recipe.eval, progress=context.progress
            )
            context.log(f"  {folder.name}: AP {accuracy.ap:.4f}, AP50 {accuracy.ap50:.4f}")
            write_text(payload / f"{folder.name}.json", accuracy.model_dump_json(indent=1))


def _bench(context: Context, payload: Path, resume: Path) -> None:
    recipe = context.recipe
    report = stages.bench_models(
        [*context.built("float32"), *context.built("int8")], recipe.imgsz, recipe.bench, seed=recipe.seed,
        progress=context.progress, log=context.log,
    )  # fmt: skip
    write_text(payload / "bench.json", report.model_dump_json(indent=1))


def _report(context: Context, payload: Path, resume: Path) -> None:
    from repq.report import ArtifactSize, BuiltEngine, MeasuredAccuracy, ReportSummary, render_report

    recipe, artifacts = context.recipe, context.artifacts
    ptq = PtqReport.model_validate_json((artifacts["ptq"] / "ptq.json").read_text())
    bench = BenchReport.model_validate_json((artifacts["bench"] / "bench.json").read_text())
    accuracies = [
        MeasuredAccuracy(variant="fp32", engine="torch", accuracy=ptq.accuracy_float),
        MeasuredAccuracy(variant="int8", engine="torch", accuracy=ptq.accuracy_quantized),
    ]
    engines = []
    for variant, built in (("fp32", "float32"), ("int8", "int8")):
        for folder in context.built(built):
            text = (artifacts["build"] / f"{folder.name}.json").read_text()
            engines.append(BuiltEngine(variant=variant, description=EngineDescription.model_validate_json(text)))
            accuracy = Accuracy.model_validate_json((artifacts["eval"] / f"{folder.name}.json").read_text())
            engine = engines[-1].description.engine
            accuracies.append(MeasuredAccuracy(variant=variant, engine=engine, accuracy=accuracy))
    files = {
        "checkpoint": context.weights,
        "fused checkpoint": artifacts["fuse"] / "fused.safetensors",
        "float ONNX": artifacts["export"] / "float32.onnx",
        "INT8 ONNX": artifacts["export"] / "int8.onnx",
    }
    training = artifacts.get("train")
    summary = ReportSummary(
        title=recipe.report.title or f"{recipe.name}: {ptq.model} in INT8",
        created=date.today().isoformat(),
        environment=bench.environment,
        recipe=recipe.name,
        model=ptq.model,
        data=str(recipe.data.path or "drawn demo set"),
        imgsz=recipe.imgsz,
        training=TrainReport.model_validate_json((training / "train.json").read_text()) if training else None,
        fusion=FusionReport.model_validate_json((artifacts["fuse"] / "fusion.json").read_text()),
        ptq=ptq,
        accuracies=tuple(accuracies),
        engines=tuple(engines),
        check=CheckReport.model_validate_json((artifacts["check"] / "check.json").read_text()),
        bench=bench,
        sizes=tuple(ArtifactSize(name=name, size_bytes=path.stat().st_size) for name, path in files.items()),
        drawn=stages.draw_detections(
            context.built("float32")[-1], context.built("int8")[-1], context.data, recipe.data.val, recipe.imgsz,
            recipe.report, recipe.eval,
        ),
        drawn_engine=recipe.build.engines[-1],
        drawn_confidence=recipe.report.confidence,
        manifests=tuple(artifact.manifest.model_dump(mode="json") for artifact in artifacts.values()),
    )  # fmt: skip
    render_report(summary, payload)


# --- the table -------------------------------------------------------------------------------------------------------


def _plain(config: Config, *names: str) -> dict[str, Any]:
    return config.model_dump(mode="json", include=set(names) or None)


def _train_settings(recipe: Recipe, config: TrainConfig | None) -> Settings:
    assert config is not None
    # Where files lie does not matter; their hashes are among the inputs.
    values = config.model_dump(mode="json", exclude={"weights": True, "rep_scales": True, "distill": {"teacher"}})
    return {**_plain(recipe, "imgsz", "eval", "device"), "train": values}


def _report_settings(recipe: Recipe) -> Settings:
    return _plain(recipe, "name", "imgsz", "report", "eval")


TABLE = (
    Stage(
        "data", (), lambda recipe: _plain(recipe, "data"), _draw_data, ("numpy", "opencv-python-headless"),
        wanted=lambda recipe: recipe.data.demo is not None,
    ),
    Stage(
        "search", ("data",), lambda recipe: _train_settings(recipe, recipe.search), _search,
        ("torch", "numpy", "opencv-python-headless"), reads_data=True, reads_weights=True,
        wanted=lambda recipe: recipe.search is not None,
    ),
    Stage(
        "train", ("data", "search"), lambda recipe: _train_settings(recipe, recipe.train), _train,
        ("torch", "numpy", "opencv-python-headless"),
        reads_data=True, reads_weights=True, wanted=lambda recipe: recipe.train is not None,
    ),
    Stage(
        "fuse", ("data", "train"), lambda recipe: _plain(recipe, "imgsz", "fuse", "device"), _fuse,
        ("torch",), reads_data=True, reads_weights=True,
    ),
    Stage(
        "ptq", ("data", "fuse"), lambda recipe: _plain(recipe, "imgsz", "ptq", "eval", "device"), _ptq,
        ("torch", "opencv-python-headless", "pycocotools"), reads_data=True,
    ),
    Stage(
        "export", ("fuse", "ptq"), lambda recipe: _plain(recipe, "imgsz", "export"), _export,
        ("torch", "onnx", "onnxscript"),
    ),
    Stage(
        "build", ("export",), lambda recipe: _plain(recipe, "build"), _build, ("onnxruntime", "openvino"),
    ),
    Stage(
        "check", ("data", "ptq", "build"), lambda recipe: _plain(recipe, "imgsz", "check", "eval"),
        _check, ("torch", "onnxruntime", "openvino", "pycocotools"), reads_data=True,
    ),
    Stage(
        "eval", ("data", "build"), lambda recipe: _plain(recipe, "imgsz", "eval"), _evaluate,
        ("onnxruntime", "openvino", "pycocotools"), reads_data=True,
    ),
    Stage(
        "bench", ("build",), lambda recipe: _plain(recipe, "imgsz", "bench"), _bench,
        ("onnxruntime", "openvino"),
    ),
    Stage(
        "report", ("data", "search", "train", "fuse", "ptq", "export", "build", "check", "eval", "bench"),
        _report_settings, _report, ("jinja2", "matplotlib"), reads_data=True,
    ),
)  # fmt: skip
