"""Pruning as a stage: from weights to smaller weights, and what that cost."""

from __future__ import annotations

from datetime import date
from pathlib import Path

from repq.amounts import percent
from repq.api.fitting import fitted
from repq.api.images import with_sizes
from repq.api.opening import save_weights
from repq.api.pruning import pruned
from repq.errors import RepqError
from repq.log import Log, quiet
from repq.recipe import PruneConfig
from repq.results import PruneReport
from repq.stages.context import Context
from repq.stages.stage import Job, Section, Stage


def prune_checkpoint(
    weights: Path,
    out: Path,
    config: PruneConfig,
    context: Context,
    *,
    evaluate: bool = True,
    state: Path | None = None,
) -> PruneReport:
    """Prune a float checkpoint or graph (it is fused first), let it recover by imitation of itself, and write it.

    Args:
        out: .safetensors, or .onnx for a graph of size ``context.imgsz``.
        context: with images to rank channels by, to train on and to evaluate by; without any only weights are looked
            at.
        state: file that lets a killed recovery continue, but where the target is a latency: what is measured again may
            choose other channels. It is removed when ``out`` is written.

    Raises:
        CheckpointError: the weights are quantized.
        RepqError: the target cannot be reached, or what ranks channels needs data or labels that are not there.
    """
    state = None if config.latency is not None else state
    trained, log = context.open_float(weights), context.log
    train_set = val_set = None
    if context.data is not None:
        train_set = fitted(with_sizes(context.train_set()), trained.names, weights.name, log)
        val_set = context.labelled_val_set() if evaluate else None
        val_set = None if val_set is None else fitted(val_set, trained.names, weights.name, log)
    smaller, report = pruned(
        trained, config, train_set=train_set, val_set=val_set, imgsz=context.imgsz, eval_config=context.eval_config,
        device=context.device, seed=context.seed, state=state, progress=context.progress, log=log,
    )  # fmt: skip
    save_weights(out, smaller, context.imgsz)
    if state is not None:
        state.unlink(missing_ok=True)
    return report


def write_sweep(report: PruneReport, folder: Path, *, data: str, imgsz: tuple[int, int], log: Log = quiet) -> None:
    """Write what the sweep found as ``report.html``, ``.md`` and ``.json``; without the libraries, say so."""
    from repq.machine.environment import capture_environment
    from repq.report import ReportSummary, render_report

    summary = ReportSummary(
        title=f"{report.model}: what pruning each group costs",
        created=date.today().isoformat(),
        environment=capture_environment(),
        model=report.model,
        data=data,
        imgsz=imgsz,
        results={"prune": report},
    )
    try:
        render_report(summary, folder)
    except RepqError as error:  # what was pruned is written all the same
        log(str(error))


def _prune(job: Job) -> PruneReport:
    out, config = job.payload / "pruned.safetensors", job.section("prune", PruneConfig)
    report = prune_checkpoint(job.weights, out, config, job.context, state=job.resume / "state")
    job.log(f"  {percent(report.macs_after / report.macs_before)} of the multiply-adds are left")
    return report


STAGE = Stage(
    "prune", _prune, {"prune": Section(PruneConfig, optional=True)}, ("weights", "imgsz", "graph", "eval", "device"),
    reads=("train/weights.safetensors",), splits=("train", "val"), result=PruneReport,
    on_machine=lambda recipe: recipe.prune is not None and recipe.prune.latency is not None,
)  # fmt: skip
