"""Device times and readings: what they are without a GPU, and on one that they make sense."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from repq.api.measuring import gpu_index
from repq.api.running import Options, in_torch
from repq.bench import DeviceWork, device_ms
from repq.errors import EngineError
from repq.machine.gpu_readings import GpuWatch, _handle
from repq.model import build
from repq.quant import Weights

gpu = pytest.mark.gpu
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here")


def test_which_gpu_is_watched() -> None:
    assert gpu_index("cpu", ["onnxruntime"]) is None
    assert gpu_index("cpu", ["onnxruntime", "tensorrt"]) == 0
    assert (gpu_index("cuda", []), gpu_index("cuda:1", [])) == (0, 1)


def test_nothing_to_watch_gives_no_readings() -> None:
    with GpuWatch(None) as watch:
        pass
    assert watch.readings is None


class FakeDriver:
    """CUDA's driver in a process that sees some GPUs of a machine, in an order of its own; those have addresses."""

    def __init__(self, visible: list[str]) -> None:
        self.visible = visible

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = len(self.visible)
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:  # noqa: N802
        device._obj.value = index
        return 0 if index < len(self.visible) else 101

    def cuDeviceGetPCIBusId(self, address: Any, length: int, device: Any) -> int:  # noqa: N802
        address.value = self.visible[device.value].encode()
        return 0


@pytest.mark.parametrize("visible", [["b", "a", "c"], ["c"], ["c", "a"], []])
def test_the_gpu_that_is_watched_is_the_one_that_computes(monkeypatch: pytest.MonkeyPatch, visible: list[str]) -> None:
    """CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER change what CUDA's numbers mean, not NVML's."""
    pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed: pip install 'repq[gpu]'")
    monkeypatch.setattr("repq.machine.cuda._driver", lambda: FakeDriver(visible))
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByPciBusId", lambda address: f"handle of {address}")
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: "handle of " + "abc"[index])
    found = [_handle(index) for index in range(3)]
    assert found == [f"handle of {visible[index]}" if index < len(visible) else None for index in range(3)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_gpu_there_are_no_figures() -> None:
    with GpuWatch(0) as watch:
        pass
    assert watch.readings is None
    assert device_ms(DeviceWork(lambda: None, 0), 3, 1, graph=False) is None


def test_half_precision_needs_a_gpu() -> None:
    with pytest.raises(EngineError, match="FP16"):
        in_torch(Weights(build("yolov6n_v2", 3, deploy=True)), Options(half=True), "m")


@gpu
@needs_cuda
@pytest.mark.parametrize("half", [False, True])
def test_a_graph_is_no_slower_than_kernels_one_by_one(half: bool) -> None:
    running = in_torch(Weights(build("yolov6n_v2", 3, deploy=True)), Options(device="cuda", half=half), "m")
    assert running.on_device is not None
    work = DeviceWork(*running.on_device((1, 3, 320, 320)))
    one_by_one, graph = (device_ms(work, 50, 10, graph=graph) for graph in (False, True))
    assert one_by_one is not None and graph is not None
    assert 0 < graph < 1.1 * one_by_one


@gpu
@needs_cuda
def test_readings_are_within_their_limits() -> None:
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed: pip install 'repq[gpu]'")
    values = torch.randn(4096, 4096, device="cuda")
    with GpuWatch(0) as watch:
        for _ in range(200):
            values = (values @ values).clamp(-1, 1)
        torch.cuda.synchronize()
    readings = watch.readings
    assert readings is not None and readings.samples > 1
    low, high = readings.sm_clock_range_mhz
    assert 0 < low <= readings.sm_clock_mhz <= high <= (readings.max_sm_clock_mhz or high)
