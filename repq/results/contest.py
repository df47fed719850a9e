"""Every engine and precision of one checkpoint, side by side."""

from __future__ import annotations

from pydantic import Field

from repq.results.base import Result
from repq.results.engines import Availability, ModelInfo
from repq.results.timing import Measured, Timed


class BatchTiming(Measured):
    """Latency at one batch size, milliseconds for a whole batch. None: not measured, and ``reason`` says why.

    The 95th percentile is that of 20 ``runs`` or more, the 99th that of 100: fewer have none. ``memory_bytes`` is the
    peak of the resident memory of a process that does nothing else.
    """

    batch: int
    mean_ms: float | None = None
    std_ms: float | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    images_per_s: float | None = None
    runs: int = 0
    memory_bytes: int | None = None
    reason: str | None = None


class Contender(ModelInfo):
    """One engine in one precision; ``timings`` begin with the smallest batch.

    Attributes:
        ap, ap50: on the validation split.
        int8_macs_share: multiply-adds in layers that are known to run in INT8; None: the runtime tells of none.
        setup: what had to be installed.
    """

    ap: float
    ap50: float
    timings: tuple[BatchTiming, ...]
    int8_macs_share: float | None
    setup: str

    @property
    def first(self) -> BatchTiming:
        return self.timings[0]


class Choice(Result):
    """Which of the contenders to ship. None: none is within the bounds. ``reasons`` say why, in sentences."""

    ship: str | None
    int8_pays: bool
    max_drop: float
    max_ms: float | None
    reasons: tuple[str, ...]


class Contest(Timed):
    """What was compared, the reference first, and the engines that are not in it, with the reason."""

    contenders: tuple[Contender, ...]
    imgsz: tuple[int, int]
    threads: int
    images: int
    missing: tuple[Availability, ...] = Field(default=())
    choice: Choice | None = None
