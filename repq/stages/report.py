"""The report as a stage, and the timings of several machines as one report."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from repq.api.fitting import fitted
from repq.api.images import open_data
from repq.api.opening import load
from repq.errors import DataError, reason
from repq.printable import printable
from repq.recipe import ReportConfig
from repq.recipe.whole import stages
from repq.results import BenchReport, Pictures, PlanReport
from repq.stages.build import built
from repq.stages.sensitivity import PLAN_REPORT
from repq.stages.stage import Job, Section, Stage
from repq.stages.verdict import judged

if TYPE_CHECKING:
    from repq.data import ImageRecord


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
        raise DataError(f"cannot read {file}", found=reason(error), fix=fix) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is no timing of repq", found=str(error), fix=fix) from None
    except ValidationError as error:
        problem = error.errors()[0]
        found = f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}".removeprefix(": ")
        raise DataError(f"{file} is no timing of repq", found=found, fix=fix) from None


def _absolute(path: Path) -> Path:
    """A path with the name that was given, even for ``.``; what a link leads to has another one."""
    return Path(os.path.abspath(path))  # noqa: PTH100 (Path has none that takes ".." out)


def _names(paths: Sequence[Path]) -> list[str]:
    """What the tables call each file: its folder's name, or its own, numbered where two are alike."""
    named = (path if path.is_dir() or path.stem != "bench" else path.parent for path in map(_absolute, paths))
    names = [printable(path.name) or "/" for path in named]
    while len(alike := {name for name, count in Counter(names).items() if count > 1}):
        names = [f"{name} ({number})" if name in alike else name for number, name in enumerate(names, 1)]
    return names


def _draw(float_engine: Path, quantized_engine: Path, job: Job) -> Pictures:
    """Run both engines on images of the split, and draw those on which INT8 lost most against the ground truth."""
    from repq.data import read_image
    from repq.evaluate import detect_all
    from repq.report.boxes import Found, compared, draw_panels

    recipe, config = job.recipe, job.recipe.report
    dataset = open_data(job.data, recipe.data.val)
    busiest = sorted(dataset.records, key=lambda record: -len(record.labels))[: config.candidates]
    models = load(float_engine), load(quantized_engine)
    dataset = fitted(dataset.subset(busiest if config.images else []), models[0].names, models[0].label)
    single = recipe.eval.model_copy(update={"multi_label": False, "confidence": config.confidence})
    before, after = (
        detect_all(
            model.infer, dataset, recipe.imgsz, single, job.progress, layout=model.layout,
            preprocessing=model.preprocessing,
        ).boxes
        for model in models
    )  # fmt: skip
    truth = [_as_found(record) for record in dataset.records]
    loss = [_lost(*rows) for rows in zip(truth, before, after, strict=True)]
    drawn = []
    for index in sorted(range(len(dataset)), key=lambda index: loss[index], reverse=True)[: config.images]:
        record = dataset.records[index]
        found = (
            Found("ground truth", truth[index]), *compared(("FP32", before[index]), ("INT8", after[index])),
        )  # fmt: skip
        drawn.append(draw_panels(record.name, read_image(record.path)[..., ::-1], found, dataset.names))
    return Pictures(
        engine=models[1].running.engine, confidence=config.confidence, images=tuple(drawn),
        looked_at=len(dataset),
    )  # fmt: skip


def _as_found(record: ImageRecord) -> NDArray[Any]:
    """The objects of an image as rows of a box, no score, and the class."""
    from repq.data import pixel_boxes

    boxes = pixel_boxes(record.labels, record.width, record.height)
    return np.column_stack([boxes, np.full(len(boxes), np.nan), record.labels[:, 0]])


def _lost(truth: NDArray[Any], before: NDArray[Any], after: NDArray[Any]) -> tuple[int, int]:
    """How much worse the second boxes are: objects lost and false boxes added; then boxes that changed at all."""
    from repq.report.boxes import match_boxes

    hits = [int((match_boxes(boxes, truth) >= 0).sum()) for boxes in (before, after)]
    false = len(before) - hits[0], len(after) - hits[1]
    same = int((match_boxes(before, after) >= 0).sum())
    return hits[0] - hits[1] + false[1] - false[0], len(before) + len(after) - 2 * same


def _report(job: Job) -> None:
    from repq.report import ReportSummary, render_report

    recipe, artifacts = job.recipe, job.artifacts
    results: dict[str, Any] = {
        stage.name: artifacts[stage.name].result(stage.result)
        for stage in stages()
        if stage.name in artifacts and stage.result is not None
    }
    ptq, bench = results["ptq"], results["bench"]
    plan = artifacts["sensitivity"].result(PlanReport, PLAN_REPORT) if recipe.plan is not None else None
    graphs = results["export"].graphs
    engines = built(job)
    both = [name.removesuffix("-int8") for name in engines if name.endswith("-int8")]
    engine = next(name for name in reversed(both) if f"{name}-float32" in engines)
    files = {
        "checkpoint": job.weights,
        "fused checkpoint": job.fused,
        "float ONNX": artifacts["export"] / "float32.onnx",
        "INT8 ONNX": artifacts["export"] / "int8.onnx",
    }
    summary = ReportSummary(
        title=recipe.report.title or f"{recipe.name}: {ptq.model} in INT8",
        created=date.today().isoformat(),
        environment=bench.environment,
        recipe=recipe.name,
        model=ptq.model,
        data=str(recipe.data.path or "drawn demo set"),
        imgsz=recipe.imgsz,
        max_drop=recipe.max_drop,
        min_speedup=recipe.min_speedup,
        target=recipe.target,
        results={
            **results,
            "verdict": judged(recipe, results["eval"], bench, ()),
            "plan": plan,
            "export": graphs.get("int8_float16", graphs["int8"]),
            "build": results["build"].engines,
            "eval": results["eval"].models,
            "sizes": {name: path.stat().st_size for name, path in files.items()},
            "pictures": _draw(engines[f"{engine}-float32"], engines[f"{engine}-int8"], job),
        },
        manifests=tuple(artifact.manifest.model_dump(mode="json") for artifact in artifacts.values()),
    )
    render_report(summary, job.payload)


STAGE = Stage(
    "report", _report, {"report": Section(ReportConfig)},
    ("name", "imgsz", "weights", "plan", "eval", "data", "target", "max_drop", "min_speedup", "allow_qat"),
    reads=("*",), splits=("val",), publish=".",
)  # fmt: skip
