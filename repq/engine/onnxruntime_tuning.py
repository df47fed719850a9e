"""Which layers of a graph ONNX Runtime computes faster in INT8, where their results are needed in float.

SiLU, Hardswish and additions read floats. A convolution before them can sum integers all the same, and make floats of
the sums: the same result, two operators more that pass over all of it. It pays where the CPU multiplies integers much
faster than floats, and not in depthwise layers; so it is measured, layer by layer, on the machine at hand.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection
from functools import partial

import numpy as np
import onnx
from numpy.typing import NDArray

from repq.engine.base import Engine, EngineManifest
from repq.engine.onnxruntime import OnnxRuntimeEngine
from repq.graph.lowering_onnxruntime import float_results, lower
from repq.machine.cpu import has_dot_products
from repq.machine.turns import time_in_turns
from repq.recipe import BenchConfig

ROUNDS, RUNS = 3, 4
"""How often the two take turns, and the runs of a turn. Of each layer the shortest mean counts."""


def tuned(manifest: EngineManifest, model: onnx.ModelProto) -> OnnxRuntimeEngine:
    """The engine with every layer in the faster form; the one without integer sums if all in all they do not pay."""
    plain = OnnxRuntimeEngine(manifest, lower(model))
    candidates = float_results(model)
    if not candidates:
        return plain
    images = _images(manifest)
    every = _with_sums(manifest, model, candidates)
    before, after = _shortest(plain, candidates, images), _shortest(every, candidates, images)
    faster = [layer for layer in candidates if after[layer] < before[layer]]
    if not faster:
        return plain
    chosen = _with_sums(manifest, model, faster)
    return chosen if _is_faster(chosen, plain, images) else plain


def _with_sums(manifest: EngineManifest, model: onnx.ModelProto, layers: Collection[str]) -> OnnxRuntimeEngine:
    return OnnxRuntimeEngine(manifest, lower(model, integer_sums=layers, signed_sums=has_dot_products()))


def _images(manifest: EngineManifest) -> NDArray[np.generic]:
    noise = np.random.default_rng(0).integers(0, 256, manifest.input.least_shape)
    return noise.astype(np.uint8) if manifest.input.dtype == "uint8" else (noise / 255).astype(np.float32)


def _shortest(engine: Engine, layers: Collection[str], images: NDArray[np.generic]) -> dict[str, float]:
    """Milliseconds of each layer with what makes floats of its sums."""
    found = dict.fromkeys(layers, float("inf"))
    for _ in range(ROUNDS):
        times = dict.fromkeys(layers, 0.0)
        for node in engine.profile(images, RUNS):
            if node.layer in times:
                times[node.layer] += node.ms
        found = {layer: min(found[layer], ms) for layer, ms in times.items()}
    return found


def _is_faster(one: Engine, other: Engine, images: NDArray[np.generic]) -> bool:
    """Whether one takes less time than the other, by the medians of runs in turns."""
    config = BenchConfig(warmup=1, rounds=ROUNDS, runs_per_round=RUNS)
    first, second = time_in_turns([partial(engine.infer, images) for engine in (one, other)], config)
    return statistics.median(first) < statistics.median(second)
