"""What layers cost in float, in milliseconds: each alone, and plans as a whole.

A layer alone comes from the runtime's own clock: the difference that one layer makes to a whole inference is smaller
than the noise of timing it. What the clock of a layer does not see, conversions between float and INT8 layers, shows
when a plan as a whole is timed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from statistics import median

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from repq.engine import Engine, build
from repq.files import scratch_folder
from repq.graph import insert_qdq, propagate_qdq, save_onnx
from repq.layers import LayerId
from repq.machine.turns import time_in_turns
from repq.progress import Progress, silent
from repq.recipe import BenchConfig, BuildConfig, EngineName
from repq.scales import ScaleTable


def layer_milliseconds(
    engine: EngineName,
    graph: ModelProto,
    scales: ScaleTable,
    imgsz: tuple[int, int],
    config: BenchConfig,
    *,
    progress: Progress = silent,
) -> dict[LayerId, float]:
    """What each layer of ``scales`` takes longer in float than in INT8, in milliseconds; below 0 if it is faster.

    The float engine and the one with all layers in INT8 take turns; each time is a median over the rounds.

    Args:
        graph: float32, with a fixed batch.
        scales: of all layers.
        config: rounds, and runs in each; the first number of threads counts.

    Raises:
        EngineError: the runtime does not tell the time of its layers, or cannot build the graph.
    """
    images = _noise(imgsz)
    with plan_engines(engine, graph, scales, [(), tuple(scales)], config) as (float_engine, int8_engine):
        times: dict[str, dict[LayerId, list[float]]] = {"float": {}, "int8": {}}
        for _ in progress(range(config.rounds), total=config.rounds, label="layer times"):
            for name, built in (("float", float_engine), ("int8", int8_engine)):
                for layer, value in built.layer_times(images, config.runs_per_round).items():
                    times[name].setdefault(layer, []).append(value)
    both = [layer for layer in scales if layer in times["float"] and layer in times["int8"]]
    return {layer: median(times["float"][layer]) - median(times["int8"][layer]) for layer in both}


def time_plans(
    engine: EngineName,
    graph: ModelProto,
    scales: ScaleTable,
    plans: Sequence[Sequence[LayerId]],
    imgsz: tuple[int, int],
    config: BenchConfig,
    *,
    progress: Progress = silent,
) -> list[list[float]]:
    """Milliseconds of every timed inference of each plan, given by its INT8 layers; the plans take turns."""
    graphs = [_planned(graph, scales, int8) for int8 in plans]
    return time_graphs(engine, graphs, imgsz, config, progress=progress, label="latency of plans")


def time_graphs(
    engine: EngineName,
    graphs: Sequence[ModelProto],
    imgsz: tuple[int, int],
    config: BenchConfig,
    *,
    label: str,
    progress: Progress = silent,
) -> list[list[float]]:
    """Milliseconds of every timed inference of each graph, which take turns; the first number of threads counts.

    Raises:
        EngineError: the runtime cannot build a graph.
    """
    images = _noise(imgsz)
    with _engines(engine, graphs, config) as engines:
        runs = [partial(built.infer, images) for built in engines]
        return time_in_turns(runs, config, progress=progress, label=label)


@contextmanager
def plan_engines(
    name: EngineName,
    graph: ModelProto,
    scales: ScaleTable,
    plans: Sequence[Sequence[LayerId]],
    config: BenchConfig,
) -> Iterator[list[Engine]]:
    """One engine for each plan, given by its INT8 layers, as long as the block runs."""
    with _engines(name, [_planned(graph, scales, int8) for int8 in plans], config) as engines:
        yield engines


def _planned(graph: ModelProto, scales: ScaleTable, int8: Sequence[LayerId]) -> ModelProto:
    chosen = {layer: scales[layer] for layer in int8}
    return propagate_qdq(insert_qdq(graph, chosen)) if chosen else graph


@contextmanager
def _engines(name: EngineName, graphs: Sequence[ModelProto], config: BenchConfig) -> Iterator[list[Engine]]:
    with scratch_folder() as folder:
        engines = []
        for number, graph in enumerate(graphs):
            path = folder / f"{number}.onnx"
            save_onnx(path, graph)
            engines.append(build(name, path, BuildConfig(threads=config.threads[0])))
        yield engines


def _noise(imgsz: tuple[int, int]) -> NDArray[np.float32]:
    return np.random.default_rng(0).random((1, 3, *imgsz), dtype=np.float32)
