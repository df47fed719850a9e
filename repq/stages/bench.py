"""Timing as a stage, and what the machine is."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from repq.checkpoints import open_checkpoint
from repq.log import Log, quiet
from repq.predictor import CHECKPOINT_SUFFIXES, open_model
from repq.progress import Progress, silent
from repq.recipe import BenchConfig
from repq.results import Availability, BenchReport, Environment
from repq.stages.build import built
from repq.stages.evaluate import demand_size
from repq.stages.serving import service_as_exported
from repq.stages.stage import Job, Section, Stage

if TYPE_CHECKING:
    from repq.bench import DeviceWork, Runner
    from repq.service import Prepared, Service


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
        for engine, half in _forms(path, engines, device):
            predictor = open_model(path, engine=engine, imgsz=imgsz, device=device, half=half)
            demand_size(predictor, imgsz)
            label = path.name if engine is None else f"{path.name} ({engine})"
            label = f"{label} FP16" if half else label
            opener = partial(_open_runner, path, engine, imgsz, device, half, seed)
            timed.append(
                TimedModel(
                    label,
                    predictor.engine,
                    predictor.variant,
                    predictor.precision,
                    predictor.size_bytes,
                    opener,
                    predictor.batch,
                    predictor.spec,
                )
            )
    gpu = gpu_index(device, [model.engine for model in timed])
    return bench(timed, imgsz, config, seed=seed, progress=progress, watch_gpu=gpu)


def _forms(path: Path, engines: Sequence[Any], device: str) -> list[tuple[Any, bool]]:
    """The runtimes of one file, and whether in FP16: torch runs a float checkpoint on a GPU in both."""
    chosen = list(engines) if engines and not path.is_dir() else [None]
    forms = [(engine, False) for engine in chosen]
    on_torch = path.suffix in CHECKPOINT_SUFFIXES and set(chosen) & {None, "torch"}
    if on_torch and device.startswith("cuda") and not open_checkpoint(path).quantized:
        forms += [(engine, True) for engine in chosen if engine in (None, "torch")]
    return forms


def gpu_index(device: str, engines: Sequence[str]) -> int | None:
    """Which GPU a timing runs on; None: it runs on the CPU."""
    if device.startswith("cuda"):
        return int(device.partition(":")[2] or 0)
    return 0 if "tensorrt" in engines else None


def _open_runner(
    path: Path, engine: Any, imgsz: tuple[int, int], device: str, half: bool, seed: int, threads: int
) -> Runner:
    from repq.bench import Runner

    predictor = open_model(path, engine=engine, imgsz=imgsz, device=device, threads=threads, half=half)
    on_device = predictor.on_device
    service = service_as_exported(predictor, imgsz)
    noise = np.random.default_rng(seed).integers(0, 256, (*(predictor.preprocess.source or imgsz), 3), dtype=np.uint8)

    def run(prepared: Prepared) -> tuple[list[Any], Prepared]:
        return service.infer(prepared), prepared

    return Runner(
        infer=run,
        preprocess=service.prepare,
        postprocess=lambda ran: service.finish(*ran),
        inputs=lambda batch: service.prepare([noise] * batch),
        images=[noise],
        on_device=None if on_device is None else partial(_work_on_device, service, noise, on_device),
    )


def _work_on_device(service: Service, image: Any, on_device: Any, batch: int) -> DeviceWork:
    from repq.bench import DeviceWork

    (images,) = service.prepare([image] * batch).parts
    return DeviceWork(*on_device(images.shape))


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


def _bench(job: Job) -> BenchReport:
    return bench_models(
        list(built(job).values()), job.recipe.imgsz, job.section("bench", BenchConfig), seed=job.recipe.seed,
        progress=job.progress, log=job.log,
    )  # fmt: skip


STAGE = Stage(
    "bench", _bench, {"bench": Section(BenchConfig)}, ("imgsz",), reads=("build/*",), result=BenchReport,
    on_machine=True,
)  # fmt: skip
