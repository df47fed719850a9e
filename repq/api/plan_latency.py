"""What float layers cost in an engine, as the search for a plan and its report need it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from repq.layers import LayerId
from repq.machine.load import OtherLoad
from repq.progress import Progress, silent
from repq.recipe import BenchConfig, EngineName
from repq.results import FrontPoint, LatencyFront, joined_load

if TYPE_CHECKING:
    from repq.model import Detector
    from repq.quant.sensitivity import Assessment

TIMING = BenchConfig(threads=(1,), warmup=3, rounds=7, runs_per_round=10, end_to_end=False)
"""One thread: what a layer costs is then work, and less at the mercy of what else the machine does."""


def layer_costs(
    engine: EngineName, model: Detector, imgsz: tuple[int, int], progress: Progress = silent
) -> LatencyFront:
    """Milliseconds that every layer takes longer in float than in INT8, without any points yet.

    Raises:
        EngineError: the runtime is missing or does not tell the time of its layers.
    """
    from repq.bench import layer_milliseconds
    from repq.export import export_float
    from repq.quant import scale_table

    graph, scales, load = export_float(model, imgsz), scale_table(model), OtherLoad()
    found = layer_milliseconds(engine, graph, scales, imgsz, TIMING, progress=progress)
    (threads,) = TIMING.threads
    return LatencyFront(
        engine=engine, threads=threads, imgsz=imgsz, layer_ms={str(layer): ms for layer, ms in found.items()},
        **dict(load.so_far(threads)),
    )  # fmt: skip


def timed_front(
    front: LatencyFront,
    model: Detector,
    plans: Sequence[frozenset[LayerId]],
    chosen: frozenset[LayerId],
    outcomes: Sequence[Assessment],
    progress: Progress = silent,
) -> LatencyFront:
    """Time plans, given by their float layers, and mark those that no other one beats in both AP and latency.

    Args:
        chosen: the plan itself.
        outcomes: what each plan costs in AP.
    """
    from repq.bench import time_plans
    from repq.export import export_float
    from repq.model import count_macs
    from repq.quant import scale_table

    scales, macs = scale_table(model), count_macs(model, front.imgsz)
    graph, load = export_float(model, front.imgsz), OtherLoad()
    samples = time_plans(
        front.engine,
        graph,
        scales,
        [[layer for layer in scales if layer not in plan] for plan in plans],
        front.imgsz,
        TIMING,
        progress=progress,
    )
    together = joined_load(front, load.so_far(front.threads))
    total = sum(macs.values())
    points = [
        FrontPoint(
            float_layers=len(plan),
            int8_macs_share=1 - sum(macs[layer] for layer in plan) / total,
            drop=outcome.drop,
            drop_interval=outcome.interval,
            latency_ms=float(np.median(times)),
            latency_ms_range=(float(np.quantile(times, 0.25)), float(np.quantile(times, 0.75))),
            chosen=plan == chosen,
        )
        for plan, outcome, times in zip(plans, outcomes, samples, strict=True)
    ]
    return front.model_copy(update={"points": marked(points), **dict(together)})


def marked(points: Sequence[FrontPoint]) -> tuple[FrontPoint, ...]:
    """Points from the fastest to the slowest; efficient ones have a smaller drop than all that are faster."""
    least, marked = float("inf"), []
    for point in sorted(points, key=lambda point: (point.latency_ms, point.drop)):
        marked.append(point.model_copy(update={"efficient": point.drop < least}))
        least = min(least, point.drop)
    return tuple(marked)
