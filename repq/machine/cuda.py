"""The GPU of this machine, asked of NVIDIA's driver itself, so that a machine without one needs no library to know."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

from repq.errors import EngineError

_COMPUTE_CAPABILITY = (75, 76)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
_FIX = "use a machine with an NVIDIA GPU and its driver"


@dataclass(frozen=True)
class Gpu:
    """What an engine depends on: ``NVIDIA T4``, ``7.5``."""

    name: str
    compute_capability: str

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.compute_capability})"


def find_gpu() -> Gpu:
    """The first GPU that the driver shows.

    Raises:
        EngineError: there is no driver, or it shows no GPU; the message starts with ``no GPU``.
    """
    driver, device = _device(0)
    name = ctypes.create_string_buffer(256)
    _call(driver.cuDeviceGetName, name, len(name), device)
    version = [ctypes.c_int(), ctypes.c_int()]
    for value, attribute in zip(version, _COMPUTE_CAPABILITY, strict=True):
        _call(driver.cuDeviceGetAttribute, ctypes.byref(value), attribute, device)
    return Gpu(name.value.decode(), ".".join(str(value.value) for value in version))


def bus_address(index: int) -> str | None:
    """Where a GPU lies on the PCI bus, such as ``0000:65:00.0``; None where there is no such GPU.

    Args:
        index: as CUDA counts the GPUs that this process sees (``CUDA_VISIBLE_DEVICES``, ``CUDA_DEVICE_ORDER``).
    """
    try:
        driver, device = _device(index)
        address = ctypes.create_string_buffer(32)
        _call(driver.cuDeviceGetPCIBusId, address, len(address), device)
    except EngineError:
        return None
    return address.value.decode()


def driver_version() -> str | None:
    """Version of the CUDA driver API, such as ``13.0``; None without a driver."""
    version = ctypes.c_int()
    try:
        _call(_driver().cuDriverGetVersion, ctypes.byref(version))
    except EngineError:
        return None
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def gpu_or_none() -> Gpu | None:
    """The first GPU, or None where ``find_gpu`` raises."""
    try:
        return find_gpu()
    except EngineError:
        return None


def _device(index: int) -> tuple[ctypes.CDLL, ctypes.c_int]:
    """The driver and its handle of a GPU.

    Raises:
        EngineError: as of `find_gpu`.
    """
    driver, count, device = _driver(), ctypes.c_int(), ctypes.c_int()
    _call(driver.cuInit, 0)
    _call(driver.cuDeviceGetCount, ctypes.byref(count))
    if not count.value:
        raise EngineError("no GPU: the NVIDIA driver shows none", fix=_FIX)
    _call(driver.cuDeviceGet, ctypes.byref(device), index)
    return driver, device


def _driver() -> ctypes.CDLL:
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        return ctypes.CDLL(name)
    except OSError:
        raise EngineError("no GPU: there is no NVIDIA driver here", found=f"{name} is missing", fix=_FIX) from None


def _call(function: ctypes._NamedFuncPointer, *arguments: object) -> None:
    status = function(*arguments)
    if status:
        raise EngineError(
            "no GPU: the NVIDIA driver does not answer", found=f"{function.__name__} returned {status}", fix=_FIX
        )
