"""What a GPU did while something ran: clocks, power, temperature, read from NVML. Nothing is ever set."""

from __future__ import annotations

import statistics
import threading
from contextlib import suppress
from types import TracebackType
from typing import Any

from repq.machine.cuda import bus_address
from repq.results import GpuReadings

INTERVAL_S = 0.02
_REASONS = {
    "SwPowerCap": "power limit",
    "HwSlowdown": "hardware slowdown",
    "HwThermalSlowdown": "hardware thermal slowdown",
    "SwThermalSlowdown": "thermal slowdown",
    "HwPowerBrakeSlowdown": "power brake",
    "ApplicationsClocksSetting": "clocks set by an administrator",
}
"""NVML's reason for a clock below the highest -> what the report calls it."""


class GpuWatch:
    """Reads the GPU every 20 ms between enter and exit. Without NVML or a GPU, ``readings`` is None.

    Args:
        index: which GPU, as CUDA counts those that this process sees; None: none is to be watched.
    """

    def __init__(self, index: int | None = 0) -> None:
        self._index = index
        self._handle: Any = None
        self._samples: list[tuple[float, float | None, float | None]] = []
        self._reasons: set[str] = set()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.readings: GpuReadings | None = None

    def __enter__(self) -> GpuWatch:
        self._handle = None if self._index is None else _handle(self._index)
        if self._handle is not None:
            self._thread = threading.Thread(target=self._watch, name="repq-gpu-watch", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join()
        self._sample()
        self.readings = self._summary()

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL_S):
            self._sample()

    def _sample(self) -> None:
        import pynvml

        clock = _asked(pynvml.nvmlDeviceGetClockInfo, self._handle, pynvml.NVML_CLOCK_SM)
        power = _asked(pynvml.nvmlDeviceGetPowerUsage, self._handle)
        temperature = _asked(pynvml.nvmlDeviceGetTemperature, self._handle, pynvml.NVML_TEMPERATURE_GPU)
        if clock is not None:
            self._samples.append((clock, None if power is None else power / 1e3, temperature))
        bits = _asked(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, self._handle) or 0
        for name, title in _REASONS.items():
            for prefix in ("nvmlClocksEventReason", "nvmlClocksThrottleReason"):
                if int(bits) & int(getattr(pynvml, prefix + name, 0)):
                    self._reasons.add(title)

    def _summary(self) -> GpuReadings | None:
        import pynvml

        if not self._samples:
            return None
        clocks = [clock for clock, _, _ in self._samples]
        powers = [power for _, power, _ in self._samples if power is not None]
        warmest = [temperature for _, _, temperature in self._samples if temperature is not None]
        limit = _asked(pynvml.nvmlDeviceGetEnforcedPowerLimit, self._handle)
        return GpuReadings(
            sm_clock_mhz=statistics.median(clocks),
            sm_clock_range_mhz=(min(clocks), max(clocks)),
            max_sm_clock_mhz=_asked(pynvml.nvmlDeviceGetMaxClockInfo, self._handle, pynvml.NVML_CLOCK_SM),
            power_w=statistics.fmean(powers) if powers else None,
            power_limit_w=None if limit is None else limit / 1e3,
            temperature_c=max(warmest) if warmest else None,
            limited_by=tuple(sorted(self._reasons)),
            samples=len(clocks),
        )


def _handle(index: int) -> Any:
    """NVML's handle of a GPU, or None where there is no NVML or no such GPU.

    NVML counts all GPUs of the machine, in an order of its own; the place on the bus is what it and CUDA agree about.
    """
    try:
        import pynvml
    except ImportError:
        return None
    address = bus_address(index)
    if address is None:
        return None
    try:
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetHandleByPciBusId(address)
    except pynvml.NVMLError:
        return None


def _asked(question: Any, *arguments: Any) -> float | None:
    """An answer of NVML; None where this GPU does not tell."""
    import pynvml

    with suppress(pynvml.NVMLError):
        return float(question(*arguments))
    return None
