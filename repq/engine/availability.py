"""Which runtimes and devices are usable here, and why others are not: what the rows of ``repq doctor`` are made of."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib import metadata

from repq.errors import EngineError
from repq.machine.cpu import DOT_PRODUCT_FEATURES, cpu_features, cpu_name, has_dot_products, is_x86
from repq.machine.cuda import find_gpu, gpu_or_none
from repq.results import Availability

GPU_FIX = "run on a machine with an NVIDIA GPU and its driver"


def guarded(runtime: str, probe: Callable[[], list[Availability]]) -> list[Availability]:
    """The rows of a probe, or one that says how it failed."""
    try:
        return probe()
    except Exception as error:  # whatever a broken installation does must not hide the other rows
        detail = f"it is installed but fails: {type(error).__name__}: {error}".splitlines()[0]
        fix = f"install it anew: pip install --force-reinstall {runtime}"
        return [row(runtime, "cpu", False, detail, fix)]


def torch_rows() -> list[Availability]:
    """What torch can use here."""
    if not installed("torch"):
        return [row("torch", "cpu", False, "not installed", "pip install torch")]
    import torch

    found = [row("torch", "cpu", True, f"{torch.get_num_threads()} threads")]
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return [*found, row("torch", "cuda", True, ", ".join(names))]
    if torch.version.cuda is None:
        fix = "install a CUDA build of torch: https://pytorch.org/get-started/locally/"
        return [*found, row("torch", "cuda", False, "this torch is built without CUDA", fix)]
    detail = "torch finds no CUDA device" if gpu_or_none() else no_gpu()
    return [*found, row("torch", "cuda", False, detail, GPU_FIX)]


def no_gpu() -> str:
    """Why there is no GPU to use."""
    try:
        find_gpu()
    except EngineError as error:
        return error.what
    return "no GPU"


def int8_note() -> str:
    """What INT8 gains on this CPU."""
    found = DOT_PRODUCT_FEATURES.intersection(cpu_features())
    if found:
        return f"INT8 instructions: {', '.join(sorted(found))}"
    return f"no INT8 dot product in {cpu_name()}: INT8 gains little here"


def saturation_note() -> str | None:
    """What is lost where a runtime adds products of two bytes in 16 bits; None: this CPU adds them in 32."""
    if not is_x86() or has_dot_products():
        return None
    return (
        "this CPU has no INT8 dot product: sums of two products saturate at 16 bits, and AP may be far lower than on "
        "one that has it, unless the weights were quantized with --reduce-range (`repq check` shows by how much)"
    )


def installed(module: str) -> bool:
    """Whether a module can be found, without importing it."""
    if sys.modules.get(module, module) is None:
        return False
    return importlib.util.find_spec(module) is not None


def row(
    runtime: str, device: str, usable: bool, detail: str, fix: str | None = None, version: str | None = None
) -> Availability:
    """A row; ``version`` is that of the package ``runtime`` by default."""
    return Availability(
        runtime=runtime, device=device, usable=usable, version=version or _version(runtime), detail=detail, fix=fix
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
