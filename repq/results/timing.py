"""Latency, and the machine that it was measured on."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict

from repq.results.base import Range, Result, measured_time
from repq.results.engines import ModelInfo


class Measured(Result):
    """Figures of which each is a number, or None where it was not measured; never NaN or an infinity."""

    model_config = ConfigDict(allow_inf_nan=False)


class Environment(Measured):
    cpu: str
    cores: int
    cpu_features: tuple[str, ...]  # those that matter for INT8 and FP16: avx2, avx512_vnni, amx_int8 …
    memory_gib: float
    load_average: float
    os: str
    python: str
    libraries: dict[str, str]
    gpu: str | None = None


class GpuReadings(Measured):
    """What a GPU did while a model ran, as NVML says; None: it does not tell."""

    sm_clock_mhz: float  # median
    sm_clock_range_mhz: Range  # equal ends: the clock was held
    max_sm_clock_mhz: float | None
    power_w: float | None  # mean
    power_limit_w: float | None
    temperature_c: float | None  # highest
    limited_by: tuple[str, ...]  # what held the clock below its highest
    samples: int


class BenchRow(ModelInfo, Measured):
    """Latency of one model at one setting; milliseconds for a whole batch. None: the clock did not move.

    The 95th percentile is that of 20 ``runs`` or more: fewer have none.
    """

    batch: int
    threads: int
    scope: Literal["infer", "end_to_end"]  # end_to_end adds pre- and post-processing
    latency_ms_median: float
    latency_ms_p95: float | None
    images_per_s: float | None
    runs: int
    speedup: float | None = None  # median of the first model at the same setting over this median
    samples_ms: tuple[float, ...] = ()
    device_ms_median: float | None = None  # on the GPU alone: neither copies nor the host
    device_graph_ms_median: float | None = None  # the same as one CUDA graph
    gpu: GpuReadings | None = None  # during all models' turns at this setting


class ServiceRow(ModelInfo, Measured):
    """From JPEG files to boxes by one arrangement; milliseconds per image. None: the clock did not move."""

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
    images_per_s: float | None  # one step after the other
    overlapped_images_per_s: float | None  # decoding and letterbox in background threads
    bottleneck: str  # the step that takes most
    bottleneck_share: float | None  # of the four steps together


class MachineLoad(Measured):
    """What else a machine did while times were taken on it.

    Attributes:
        others: cores that other processes kept busy meanwhile.
        crowded: whether the models needed those cores: then no latency and no ratio is to be trusted.
    """

    others: float | None = measured_time(None)
    crowded: bool = measured_time(False)


def joined_load(*loads: MachineLoad) -> MachineLoad:
    """Of times of which some were taken with each of these loads."""
    known = [load.others for load in loads if load.others is not None]
    return MachineLoad(others=max(known, default=None), crowded=any(load.crowded for load in loads))


class Timed(MachineLoad):
    """Where times were taken, and what else that machine did."""

    environment: Environment


class BenchReport(Timed):
    rows: tuple[BenchRow, ...]
    imgsz: tuple[int, int]
    rounds: int
    images: int = 0  # of the data set, decoded beforehand, that the rows of the scope end_to_end ran on
    service: tuple[ServiceRow, ...] = ()

    @property
    def inferences(self) -> dict[str, BenchRow]:
        """By model, the first row of the network alone."""
        return {row.model: row for row in reversed(self.rows) if row.scope == "infer"}

    @property
    def processor(self) -> str:
        """What the models ran on, as far as the environment tells."""
        on_gpu = any(row.device_ms_median is not None or row.gpu is not None for row in self.rows)
        return self.environment.gpu if on_gpu and self.environment.gpu else self.environment.cpu
