"""From JPEG files to boxes: what each step costs an image, and which side holds the others up.

Every model goes through all files once a round, batch by batch, each step timed alone; rounds take turns as in
``repq.bench.latency``. In each round it also goes through them with decoding and letterboxing in background threads, as
a service would run: that throughput cannot exceed what the slowest side allows. Figures are medians over the rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from repq.concurrency import prefetch
from repq.errors import RepqError
from repq.machine.turns import Clock, in_order
from repq.progress import Progress, silent
from repq.recipe import BenchConfig
from repq.results import ModelInfo, ServiceRow

STEPS = ("decode", "preprocess", "infer", "postprocess")
Side = Literal["host", "graph", "loader"]


@dataclass(frozen=True)
class ServedModel:
    """A model with everything around it, as four steps; the output of each is the input of the next.

    Attributes:
        info: which model, in which runtime.
        loader: what decodes: ``opencv``, ``dali (cpu)`` …
        letterbox, nms: where that is done.
        decode: the bytes of some files to images; of a loader that letterboxes, to network input.
        batch: the one batch size that it takes; None: any.
    """

    info: ModelInfo
    loader: str
    letterbox: Side
    nms: Side
    decode: Callable[[Sequence[bytes]], Any]
    preprocess: Callable[[Any], Any]
    infer: Callable[[Any], Any]
    postprocess: Callable[[Any], Any]
    batch: int | None = None

    def steps(self) -> tuple[Callable[[Any], Any], ...]:
        return self.decode, self.preprocess, self.infer, self.postprocess


def time_service(
    models: Sequence[ServedModel],
    files: Sequence[bytes],
    batch: int,
    threads: int,
    config: BenchConfig,
    *,
    clock: Clock = time.perf_counter_ns,
    progress: Progress = silent,
) -> tuple[ServiceRow, ...]:
    """Time every model on all files.

    Args:
        files: at least a batch; what does not fill the last batch is left out.
        threads: background threads of the overlapped run.

    Raises:
        RepqError: there are fewer files than the batch holds.
    """
    chunks = [files[start : start + batch] for start in range(0, len(files) - batch + 1, batch)]
    if not chunks:
        raise RepqError(
            f"a batch of {batch} needs as many images",
            found=f"{len(files)} images",
            fix="give more, or batch fewer",
        )
    spent: list[list[dict[str, float]]] = [[] for _ in models]
    overlapped: list[list[float]] = [[] for _ in models]
    for model in models:
        _pass(model, chunks[:1], clock)
    for number in progress(range(config.rounds), total=config.rounds, label=f"files to boxes, batch {batch}"):
        for index in in_order(len(models), number):
            spent[index].append(_pass(models[index], chunks, clock))
            overlapped[index].append(_overlapped(models[index], chunks, threads, clock))
    images = batch * len(chunks)
    return tuple(
        _row(model, rounds, float(np.median(together)), images, batch, threads)
        for model, rounds, together in zip(models, spent, overlapped, strict=True)
    )


def _pass(model: ServedModel, chunks: Sequence[Sequence[bytes]], clock: Clock) -> dict[str, float]:
    """Nanoseconds of each step over all chunks."""
    spent = dict.fromkeys(STEPS, 0.0)
    for chunk in chunks:
        value: Any = chunk
        for name, step in zip(STEPS, model.steps(), strict=True):
            start = clock()
            value = step(value)
            spent[name] += clock() - start
    return spent


def _overlapped(model: ServedModel, chunks: Sequence[Sequence[bytes]], threads: int, clock: Clock) -> float:
    """Nanoseconds for all chunks with the first two steps in background threads."""
    start = clock()
    for prepared in prefetch(
        lambda chunk: model.preprocess(model.decode(chunk)),
        chunks,
        workers=threads if model.letterbox != "loader" else 1,  # such a loader has its own threads
        ahead=2 * threads,
    ):
        model.postprocess(model.infer(prepared))
    return clock() - start


def _row(
    model: ServedModel, rounds: Sequence[dict[str, float]], overlapped: float, images: int, batch: int, threads: int
) -> ServiceRow:
    per_image = {name: float(np.median([spent[name] for spent in rounds])) / images / 1e6 for name in STEPS}
    total = sum(per_image.values())
    slowest = max(per_image, key=lambda name: per_image[name])
    return ServiceRow(
        **dict(model.info),
        loader=model.loader,
        letterbox=model.letterbox,
        nms=model.nms,
        batch=batch,
        threads=threads,
        images=images,
        **{f"{name}_ms": value for name, value in per_image.items()},
        images_per_s=1e3 / total if total else None,
        overlapped_images_per_s=1e9 * images / overlapped if overlapped else None,
        bottleneck=slowest,
        bottleneck_share=per_image[slowest] / total if total else None,
    )
