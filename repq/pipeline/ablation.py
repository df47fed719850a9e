"""Run an ablation, and gather what its runs measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from repq.files import write_text
from repq.log import Log, quiet
from repq.pipeline import RunOutcome, run_recipe
from repq.progress import Progress, silent
from repq.recipe import Trial, engine_title
from repq.report.ablation import REPORTS, ablation_markdown, report_name, write_ablation_page
from repq.results import AblationReport, CheckReport, LayerQuantization, PtqReport, TrialFigures


def run_ablation(
    name: str, trials: Sequence[Trial], work: Path, *, progress: Progress = silent, log: Log = quiet
) -> AblationReport:
    """Run every trial and write ``ablation.json``, ``.md`` and ``.html`` into ``work``, and the report of each trial.

    All trials share one folder of artifacts, so that what several have in common, such as a training, is made once. A
    killed ablation goes on where it stopped.

    Raises:
        RepqError: a run failed in a way that the user can correct; what was complete before stays.
    """
    from repq.bench import capture_environment

    measured = []
    for number, trial in enumerate(trials):
        log(f"{trial.variant}, seed {trial.seed} ({number + 1} of {len(trials)})")
        outcome = run_recipe(trial.recipe, work, as_it_is=True, progress=progress, log=log)
        measured.append(TrialFigures(variant=trial.variant, seed=trial.seed, figures=figures_of(outcome)))
        _keep_report(outcome, work / REPORTS / report_name(measured[-1]))
    report = AblationReport(name=name, trials=tuple(measured))
    write_text(work / "ablation.json", report.model_dump_json(indent=1) + "\n")
    write_text(work / "ablation.md", ablation_markdown(report))
    write_ablation_page(report, capture_environment(), work)
    return report


def figures_of(outcome: RunOutcome) -> dict[str, float]:
    """What is compared of a run: AP in float, simulated and in the engines, speed, and the ranges that explain it."""
    artifacts = outcome.artifacts
    ptq = artifacts["ptq"].result(PtqReport)
    check = artifacts["check"].result(CheckReport)
    assert ptq.accuracy_float is not None, "a run evaluates"
    figures = {
        "AP FP32": ptq.accuracy_float.ap,
        "AP50 FP32": ptq.accuracy_float.ap50,
        "AP INT8 simulated": check.reference.ap,
        "AP lost": ptq.accuracy_float.ap - check.reference.ap,
    }
    for row in check.engines:
        title = engine_title(row.engine)
        figures[f"AP INT8 {title}"] = row.accuracy.ap
        figures[f"AP50 INT8 {title}"] = row.accuracy.ap50
    for engine in outcome.verdict.engines:
        if engine.speedup is not None:
            figures[f"times as fast as FP32, {engine_title(engine.engine)}"] = engine.speedup
    return {**figures, **range_figures(ptq.layers)}


def range_figures(layers: Iterable[LayerQuantization]) -> dict[str, float]:
    """Ranges of the layers in INT8, and how well eight bits cover them."""
    rows = [row for row in layers if row.precision == "int8"]
    if not rows:
        return {}
    weights = [max(map(abs, row.weight_range)) for row in rows]
    activations = [max(map(abs, row.activation_range)) for row in rows]
    figures = {
        "largest |weight|": max(weights),
        "median over layers of the largest |weight|": statistics.median(weights),
        "largest |activation|": max(activations),
        "median over layers of the largest |activation|": statistics.median(activations),
    }
    for title, values in (
        ("weight SNR, median layer (dB)", [row.weight_snr_db for row in rows]),
        ("activation SNR, median layer (dB)", [row.activation_snr_db for row in rows]),
    ):
        known = [value for value in values if value is not None]
        if known:
            figures[title] = statistics.median(known)
    return figures


def _keep_report(outcome: RunOutcome, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, outcome.report.read_text(encoding="utf-8"))
