r"""From the work of each kernel to time, by the roofline model.

A kernel takes ``max(flops / (peak e_c u), bytes / (bandwidth e_m)) + t_0``: no faster than its arithmetic and its
memory traffic allow, plus the time to start it. The data sheet gives the peaks. What a kernel reaches of them are three
factors:

- e_c, e_m: shares of the peaks in long kernels. A T4 is held below its boost clock by its 70 W, so e_c is far from 1;
- u: how well the product that a convolution is fills the device: channels are padded to what the matrix units take (8
  in FP16, 32 in INT8), and tiles of the output are dealt out to the multiprocessors in whole waves;
- t_0: from the end of one kernel to the start of the next.

Source: Williams, Waterman, Patterson, "Roofline: an insightful visual performance model", 2009; NVIDIA, "Matrix
Multiplication Background User's Guide" (tile and wave quantization).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from onnx import ModelProto

from repq.errors import RepqError
from repq.estimate.devices import Device
from repq.estimate.kernels import Kernel, Precision, kernels_of
from repq.results import Estimate, KernelEstimate

_TILES = ((256, 128), (128, 128), (128, 64), (64, 64), (64, 32))
_TILE_EFFICIENCY = (1.0, 1.0, 0.9, 0.8, 0.6)
_PADDING: dict[Precision, int] = {"int8": 32, "float16": 8, "float32": 1}


@dataclass(frozen=True)
class Efficiency:
    """Shares of the peaks that long kernels reach, and microseconds per kernel. ``origin`` says where they are from."""

    compute: float
    memory: float
    launch_us: float
    origin: str


# `benchmarks/estimate_error.py` fits these. They stand for more than their names: what the model leaves out is in them.
T4_EFFICIENCY = Efficiency(
    0.48, 0.27, 3.9, "fitted to FP16 figures of YOLOv6-N, S, M, L on a T4 (arXiv 2209.02976, table 18)"
)


def estimate(model: ModelProto, device: Device, *, batch: int = 1, efficiency: Efficiency = T4_EFFICIENCY) -> Estimate:
    """Estimate what ``device`` needs for ``batch`` images.

    Raises:
        GraphError: sizes are not known before the run.
        RepqError: the graph computes in a precision that the device has no matrix unit for.
    """
    work = kernels_of(model)
    ideal = Efficiency(1.0, 1.0, 0.0, "data sheet")
    rows = [_kernel(kernel, device, batch, efficiency) for kernel in (*work.kernels, *work.extra)]
    total = sum(row.total_us for row in rows)
    extra = sum(row.total_us for row in rows[len(work.kernels) :])
    bound = sum(_kernel(kernel, device, batch, ideal, fills=True).total_us for kernel in work.kernels)
    return Estimate(
        device=device.name,
        batch=batch,
        latency_ms=total / 1e3,
        images_per_s=1e6 * batch / total if total else 0.0,
        roofline_ms=bound / 1e3,
        extra_kernels_ms=extra / 1e3,
        kernels=tuple(rows),
        efficiencies=efficiency.origin,
        notes=work.notes,
    )


def _kernel(
    kernel: Kernel, device: Device, batch: int, efficiency: Efficiency, *, fills: bool = False
) -> KernelEstimate:
    used = 1.0 if fills else utilization(kernel, device, batch)
    compute = kernel.flops * batch / (_peak(kernel, device) * 1e6 * efficiency.compute * used)
    compute += kernel.vector_flops * batch / (_vector_peak(kernel, device) * 1e6 * efficiency.compute)
    moved = kernel.activation_bytes * batch + kernel.weight_bytes
    memory = moved / (device.bandwidth * 1e3 * efficiency.memory)
    longest = max(compute, memory)
    bound = "launch" if efficiency.launch_us > longest else "compute" if compute >= memory else "memory"
    return KernelEstimate(
        name=kernel.name,
        kind=kernel.kind,
        precision=kernel.precision,
        gflops=(kernel.flops + kernel.vector_flops) * batch / 1e9,
        megabytes=moved / 1e6,
        compute_us=compute,
        memory_us=memory,
        total_us=longest + efficiency.launch_us,
        bound=bound,
    )


def utilization(kernel: Kernel, device: Device, batch: int) -> float:
    """Share of the device that a product fills, with the best of the usual tiles; 1 for what is no product."""
    if kernel.gemm is None or _is_depthwise(kernel):
        return 1.0
    rows, columns, depth = kernel.gemm
    rows *= batch
    unit = _PADDING[kernel.precision]
    depth_used = depth / (ceil(depth / unit) * unit)
    best = 0.0
    for (height, width), quality in zip(_TILES, _TILE_EFFICIENCY, strict=True):
        tiles = ceil(rows / height) * ceil(columns / width)
        waves = ceil(tiles * kernel.groups / device.multiprocessors)
        filled = rows * columns * kernel.groups / (waves * device.multiprocessors * height * width)
        best = max(best, filled * quality)
    return best * depth_used


def _peak(kernel: Kernel, device: Device) -> float:
    """Tera-operations per second of the units that compute this kernel."""
    if kernel.gemm is None or _is_depthwise(kernel):
        return _vector_peak(kernel, device)
    if kernel.precision not in device.teraops:
        raise RepqError(
            f"{device.name} has no matrix unit for {kernel.precision}",
            found=f"{kernel.name} in {kernel.precision}",
            fix=f"estimate a graph in {' or '.join(device.teraops)}",
        )
    return device.teraops[kernel.precision]


def _vector_peak(kernel: Kernel, device: Device) -> float:
    return device.vector_teraflops * (1 if kernel.precision == "float32" else 2)


def _is_depthwise(kernel: Kernel) -> bool:
    return kernel.gemm is not None and kernel.groups > 1 and kernel.gemm[1] == 1
