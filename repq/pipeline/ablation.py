"""Run an ablation, and gather what its runs measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from repq.files import has_text, write_text
from repq.log import Log, quiet
from repq.pipeline import RunOutcome, run_recipe
from repq.progress import Progress, silent
from repq.recipe import Effects, Recipe, Trial, engine_title
from repq.report.ablation import REPORTS, ablation_markdown, report_name, write_ablation_page
from repq.results import (
    AblationReport,
    Accuracies,
    BenchReport,
    LayerQuantization,
    PtqReport,
    QatReport,
    Shipped,
    TrialFigures,
)


def run_ablation(
    name: str,
    trials: Sequence[Trial],
    work: Path,
    *,
    effects: Effects | None = None,
    progress: Progress = silent,
    log: Log = quiet,
) -> AblationReport:
    """Run every trial and write ``ablation.json``, ``.md`` and ``.html`` into ``work``, and the report of each trial.

    All trials share one folder of artifacts, so that what several have in common, such as a training, is made once. A
    killed ablation goes on where it stopped.

    Args:
        effects: which variants make one change, and which one makes all.

    Raises:
        RepqError: a run failed in a way that the user can correct; what was complete before stays.
    """
    from repq.machine.environment import capture_environment

    measured = []
    for number, trial in enumerate(trials):
        log(f"{trial.variant}, seed {trial.seed} ({number + 1} of {len(trials)})")
        outcome = run_recipe(trial.recipe, work, as_it_is=True, progress=progress, log=log)
        variant = "int8" if effects is not None and trial.variant in effects.int8 else "float32"
        shipped = {} if effects is None else shipped_by(outcome, trial.recipe, variant)
        figures = figures_of(outcome)
        measured.append(TrialFigures(variant=trial.variant, seed=trial.seed, figures=figures, shipped=shipped))
        _keep_report(outcome, work / REPORTS / report_name(measured[-1]))
    compared = None if effects is None else (effects.baseline, effects.together)
    report = AblationReport(name=name, trials=tuple(measured), effects=compared)
    text = report.model_dump_json(indent=1) + "\n"
    if has_text(work / "ablation.json", text) and (work / "ablation.html").is_file():  # maybe on a read-only disk
        return report
    write_text(work / "ablation.md", ablation_markdown(report))
    write_ablation_page(report, capture_environment(), work)
    write_text(work / "ablation.json", text)
    return report


def figures_of(outcome: RunOutcome) -> dict[str, float]:
    """What is compared of a run: AP in float, simulated and in the engines, speed, and the ranges that explain it."""
    artifacts = outcome.artifacts
    ptq = artifacts["ptq"].result(PtqReport)
    quantized = artifacts["qat"].result(QatReport).accuracy if "qat" in artifacts else ptq.accuracy_quantized
    assert ptq.accuracy_float is not None and quantized is not None, "a run evaluates"
    figures = {
        "AP FP32": ptq.accuracy_float.ap,
        "AP50 FP32": ptq.accuracy_float.ap50,
        "AP INT8 simulated": quantized.ap,
        "AP lost": ptq.accuracy_float.ap - quantized.ap,
    }
    for name, accuracy in artifacts["eval"].result(Accuracies).models.items():
        engine, _, variant = name.rpartition("-")
        if variant == "int8":
            figures[f"AP INT8 {engine_title(engine)}"] = accuracy.ap
            figures[f"AP50 INT8 {engine_title(engine)}"] = accuracy.ap50
    for row in outcome.verdict.engines:
        if row.speedup is not None and not outcome.verdict.crowded:
            figures[f"times as fast as FP32, {engine_title(row.engine)}"] = row.speedup
    return {**figures, **range_figures(ptq.layers)}


def shipped_by(outcome: RunOutcome, recipe: Recipe, variant: str) -> dict[str, Shipped]:
    """By engine, what a run ships in FP32 (``float32``) or in INT8 (``int8``), of the engines that were timed.

    With test-time augmentation the latency is the median of one pass, times what all passes took over that one.
    """
    from repq.evaluate import views
    from repq.quant import load_weights

    artifacts = outcome.artifacts
    accuracies = artifacts["eval"].result(Accuracies).models
    bench = artifacts["bench"].result(BenchReport)
    timed = bench.inferences
    model = load_weights(artifacts["fuse"] / "fused.safetensors").model
    macs = sum(layer.macs for layer in artifacts["ptq"].result(PtqReport).layers)
    areas = [height * width for height, width in (view.size for view in views(recipe.imgsz, recipe.eval.tta))]
    found = {}
    for name, accuracy in accuracies.items():
        engine, _, own = name.rpartition("-")
        if own != variant or name not in timed or timed[name].size_bytes is None:
            continue
        passes = 1.0 if accuracy.tta is None else accuracy.tta.time_ratio
        found[engine_title(engine)] = Shipped(
            ap=accuracy.ap,
            ap50=accuracy.ap50,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            macs=round(macs * sum(areas) / (recipe.imgsz[0] * recipe.imgsz[1])),
            latency_ms=None if bench.crowded else timed[name].latency_ms_median / timed[name].batch * passes,
            size_bytes=timed[name].size_bytes,
        )
    return found


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
