"""Times of several things, side by side: they take turns, and the order reverses every round.

Speed drifts while a machine works: clocks change, other processes come and go. A few runs each, in the order A B C,
C B A, …: a drift then meets all alike.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from typing import Any

from repq.memory import no_garbage_collection
from repq.progress import Progress, silent
from repq.recipe import BenchConfig

Clock = Callable[[], int]
"""Time in nanoseconds that only moves forward."""


def time_in_turns(
    runs: Sequence[Callable[[], Any]],
    config: BenchConfig,
    clock: Clock = time.perf_counter_ns,
    progress: Progress = silent,
    label: str = "",
) -> list[list[float]]:
    """Call every function ``rounds * runs_per_round`` times, in turns, and return each one's times in milliseconds.

    Each turn starts with calls that are not counted, one or as many as fill ``settle_ms``: the first brings the model
    back into the caches that the others emptied, and the threads of a runtime spin on for a while after its last run
    (ONNX Runtime's 30 ms, in which a model of another runtime takes up to half as long again). ``warmup`` calls of each
    go before everything.
    """
    samples: list[list[float]] = [[] for _ in runs]
    for run in runs:
        for _ in range(config.warmup):
            run()
    with no_garbage_collection():
        for number in progress(range(config.rounds), total=config.rounds, label=label):
            for index in in_order(len(runs), number):
                _settle(runs[index], config.settle_ms, clock)
                for _ in range(config.runs_per_round):
                    start = clock()
                    runs[index]()
                    samples[index].append((clock() - start) / 1e6)
            gc.collect(1)  # what came in this round: a look at all that is loaded takes half a second
    return samples


def _settle(run: Callable[[], Any], milliseconds: float, clock: Clock) -> None:
    """Call a function once, and again as long as less time has gone by."""
    start = clock()
    run()
    while clock() - start < milliseconds * 1e6:
        run()


def in_order(count: int, number: int) -> Sequence[int]:
    """The turns of a round: forward in even rounds, backward in odd ones."""
    return range(count) if number % 2 == 0 else range(count - 1, -1, -1)
