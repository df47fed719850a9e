"""Timing as a stage, and what the machine is."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repq.log import Log, quiet
from repq.predictor import open_model
from repq.progress import Progress, silent
from repq.recipe import (
    BenchConfig,
    EvalConfig,
)
from repq.results import (
    Availability,
    BenchReport,
    Environment,
)
from repq.stages.accuracy import demand_size

if TYPE_CHECKING:
    from repq.bench import Runner


def bench_models(
    models: Sequence[Path],
    imgsz: tuple[int, int],
    config: BenchConfig,
    *,
    engines: Sequence[Any] = (),
    device: str = "cpu",
    seed: int = 0,
    progress: Progress = silent,
    log: Log = quiet,
) -> BenchReport:
    """Time models of any form side by side in one run.

    Raises:
        RepqError: a model cannot be opened, or does not take this size or batch.
    """
    from repq.bench import TimedModel, bench

    timed = []
    for path in models:
        for engine in engines if engines and not path.is_dir() else (None,):
            predictor = open_model(path, engine=engine, imgsz=imgsz, device=device)
            demand_size(predictor, imgsz)
            label = path.name if engine is None else f"{path.name} ({engine})"
            opener = partial(_open_runner, path, engine, imgsz, device)
            timed.append(
                TimedModel(
                    label,
                    predictor.engine,
                    predictor.variant,
                    predictor.precision,
                    predictor.size_bytes,
                    opener,
                    predictor.batch,
                )
            )
    return bench(timed, imgsz, config, seed=seed, progress=progress)


def _open_runner(path: Path, engine: Any, imgsz: tuple[int, int], device: str, threads: int) -> Runner:
    from repq.bench import Runner
    from repq.data import letterbox, to_input
    from repq.evaluate import postprocess

    config = EvalConfig()
    predictor = open_model(path, engine=engine, imgsz=imgsz, device=device, threads=threads)
    return Runner(
        infer=predictor.infer,
        preprocess=lambda images: to_input([letterbox(image, imgsz, config.letterbox)[0] for image in images]),
        postprocess=lambda detections: postprocess(detections, config),
    )


def write_bench(report: BenchReport, folder: Path) -> None:
    """Write ``bench.json``, and the table and the plot as a page (``report.html``, ``.md``, ``.json``)."""
    from repq.files import write_text
    from repq.report import ReportSummary, render_report

    write_text(folder / "bench.json", report.model_dump_json(indent=1))
    summary = ReportSummary(
        title="Latency", created=date.today().isoformat(), environment=report.environment, bench=report
    )
    render_report(summary, folder)


def diagnose_machine() -> tuple[Environment, list[Availability]]:
    """What this machine is and which runtimes work on it."""
    from repq.bench import capture_environment
    from repq.engine import availability

    return capture_environment(), list(availability())
