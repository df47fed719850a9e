"""Latency, and the machine that it was measured on."""

from __future__ import annotations

from typing import Literal

from repq.results.base import Range, Result


class Environment(Result):
    cpu: str
    cores: int
    cpu_features: tuple[str, ...]  # those that matter for INT8 and FP16: avx2, avx512_vnni, amx_int8 …
    memory_gib: float
    load_average: float
    os: str
    python: str
    libraries: dict[str, str]
    gpu: str | None = None


Variant = Literal["fp32", "fp16", "int8"]
"""What a model was built as. What its layers really ran in is in ``EngineDescription.layers``."""


class GpuReadings(Result):
    """What a GPU did while a model ran, as NVML says; None: it does not tell."""

    sm_clock_mhz: float  # median
    sm_clock_range_mhz: Range  # equal ends: the clock was held
    max_sm_clock_mhz: float | None
    power_w: float | None  # mean
    power_limit_w: float | None
    temperature_c: float | None  # highest
    limited_by: tuple[str, ...]  # what held the clock below its highest
    samples: int


class BenchRow(Result):
    """Latency of one model at one setting; milliseconds for a whole batch."""

    model: str
    engine: str
    variant: Variant
    precision: str  # what its layers really ran in
    batch: int
    threads: int
    scope: Literal["infer", "end_to_end"]  # end_to_end adds pre- and post-processing
    latency_ms_median: float
    latency_ms_p95: float
    images_per_s: float
    runs: int
    size_bytes: int
    speedup: float | None = None  # median of the first model at the same setting over this median
    samples_ms: tuple[float, ...] = ()
    spec: str | None = None  # the model's architecture, such as yolov6s_v2
    device_ms_median: float | None = None  # on the GPU alone: neither copies nor the host
    device_graph_ms_median: float | None = None  # the same as one CUDA graph
    gpu: GpuReadings | None = None  # during all models' turns at this setting


class ServiceRow(Result):
    """From JPEG files to boxes by one arrangement; milliseconds per image."""

    model: str
    engine: str
    precision: str
    loader: str  # what decodes: opencv, dali (cpu), dali (gpu)
    letterbox: Literal["host", "graph", "loader"]
    nms: Literal["host", "graph", "loader"]
    batch: int
    threads: int
    images: int
    decode_ms: float  # with the letterbox, where the loader does it
    preprocess_ms: float
    infer_ms: float
    postprocess_ms: float
    images_per_s: float  # one step after the other
    overlapped_images_per_s: float  # decoding and letterbox in background threads
    bottleneck: str  # the step that takes most
    bottleneck_share: float  # of the four steps together


class BenchReport(Result):
    rows: tuple[BenchRow, ...]
    environment: Environment
    imgsz: tuple[int, int]
    rounds: int
    service: tuple[ServiceRow, ...] = ()
