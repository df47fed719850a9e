"""Latency of several models, side by side in one run.

Speed drifts while a machine works: clocks change, other processes come and go. So the models take turns, a few runs
each, and the order reverses every round (A B C, C B A, …): a drift then meets all alike. What is compared is the
median of one model over the median of another at the same setting, from the same run.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from repq.bench.device_time import DeviceWork, device_ms
from repq.errors import RepqError
from repq.machine.environment import capture_environment
from repq.machine.gpu_readings import GpuWatch
from repq.machine.load import OtherLoad
from repq.machine.turns import Clock, time_in_turns
from repq.progress import Progress, silent
from repq.recipe import BenchConfig
from repq.results import BenchReport, BenchRow, Environment, ModelInfo

Scope = Literal["infer", "end_to_end"]
RawImages = Sequence[NDArray[np.uint8]]


@dataclass(frozen=True)
class Runner:
    """How to run one model.

    Attributes:
        infer: network input (B, 3, H, W), float32, to whatever the model gives.
        preprocess: decoded images (H, W, 3), uint8, to network input; None: only ``infer`` is timed.
        postprocess: what ``infer`` gives, to boxes; None: only ``infer`` is timed.
        inputs: batch size -> network input, of a model that takes something else than floats (B, 3, H, W).
        images: decoded images for the runs with pre- and post-processing, of a model that takes one size only.
        on_device: batch size -> the model's work on a GPU, whose time is then given as well.
    """

    infer: Callable[[Any], Any]
    preprocess: Callable[[RawImages], Any] | None = None
    postprocess: Callable[[Any], Any] | None = None
    inputs: Callable[[int], Any] | None = None
    images: RawImages | None = None
    on_device: Callable[[int], DeviceWork] | None = None


@dataclass(frozen=True)
class TimedModel:
    """A model to be timed.

    Attributes:
        info: which model, in which runtime.
        open: number of CPU threads -> runner; called once per number, outside the timing.
        batch: the one batch size that it takes; None: any.
    """

    info: ModelInfo
    open: Callable[[int], Runner]
    batch: int | None = None


@dataclass(frozen=True)
class _Job:
    """One model at one setting: what is called in the timed part."""

    model: TimedModel
    scope: Scope
    run: Callable[[], Any]
    device: DeviceWork | None = None


def bench(
    models: Sequence[TimedModel],
    imgsz: tuple[int, int],
    config: BenchConfig | None = None,
    *,
    images: RawImages | None = None,
    seed: int = 0,
    clock: Clock = time.perf_counter_ns,
    environment: Environment | None = None,
    progress: Progress = silent,
    watch_gpu: int | None = None,
) -> BenchReport:
    """Time models side by side at every batch size and number of threads.

    Args:
        models: the first one is the base of ``speedup``.
        imgsz: height and width of the network input.
        images: decoded images for the runs with pre- and post-processing; without any there are no such runs.
        seed: of the noise that is the network input.
        clock: where time comes from.
        environment: default: this machine, captured before the first run.
        watch_gpu: index of a GPU whose clocks and power are read meanwhile.

    Returns:
        One row per setting, scope and model, in this order; latencies are for a whole batch.

    Raises:
        RepqError: there is no model, two have one label, or a model does not take a batch size.
    """
    config = config or BenchConfig()
    _check(models, config)
    environment = environment or capture_environment()
    rng = np.random.default_rng(seed)
    load = OtherLoad()
    raw = list(images or ())
    scopes: tuple[Scope, ...] = ("infer", "end_to_end") if config.end_to_end and raw else ("infer",)
    rows: list[BenchRow] = []
    for threads in config.threads:
        runners = [model.open(threads) for model in models]
        for batch in config.batches:
            inputs = rng.random((batch, 3, *imgsz), dtype=np.float32)
            for scope in scopes:
                jobs = _jobs(models, runners, scope, inputs, raw)
                label = f"{batch} x {threads} threads, {scope}"
                with GpuWatch(watch_gpu) as watch:
                    samples = time_in_turns([job.run for job in jobs], config, clock, progress, label)
                base = float(np.median(samples[0])) if jobs and jobs[0].model is models[0] else None
                for job, times in zip(jobs, samples, strict=True):
                    rows.append(_with_device(job, _row(job, times, base, batch, threads), config, watch))
    used = len(raw) if len(scopes) > 1 else 0
    return BenchReport(
        rows=tuple(rows), environment=environment, imgsz=imgsz, rounds=config.rounds, images=used,
        **dict(load.so_far(max(config.threads, default=1))),
    )  # fmt: skip


def _jobs(
    models: Sequence[TimedModel],
    runners: Sequence[Runner],
    scope: Scope,
    inputs: NDArray[np.float32],
    raw: RawImages,
) -> list[_Job]:
    jobs = []
    for model, runner in zip(models, runners, strict=True):
        if scope == "infer":
            own = inputs if runner.inputs is None else runner.inputs(len(inputs))
            device = None if runner.on_device is None else runner.on_device(len(inputs))
            jobs.append(_Job(model, scope, partial(runner.infer, own), device))
        elif runner.preprocess is not None and runner.postprocess is not None:
            known = itertools.cycle(runner.images or raw)  # every model sees the same ones
            way = _whole_way(runner.preprocess, runner.infer, runner.postprocess, known, len(inputs))
            jobs.append(_Job(model, scope, way))
    return jobs


def _whole_way(
    preprocess: Callable[[RawImages], Any],
    infer: Callable[[Any], Any],
    postprocess: Callable[[Any], Any],
    pictures: Iterator[NDArray[np.uint8]],
    batch: int,
) -> Callable[[], Any]:
    return lambda: postprocess(infer(preprocess(list(itertools.islice(pictures, batch)))))


def _row(job: _Job, times: Sequence[float], base: float | None, batch: int, threads: int) -> BenchRow:
    median = float(np.median(times))
    return BenchRow(
        **dict(job.model.info),
        batch=batch,
        threads=threads,
        scope=job.scope,
        latency_ms_median=median,
        latency_ms_p95=percentile(times, 95),
        images_per_s=1e3 * batch / median if median > 0 else None,
        runs=len(times),
        speedup=base / median if base is not None and median > 0 else None,
        samples_ms=tuple(times),
    )


def percentile(samples: Sequence[float], percent: int) -> float | None:
    """None of so few runs that on average not one lies above it: it would be the slowest run by another name."""
    return float(np.percentile(samples, percent)) if len(samples) * (100 - percent) >= 100 else None


def _with_device(job: _Job, row: BenchRow, config: BenchConfig, watch: GpuWatch) -> BenchRow:
    changes: dict[str, Any] = {"gpu": watch.readings}
    if job.device is not None:
        runs = config.rounds * config.runs_per_round
        changes["device_ms_median"] = device_ms(job.device, runs, config.warmup, graph=False)
        changes["device_graph_ms_median"] = device_ms(job.device, runs, config.warmup, graph=True)
    return row.model_copy(update=changes)


def _check(models: Sequence[TimedModel], config: BenchConfig) -> None:
    if not models:
        raise RepqError("there is nothing to time", fix="name at least one model")
    labels = [model.info.model for model in models]
    repeated = sorted({label for label in labels if labels.count(label) > 1})
    if repeated:
        raise RepqError("two models have one label", found=", ".join(repeated), fix="name them differently")
    for model in models:
        wrong = [batch for batch in config.batches if model.batch not in (None, batch)]
        if wrong:
            raise RepqError(
                f"{model.info.model} takes batches of {model.batch} only",
                found=f"batches of {', '.join(map(str, wrong))} asked for",
                fix="export it with a dynamic batch (export.batch: null), or time the size that it has",
            )
