"""The report as a stage, and the timings of several machines as one report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from repq.api.fitting import fitted
from repq.api.opening import load
from repq.errors import DataError
from repq.recipe import EvalConfig, ReportConfig
from repq.recipe.whole import stages
from repq.results import BenchReport, DrawnImage, Pictures, PlanReport
from repq.stages.build import built
from repq.stages.data import read_data
from repq.stages.stage import Job, Section, Stage


def report_benches(paths: Sequence[Path], out: Path, title: str) -> dict[str, Path]:
    """Join several ``bench.json`` into ``report.html``, ``.md`` and ``.json``.

    Raises:
        DataError: a file cannot be read or is none that ``repq bench -o`` wrote.
        RepqError: jinja2 or matplotlib is not installed.
    """
    from repq.report import ReportSummary, render_report

    benches = [read_bench(path) for path in paths]
    machines = dict(zip(_names(paths), benches, strict=True))
    only = benches[0] if len(benches) == 1 else None
    summary = ReportSummary(
        title=title,
        created=date.today().isoformat(),
        environment=benches[0].environment,
        results={"bench": only, "machines": machines},
    )
    return render_report(summary, out)


def read_bench(path: Path) -> BenchReport:
    """Read a ``bench.json``, or the one in a folder.

    Raises:
        DataError: it cannot be read, or is something else.
    """
    file = path / "bench.json" if path.is_dir() else path
    fix = "give a bench.json that `repq bench -o FOLDER` wrote, or its folder"
    try:
        return BenchReport.model_validate_json(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {file}", found=error.strerror or str(error), fix=fix) from None
    except (ValidationError, UnicodeDecodeError) as error:
        raise DataError(f"{file} is no timing of repq", found=str(error).splitlines()[0], fix=fix) from None


def _names(paths: Sequence[Path]) -> list[str]:
    """What the tables call each file: its folder's name, or its own, numbered where two are alike."""
    plain = [path.name if path.is_dir() or path.stem != "bench" else path.resolve().parent.name for path in paths]
    counts = Counter(plain)
    return [f"{name} ({number})" if counts[name] > 1 else name for number, name in enumerate(plain, 1)]


def _draw(
    float_engine: Path,
    quantized_engine: Path,
    data: Path,
    split: str,
    imgsz: tuple[int, int],
    config: ReportConfig,
    eval_config: EvalConfig,
) -> tuple[DrawnImage, ...]:
    """Run both engines on the images of a split with most objects, up to ``config.images``, and draw what they find."""
    from repq.data import read_image
    from repq.evaluate import detect_all
    from repq.report import draw_pair

    dataset = read_data(data, split)
    busiest = sorted(dataset.records, key=lambda record: -len(record.labels))[: config.images]
    dataset = dataset.subset(busiest)
    if not busiest:
        return ()
    single = eval_config.model_copy(update={"multi_label": False})
    models = load(float_engine), load(quantized_engine)
    dataset = fitted(dataset, models[0].names, models[0].label)
    float_found, quantized_found = (
        detect_all(
            model.infer, dataset, imgsz, single, layout=model.layout, preprocessing=model.preprocessing
        ).boxes
        for model in models
    )
    return tuple(
        draw_pair(record.name, read_image(record.path)[..., ::-1], before, after, dataset.names,
                  confidence=config.confidence)
        for record, before, after in zip(busiest, float_found, quantized_found, strict=True)
    )  # fmt: skip


def _report(job: Job) -> None:
    from repq.report import ReportSummary, render_report

    recipe, artifacts = job.recipe, job.artifacts
    results: dict[str, Any] = {
        stage.name: artifacts[stage.name].result(stage.result)
        for stage in stages()
        if stage.name in artifacts and stage.result is not None
    }
    ptq, bench = results["ptq"], results["bench"]
    plan = artifacts["sensitivity"].result(PlanReport, "plan.json") if recipe.plan is not None else None
    graph = "int8_float16" if recipe.export.float16 else "int8"
    engines = built(job)
    names = [[name for name in engines if name.endswith(f"-{variant}")] for variant in ("float32", "int8")]
    float_, int8 = (found[-1] for found in names)
    files = {
        "checkpoint": job.weights,
        "fused checkpoint": job.fused,
        "float ONNX": artifacts["export"] / "float32.onnx",
        "INT8 ONNX": artifacts["export"] / "int8.onnx",
    }
    images = _draw(engines[float_], engines[int8], job.data, recipe.data.val, recipe.imgsz, recipe.report, recipe.eval)
    summary = ReportSummary(
        title=recipe.report.title or f"{recipe.name}: {ptq.model} in INT8",
        created=date.today().isoformat(),
        environment=bench.environment,
        recipe=recipe.name,
        model=ptq.model,
        data=str(recipe.data.path or "drawn demo set"),
        imgsz=recipe.imgsz,
        results={
            **results,
            "plan": plan,
            "export": results["export"].graphs[graph],
            "build": results["build"].engines,
            "eval": results["eval"].models,
            "sizes": {name: path.stat().st_size for name, path in files.items()},
            "pictures": Pictures(engine=int8.rpartition("-")[0], confidence=recipe.report.confidence, images=images),
        },
        manifests=tuple(artifact.manifest.model_dump(mode="json") for artifact in artifacts.values()),
    )
    render_report(summary, job.payload)


STAGE = Stage(
    "report", _report, {"report": Section(ReportConfig)}, ("name", "imgsz", "eval", "data"), reads=("*",),
    splits=("val",),
)  # fmt: skip
