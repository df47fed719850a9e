"""Pruning as a stage: from weights to smaller weights, and what that cost."""

from __future__ import annotations

from datetime import date
from pathlib import Path

from repq.api.fitting import fitted
from repq.api.images import with_sizes
from repq.api.opening import save_weights
from repq.api.pruning import pruned
from repq.api.quantizing import open_float
from repq.errors import RepqError
from repq.log import Log, quiet
from repq.progress import Progress, silent
from repq.recipe import EvalConfig, GraphConfig, PruneConfig
from repq.results import PruneReport
from repq.stages.data import labelled, read_data
from repq.stages.stage import Job, Section, Stage


def prune_checkpoint(
    weights: Path,
    out: Path,
    config: PruneConfig,
    *,
    data: Path | None = None,
    splits: tuple[str, str] = ("train", "val"),
    imgsz: tuple[int, int] = (640, 640),
    eval_config: EvalConfig = EvalConfig(),
    graph: GraphConfig = GraphConfig(),
    device: str = "cpu",
    seed: int = 0,
    evaluate: bool = True,
    state: Path | None = None,
    progress: Progress = silent,
    log: Log = quiet,
) -> PruneReport:
    """Prune a float checkpoint or graph (it is fused first), let it recover by imitation of itself, and write it.

    Args:
        out: .safetensors, or .onnx for a graph of size ``imgsz``.
        data: images to rank channels by, to train on and to evaluate by; without it only weights are looked at.
        state: file that lets a killed recovery continue.

    Raises:
        CheckpointError: the weights are quantized.
        RepqError: the target cannot be reached, or what ranks channels needs data or labels that are not there.
    """
    trained = open_float(weights, log, imgsz, graph)
    train_set = val_set = None
    if data is not None:
        train_set = fitted(with_sizes(read_data(data, splits[0], log, progress)), trained.names, weights.name, log)
        val_set = labelled(data, splits[1], log, progress) if evaluate else None
        val_set = None if val_set is None else fitted(val_set, trained.names, weights.name, log)
    smaller, report = pruned(
        trained, config, train_set=train_set, val_set=val_set, imgsz=imgsz, eval_config=eval_config, device=device,
        seed=seed, state=state, progress=progress, log=log,
    )  # fmt: skip
    save_weights(out, smaller, imgsz)
    return report


def write_sweep(report: PruneReport, folder: Path, *, data: str, imgsz: tuple[int, int], log: Log = quiet) -> None:
    """Write what the sweep found as ``report.html``, ``.md`` and ``.json``; without the libraries, say so."""
    from repq.bench import capture_environment
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
    recipe, config = job.recipe, job.section("prune", PruneConfig)
    # A measured target may choose other channels the next time, which a recovery cannot go on with.
    state = None if config.latency is not None else job.resume / "state"
    report = prune_checkpoint(
        job.weights, job.payload / "pruned.safetensors", config, data=job.data,
        splits=(recipe.data.train, recipe.data.val), imgsz=recipe.imgsz, eval_config=recipe.eval, graph=recipe.graph,
        device=recipe.device, seed=recipe.seed, state=state, progress=job.progress, log=job.log,
    )  # fmt: skip
    job.log(f"  {report.macs_after / report.macs_before:.1%} of the multiply-adds are left")
    return report


STAGE = Stage(
    "prune", _prune, {"prune": Section(PruneConfig, optional=True)}, ("weights", "imgsz", "graph", "eval", "device"),
    reads=("train/weights.safetensors",), splits=("train", "val"), result=PruneReport,
    on_machine=lambda recipe: recipe.prune is not None and recipe.prune.latency is not None,
)  # fmt: skip
