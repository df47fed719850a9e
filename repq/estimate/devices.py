"""Devices as data: the dense peaks of their data sheets. Where a sheet gives figures with sparsity, half of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType

from repq.errors import RepqError


@dataclass(frozen=True)
class Device:
    """Peaks of one device.

    Attributes:
        teraops: per precision (``int8``, ``float16``, ``float32``), of the matrix units where they compute it. A
            precision that is absent has no matrix unit.
        vector_teraflops: FP32 peak outside the matrix units, for depthwise convolutions.
        bandwidth: of the memory, GB/s.
        multiprocessors: their number, which decides how much of the device a small layer fills.
        source: where the figures are from.
    """

    name: str
    teraops: Mapping[str, float]
    vector_teraflops: float
    bandwidth: float
    multiprocessors: int
    source: str


def _device(
    name: str, *, fp32: float, fp16: float, int8: float | None, vector: float, bandwidth: float, sms: int, source: str
) -> Device:
    rates = {"float32": fp32, "float16": fp16} | ({} if int8 is None else {"int8": int8})
    return Device(name, MappingProxyType(rates), vector, bandwidth, sms, source)


# FP32 convolutions of TensorRT run as TF32 where the device has it, so that is the float32 rate from Ampere on.
DEVICES: Mapping[str, Device] = MappingProxyType(
    {
        "t4": _device("NVIDIA T4", fp32=8.1, fp16=65, int8=130, vector=8.1, bandwidth=320, sms=40,
                      source="NVIDIA T4 Tensor Core GPU datasheet (2019)"),
        "v100": _device("NVIDIA V100 PCIe", fp32=14, fp16=112, int8=None, vector=14, bandwidth=900, sms=80,
                        source="NVIDIA V100 Tensor Core GPU datasheet (2020)"),
        "a10": _device("NVIDIA A10", fp32=62.5, fp16=125, int8=250, vector=31.2, bandwidth=600, sms=72,
                       source="NVIDIA A10 Tensor Core GPU datasheet (2021)"),
        "a100": _device("NVIDIA A100 40GB PCIe", fp32=156, fp16=312, int8=624, vector=19.5, bandwidth=1555, sms=108,
                        source="NVIDIA A100 Tensor Core GPU datasheet (2021)"),
        "l4": _device("NVIDIA L4", fp32=60, fp16=121, int8=242.5, vector=30.3, bandwidth=300, sms=58,
                      source="NVIDIA L4 Tensor Core GPU datasheet (2023), halved: it counts sparsity"),
        "h100": _device("NVIDIA H100 PCIe", fp32=378, fp16=756, int8=1513, vector=51, bandwidth=2000, sms=114,
                        source="NVIDIA H100 Tensor Core GPU datasheet (2022), halved: it counts sparsity"),
        "orin": _device("Jetson AGX Orin 64GB", fp32=5.3, fp16=42.5, int8=85, vector=5.3, bandwidth=204.8, sms=16,
                        source="Jetson AGX Orin Series Technical Brief v1.2: the GPU alone, dense, 1.3 GHz"),
        "orin-nano": _device("Jetson Orin Nano 8GB", fp32=1.28, fp16=10, int8=20, vector=1.28, bandwidth=68, sms=8,
                             source="Jetson Orin Nano Series Data Sheet: dense, 625 MHz"),
    }
)  # fmt: skip


def find_device(name: str) -> Device:
    """The device of this name; case and blanks do not matter.

    Raises:
        RepqError: it is unknown; the closest name is given.
    """
    key = name.strip().lower().replace(" ", "-").replace("_", "-").removeprefix("nvidia-").removeprefix("tesla-")
    if key in DEVICES:
        return DEVICES[key]
    close = get_close_matches(key, DEVICES, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]}? " if close else ""
    raise RepqError(f"there are no figures of the device {name!r}", fix=f"{hint}known are {', '.join(DEVICES)}")
