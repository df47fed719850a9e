"""Timing as a stage, and what the machine is."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repq.api.images import open_data
from repq.api.measuring import timed
from repq.api.opening import CHECKPOINT_SUFFIXES, labels, load
from repq.progress import Progress, silent
from repq.recipe import BenchConfig
from repq.results import Availability, BenchReport, Environment
from repq.stages.build import built
from repq.stages.stage import Job, Section, Stage

if TYPE_CHECKING:
    from repq.data import DetectionDataset

_IMAGES = 16
"""Of the data set, decoded and in memory."""


def bench_models(
    models: Sequence[Path],
    imgsz: tuple[int, int],
    config: BenchConfig,
    *,
    engines: Sequence[Any] = (),
    dataset: DetectionDataset | None = None,
    images: int = 64,
    device: str = "cpu",
    seed: int = 0,
    progress: Progress = silent,
) -> BenchReport:
    """Time models of any form side by side in one run, with pre- and post-processing on images of the data set.

    Args:
        images: of the data set, the first ones; no more of them are held in memory than `_IMAGES`.

    Raises:
        RepqError: a model cannot be opened, or does not take this size or batch.
    """
    from repq.data import read_image

    opened = []
    for path, name in zip(models, labels(models), strict=True):
        for engine, half in _forms(path, engines, device):
            label = name if engine is None else f"{name} ({engine})"
            model = load(path, engine=engine, imgsz=imgsz, device=device, half=half)
            opened.append((f"{label} FP16" if half else label, model))
    records = dataset.records[: min(images, _IMAGES)] if dataset and config.end_to_end else ()
    read = [read_image(record.path) for record in records]
    return timed(opened, imgsz, config, images=read, seed=seed, progress=progress)


def _forms(path: Path, engines: Sequence[Any], device: str) -> list[tuple[Any, bool]]:
    """The runtimes of one file, and whether in FP16: torch runs a float checkpoint on a GPU in both."""
    chosen = list(engines) if engines and not path.is_dir() else [None]
    forms = [(engine, False) for engine in chosen]
    on_torch = path.suffix in CHECKPOINT_SUFFIXES and set(chosen) & {None, "torch"}
    if on_torch and device.startswith("cuda") and not load(path).quantized:
        forms += [(engine, True) for engine in chosen if engine in (None, "torch")]
    return forms


def write_bench(report: BenchReport, folder: Path) -> None:
    """Write ``bench.json``, and the table and the plot as a page (``report.html``, ``.md``, ``.json``)."""
    from repq.files import write_text
    from repq.report import ReportSummary, render_report

    write_text(folder / "bench.json", report.model_dump_json(indent=1))
    summary = ReportSummary(
        title="Latency",
        created=date.today().isoformat(),
        environment=report.environment,
        results={"bench": report},
    )
    render_report(summary, folder)


def diagnose_machine() -> tuple[Environment, list[Availability]]:
    """What this machine is and which runtimes work on it."""
    from repq.engine import availability
    from repq.machine.environment import capture_environment

    return capture_environment(), list(availability())


def _bench(job: Job) -> BenchReport:
    recipe, config = job.recipe, job.section("bench", BenchConfig)
    return bench_models(
        list(built(job).values()), recipe.imgsz, config, dataset=open_data(job.data, recipe.data.val),
        seed=recipe.seed, progress=job.progress,
    )  # fmt: skip


STAGE = Stage(
    "bench", _bench, {"bench": Section(BenchConfig)}, ("imgsz",), reads=("build/*",), splits=("val",),
    result=BenchReport, on_machine=True,
)  # fmt: skip
