"""What a device is expected to need for a graph. Nothing here was measured."""

from __future__ import annotations

from typing import Literal

from repq.results.base import Result


class KernelEstimate(Result):
    """One kernel; microseconds for a whole batch. ``bound`` is the larger of its two limits."""

    name: str
    kind: str  # Conv, MaxPool, pointwise, quantize …
    precision: Literal["int8", "float16", "float32"]
    gflops: float
    megabytes: float
    compute_us: float
    memory_us: float
    total_us: float
    bound: Literal["compute", "memory", "launch"]


class Estimate(Result):
    """An estimate of one graph on one device."""

    device: str
    batch: int
    latency_ms: float
    images_per_s: float
    roofline_ms: float  # by the data sheet's peaks alone: no run can be faster
    extra_kernels_ms: float  # quantize, requantize and dequantize beside the layers
    kernels: tuple[KernelEstimate, ...]
    efficiencies: str  # where the factors between peak and reality come from
    notes: tuple[str, ...] = ()
