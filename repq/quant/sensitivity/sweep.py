"""One layer after another is quantized (or left in float), and the model's outputs are computed from there on.

Layers are swept in groups. For each group the images go through once: a batch's forward pass is recorded, then replayed
for every layer of the group (see ``tape``). Memory is one batch's activations; what is kept of a layer is up to the
caller. After each group the figures are in the journal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from repq.layers import LayerId
from repq.model import Detector
from repq.progress import Progress, silent
from repq.quant.sensitivity.journal import Entry, Journal
from repq.quant.similarity import Outputs
from repq.quant.state import quantized_layers, quantizing
from repq.quant.tape import record

Change = Literal["only_int8", "only_float"]
UNCHANGED = LayerId("")
"""Stands for no layer: the model as it is before any change."""


def changed_outputs(
    model: Detector, change: Change, items: Sequence[LayerId], inputs: Tensor
) -> Iterator[tuple[LayerId, Outputs]]:
    """Yield, for each item, the outputs with only that layer in INT8 (or only that layer in float).

    The outputs are the neck's maps, finest first, then boxes, scores and detections. They equal those of a whole
    forward pass bit for bit. ``UNCHANGED`` stands for the float model (or the model with all layers in INT8).

    Args:
        model: a calibrated model in eval mode that holds quantizers in all layers.
        inputs: (B, 3, H, W) on the model's device.

    Raises:
        QuantizationError: the model cannot be run in parts, or an item holds no quantizers.
    """
    modules = quantized_layers(model)
    base = frozenset() if change == "only_int8" else frozenset(modules)

    def forward(images: Tensor) -> Outputs:
        features = model.features(images)
        detections, parts = model.complete(features)
        return (*features, *parts, detections)

    with quantizing(model, base):
        tape = record(forward, inputs, modules, [item for item in items if item != UNCHANGED])
    for item in items:
        changed = () if item == UNCHANGED else (item,)
        with torch.no_grad(), quantizing(model, base.symmetric_difference(changed)):
            outputs = tape.replay(changed)
        yield item, outputs


def shard(items: Sequence[LayerId], rank: int, world_size: int) -> tuple[LayerId, ...]:
    """Every ``world_size``-th item: neighbours cost alike, so all processes get about the same work."""
    return tuple(items[rank::world_size])


def sweep(
    kind: str,
    items: Sequence[LayerId],
    measure: Callable[[Sequence[LayerId]], Mapping[LayerId, Mapping[str, float]]],
    journal: Journal,
    *,
    group: int,
    progress: Progress = silent,
) -> None:
    """Measure the items that the journal lacks, ``group`` at a time, and write each group down once it is measured."""
    known = journal.entries()
    missing = [item for item in items if (kind, item) not in known]
    groups = [missing[start : start + group] for start in range(0, len(missing), group)]
    for members in progress(groups, total=len(groups), label=kind.replace("_", " ")):
        started = time.perf_counter()
        measured = measure(members)
        seconds = (time.perf_counter() - started) / len(members)
        for item in members:
            journal.append(Entry(kind, item, measured[item], seconds))
