"""The runner: a recipe in, a folder of artifacts and a report out."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from repq.artifact import Artifact, RunFolder, publish, read_artifact
from repq.errors import RecipeError, RepqError, ToleranceError
from repq.files import write_text
from repq.identity import Identity, counts, describe, differences
from repq.log import Log, quiet
from repq.pipeline.budget import Attempt, lost, ways
from repq.progress import Progress, silent
from repq.recipe.whole import Recipe, stages
from repq.report.verdict import sentences
from repq.results import Accuracies, BenchReport, CheckReport, PlanReport, Verdict
from repq.stages.budget import NOTHING_TO_KEEP
from repq.stages.sensitivity import PLAN_REPORT
from repq.stages.stage import Job, Stage
from repq.stages.verdict import judged, need_no_agreement


@dataclass(frozen=True)
class RunOutcome:
    """Where a run left its artifacts, in the order of the stages, and its report."""

    artifacts: Mapping[str, Artifact]
    report: Path
    headline: Mapping[str, Any]
    verdict: Verdict


class RunError(ToleranceError):
    """A run came to its end, and its result is outside a bound; ``outcome`` is what it made."""

    def __init__(self, cause: ToleranceError, outcome: RunOutcome) -> None:
        super().__init__(cause.what, found=cause.found, fix=cause.fix)
        self.outcome = outcome


def run_recipe(
    recipe: Recipe, work: Path, *, as_it_is: bool = False, progress: Progress = silent, log: Log = quiet
) -> RunOutcome:
    """Run every stage of a recipe, reusing each artifact whose identity is unchanged.

    While INT8 loses more AP than the recipe's ``max_drop``, what is left is tried (`repq.pipeline.budget`).

    Args:
        as_it_is: the recipe is measured, whatever it loses: nothing else is tried, nothing is demanded of the engines,
            and nothing is copied out of the artifacts, so that several recipes may share the folder.

    Raises:
        RepqError: a stage failed in a way that the user can correct; what was complete before stays.
        RunError: an engine is outside the bounds of the check (the target, where it runs here), or no engine is good
            enough to ship; the report is written all the same.
    """
    _demand_int8(recipe)
    done = list[Attempt]()
    for name, changed in ways(recipe, done):
        if done:
            log(f"INT8 loses {done[-1].loss:.4f} AP of {recipe.max_drop:g} allowed; next: {name}")
        artifacts = {} if changed.plan is None else make_artifacts(changed, work, "sensitivity", progress, log)
        if done and changed.qat is None and _keeps_nothing(artifacts):
            log(NOTHING_TO_KEEP)  # so it is what was best before
            done.append(replace(min(done, key=lambda attempt: attempt.loss), name=name, recipe=changed, made=False))
            continue
        artifacts = make_artifacts(changed, work, "eval", progress, log, artifacts)
        done.append(Attempt(name, changed, artifacts, lost(changed, artifacts["eval"].result(Accuracies))))
        if as_it_is or done[-1].loss <= recipe.max_drop:
            break
    best, tried = min(done, key=lambda attempt: attempt.loss), [(attempt.name, attempt.drop) for attempt in done]
    recipe = best.recipe
    artifacts = make_artifacts(recipe, work, "bench", progress, log, best.artifacts)
    verdict = judged(recipe, artifacts["eval"].result(Accuracies), artifacts["bench"].result(BenchReport), tried)
    for line in sentences(verdict):
        log(line)
    artifacts = make_artifacts(recipe, work, "", progress, log, artifacts)
    if as_it_is:
        return RunOutcome(artifacts, artifacts["report"] / "report.html", _headline(recipe, artifacts), verdict)
    outcome = RunOutcome(artifacts, _publish(work, recipe, artifacts, log), _headline(recipe, artifacts), verdict)
    try:  # last, so that the report of a run that fails its check is there to show why
        _demand_good(recipe, outcome)
    except ToleranceError as error:
        raise RunError(error, outcome) from None
    return outcome


def _demand_good(recipe: Recipe, outcome: RunOutcome) -> None:
    from repq.stages.check import demand_agreement

    verdict = outcome.verdict
    demand_agreement(outcome.artifacts["check"].result(CheckReport), need_no_agreement(recipe, verdict))
    if verdict.next is not None:
        raise ToleranceError(
            "no engine in INT8 is good enough to ship", found="\n".join(sentences(verdict)), fix=verdict.next
        )


def _keeps_nothing(artifacts: Mapping[str, Artifact]) -> bool:
    """Whether there is a plan that keeps no layer in float beside those that the settings keep."""
    planned = artifacts.get("sensitivity")
    return planned is not None and planned.result(PlanReport, PLAN_REPORT).adds_nothing


def make_artifacts(
    recipe: Recipe, work: Path, last: str, progress: Progress, log: Log, made: Mapping[str, Artifact] | None = None
) -> dict[str, Artifact]:
    """The artifacts of a recipe up to the stage ``last``, or all, beside those that are ``made`` already."""
    wanted = [stage for stage in stages() if stage.is_wanted(recipe)]
    _demand_files(recipe, wanted)
    names = [stage.name for stage in wanted]
    wanted = wanted[: names.index(last) + 1] if last in names else wanted
    folder, split = RunFolder(work), splits_of(recipe)
    artifacts = dict(made or {})
    for stage in wanted:
        if stage.name in artifacts:
            continue
        log(f"{stage.name} …")
        started = time.monotonic()
        identity = stage.identity(recipe, artifacts, split)
        artifacts[stage.name] = artifact = folder.make(
            identity,
            functools.partial(_run, stage, identity, recipe, dict(artifacts), progress, log),
            contents=stage.contents,
            on_wait=log,
        )
        took = "reused" if artifact.reused else f"{time.monotonic() - started:.1f} s"
        log(f"{stage.name}: {took}, {artifact.folder}")
    return artifacts


def splits_of(recipe: Recipe) -> Callable[[str], Any]:
    """Role of a split (``train``, ``val``) to what identifies its content; None for the drawn set."""

    @functools.cache
    def describe_split(role: str) -> Any:
        if recipe.data.path is None:
            return None
        from repq.data import load_dataset

        return [describe(load_dataset(recipe.data.path, getattr(recipe.data, role))), describe(recipe.data.path)]

    return describe_split


def _run(
    stage: Stage, identity: Identity, recipe: Recipe, artifacts: Mapping[str, Artifact], progress: Progress, log: Log,
    payload: Path, resume: Path,
) -> None:  # fmt: skip
    """Let a stage do its work.

    Raises:
        RepqError: what it reads is not what it was before, so that nobody knows of which of both the result is.
    """
    read = stage.open_to(artifacts)
    result = stage.run(Job(stage.seen(recipe), read, payload, resume, progress, log))
    now = stage.identity(recipe, artifacts, splits_of(recipe))
    changed = differences(identity.values(), now.values())
    changed += [f"the artifact {artifact.folder}" for artifact in read.values() if not read_artifact(artifact.folder)]
    if changed:
        raise RepqError(
            f"what {stage.name} reads changed while it ran", found=", ".join(changed), fix="run the same command again"
        )
    if result is not None:
        write_text(payload / f"{stage.name}.json", result.model_dump_json(indent=1))


def _demand_int8(recipe: Recipe) -> None:
    """Check that what is built, and what is shipped, can be in INT8: else there is nothing to judge.

    Raises:
        RecipeError: it cannot.
    """
    from repq.engine import runtime

    able = {name for name in recipe.build.engines if {"float32", "int8"} <= set(runtime(name).variants)}
    floats = [name for name in (recipe.target,) if name is not None and "int8" not in runtime(name).variants]
    if floats or not able:
        raise RecipeError(
            "a run asks what INT8 costs and gains, which this one could not say",
            found=f"no INT8 in {', '.join(floats or recipe.build.engines)}",
            fix="choose an engine that runs INT8 (repq doctor), or time float engines: repq compare, repq bench",
        )


def _demand_files(recipe: Recipe, wanted: list[Stage]) -> None:
    """Check that the files that the recipe names are there, before anything runs."""
    parts = {name: getattr(recipe, name) for stage in wanted for name in (*stage.sections, *stage.uses)}
    for name, part in parts.items():
        for key, path in _paths(part, name):
            if not path.exists():
                flag = {"weights": "--weights FILE", "data.path": "--data FILE"}.get(key, f"--set {key}=FILE")
                fix = f"give it by {flag}, or correct {key!r} in the recipe"
                raise RecipeError(f"there is no file at {path}", fix=fix)


def _paths(value: Any, name: str) -> list[tuple[str, Path]]:
    """The input files that settings name, by their keys."""
    if isinstance(value, Path):
        return [(name, value)]
    kind = type(value)
    return [
        found
        for field in getattr(kind, "model_fields", ())
        if counts(kind, field)
        for found in _paths(getattr(value, field), f"{name}.{field}")
    ]


def _publish(work: Path, recipe: Recipe, artifacts: Mapping[str, Artifact], log: Log) -> Path:
    """Copy what stages publish into the run folder, and list the artifacts that belong to it."""
    for stage in stages():
        if stage.publish is not None and stage.name in artifacts:
            for kept in publish(artifacts[stage.name], work / stage.publish):
                log(f"a file was in the way that no run had left so: it is {kept} now")
    lines = [f"{name}: {artifact.folder.relative_to(work)}" for name, artifact in artifacts.items()]
    text = "\n".join([f"# artifacts of the run {recipe.name}", *lines, ""])
    write_text(work / "artifacts.yaml", text)
    return work / "report.html"


def _headline(recipe: Recipe, artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
    """The figures that matter most: AP and latency of every engine, float against INT8."""
    bench, found = artifacts["bench"].result(BenchReport), artifacts["eval"].result(Accuracies)
    rows = []
    for name, accuracy in found.models.items():
        timed = bench.inferences[name]
        rows.append(
            {"model": name, "ap": accuracy.ap, "ap50": accuracy.ap50, "batch": timed.batch,
             "latency_ms_median": timed.latency_ms_median, "images_per_s": timed.images_per_s,
             "size_bytes": timed.size_bytes}
        )  # fmt: skip
    return {"name": recipe.name, "models": rows}
