"""The runner: a recipe in, a folder of artifacts and a report out."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repq import stages
from repq.artifact import Artifact, RunFolder, hash_file, hash_json
from repq.errors import RecipeError
from repq.files import write_text
from repq.log import Log, quiet
from repq.pipeline.context import VARIANTS, Context, Stage, engines_of
from repq.pipeline.table import TABLE
from repq.progress import Progress, silent
from repq.recipe import Recipe
from repq.results import Accuracy, BenchReport, CheckReport

REPORT_FILES = ("report.html", "report.md", "report.json")


@dataclass(frozen=True)
class RunOutcome:
    """Where a run left its artifacts, in the order of the stages, and its report."""

    artifacts: Mapping[str, Artifact]
    report: Path
    headline: Mapping[str, Any]


def run_recipe(recipe: Recipe, work: Path, *, progress: Progress = silent, log: Log = quiet) -> RunOutcome:
    """Run every stage of a recipe, reusing each artifact whose settings and inputs are unchanged.

    Raises:
        RepqError: a stage failed in a way that the user can mend; what was complete before stays.
        ToleranceError: an engine is outside the bounds of the check; the report is written all the same.
    """
    folder = RunFolder(work)
    outside = _outside_inputs(recipe)
    artifacts: dict[str, Artifact] = {}
    for stage in TABLE:
        if not stage.wanted(recipe):
            continue
        log(f"{stage.name} …")
        started = time.monotonic()
        context = Context(recipe, dict(artifacts), progress, log)
        artifacts[stage.name] = artifact = folder.make(
            stage.name,
            lambda payload, resume, stage=stage, context=context: stage.run(context, payload, resume),  # type: ignore[misc]
            config=stage.settings(recipe),
            inputs=_inputs(stage, artifacts, outside),
            libraries=stage.libraries,
            seed=recipe.seed,
            on_wait=log,
        )
        took = "reused" if artifact.reused else f"{time.monotonic() - started:.1f} s"
        log(f"{stage.name}: {took}, {artifact.folder}")
    report = _publish(work, recipe, artifacts)
    # Last, so that the report of a run that fails its check is there to show why.
    stages.demand_agreement(CheckReport.model_validate_json((artifacts["check"] / "check.json").read_text()))
    return RunOutcome(artifacts, report, _headline(recipe, artifacts))


def _inputs(stage: Stage, artifacts: Mapping[str, Artifact], outside: Mapping[str, str]) -> dict[str, str]:
    inputs = {name: artifacts[name].manifest.content for name in stage.needs if name in artifacts}
    wanted = {name: digest for name, digest in outside.items() if stage.reads_weights and name != "data"}
    if stage.reads_data and "data" in outside:
        wanted["data"] = outside["data"]
    return {**wanted, **inputs}


def _outside_inputs(recipe: Recipe) -> dict[str, str]:
    inputs: dict[str, str] = {}
    for name, path in _named_files(recipe).items():
        if not path.is_file():
            raise RecipeError(
                f"there is no file at {path}", fix=f"correct {name!r} in the recipe, or give it by a flag"
            )
        inputs[name] = hash_file(path)
    if recipe.data.path is not None:
        from repq.data import fingerprint, load_dataset

        splits = (recipe.data.train, recipe.data.val)
        inputs["data"] = hash_json([fingerprint(load_dataset(recipe.data.path, split)) for split in splits])
    return inputs


def _named_files(recipe: Recipe) -> dict[str, Path]:
    """Checkpoints and scales that the recipe names, by their key."""
    files = {"weights": recipe.weights}
    for key, config in (("search", recipe.search), ("train", recipe.train)):
        if config is not None:
            files[f"{key}.weights"] = config.weights
            files[f"{key}.rep_scales"] = config.rep_scales
            files[f"{key}.distill.teacher"] = config.distill.teacher if config.distill else None
    return {name: path for name, path in files.items() if path is not None}


def _publish(work: Path, recipe: Recipe, artifacts: Mapping[str, Artifact]) -> Path:
    """Copy the report to the top of the run folder and list the artifacts that belong to it."""
    drawings = sorted(path.name for path in artifacts["report"].folder.glob("*.svg"))
    for name in (*REPORT_FILES, *drawings):
        temporary = work / f".{name}.new"
        shutil.copyfile(artifacts["report"] / name, temporary)
        temporary.replace(work / name)
    lines = [f"{name}: {artifact.folder.relative_to(work)}" for name, artifact in artifacts.items()]
    write_text(work / "artifacts.yaml", "\n".join([f"# artifacts of the run {recipe.name}", *lines, ""]))
    return work / "report.html"


def _headline(recipe: Recipe, artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
    """The figures that matter most: AP and latency of every engine, float against INT8."""
    bench = BenchReport.model_validate_json((artifacts["bench"] / "bench.json").read_text())
    rows = []
    for variant in VARIANTS:
        for engine in engines_of(recipe, variant):
            name = f"{engine}-{variant}"
            accuracy = Accuracy.model_validate_json((artifacts["eval"] / f"{name}.json").read_text())
            timed = next(row for row in bench.rows if row.model == name and row.scope == "infer")
            rows.append(
                {"model": name, "ap": accuracy.ap, "ap50": accuracy.ap50, "batch": timed.batch,
                 "latency_ms_median": timed.latency_ms_median, "images_per_s": timed.images_per_s,
                 "size_bytes": timed.size_bytes}
            )  # fmt: skip
    return {"name": recipe.name, "models": rows}
