"""Time that the GPU itself needs, without copies and without the host: CUDA events around each run.

A small network is over before the host has started its next kernel. A CUDA graph starts all kernels at once; the
difference between both times is what starting them one by one costs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class DeviceWork:
    """Work that can be put on a stream, with its input in the GPU's memory already.

    Attributes:
        launch: puts one run on ``stream``.
        stream: CUDA's handle of it.
    """

    launch: Callable[[], object]
    stream: int


def device_ms(work: DeviceWork, runs: int, warmup: int, *, graph: bool) -> float | None:
    """Median milliseconds of one run on the device; None: torch has no CUDA here, or the work cannot be captured.

    Args:
        graph: run it as one CUDA graph.
    """
    import torch

    if not torch.cuda.is_available():
        return None
    stream = torch.cuda.ExternalStream(work.stream)
    with torch.inference_mode(), torch.cuda.stream(stream):
        for _ in range(max(warmup, 3)):  # the first runs choose kernels, which no capture may do
            work.launch()
        stream.synchronize()
        launch = work.launch
        if graph:
            captured = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(captured, stream=stream):
                    work.launch()
            except RuntimeError:
                return None
            launch = captured.replay
            launch()
        times = []
        for _ in range(runs):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record(stream)
            launch()
            end.record(stream)
            end.synchronize()
            times.append(start.elapsed_time(end))
    return float(np.median(times))
