"""Which runtimes and devices are usable here, and why others are not: the rows of ``repq doctor``."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib import metadata

from repq.engine.onnxruntime_providers import NAMES
from repq.errors import EngineError
from repq.machine.cpu import DOT_PRODUCT_FEATURES, cpu_features, cpu_name
from repq.machine.cuda import find_gpu, gpu_or_none
from repq.recipe import Provider
from repq.results import Availability

OLDEST_TENSORRT = (10, 16)

_GPU_PROVIDERS: tuple[Provider, ...] = ("cuda", "tensorrt")
_GPU_FIX = "run on a machine with an NVIDIA GPU and its driver"


def availability() -> tuple[Availability, ...]:
    """Probe every runtime that repq knows. Never raises: a runtime that breaks on import is a row that says so."""
    rows: list[Availability] = []
    for runtime, probe in (
        ("torch", _torch),
        ("onnxruntime", _onnxruntime),
        ("openvino", _openvino),
        ("tensorrt", _tensorrt),
    ):
        rows.extend(_guarded(runtime, probe))
    return tuple(rows)


def _guarded(runtime: str, probe: Callable[[], list[Availability]]) -> list[Availability]:
    try:
        return probe()
    except Exception as error:  # whatever a broken installation does must not hide the other rows
        detail = f"it is installed but fails: {type(error).__name__}: {error}".splitlines()[0]
        fix = f"install it anew: pip install --force-reinstall {runtime}"
        return [_row(runtime, "cpu", False, detail, fix)]


def _torch() -> list[Availability]:
    if not _installed("torch"):
        return [_row("torch", "cpu", False, "not installed", "pip install torch")]
    import torch

    rows = [_row("torch", "cpu", True, f"{torch.get_num_threads()} threads")]
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return [*rows, _row("torch", "cuda", True, ", ".join(names))]
    if torch.version.cuda is None:
        fix = "install a CUDA build of torch: https://pytorch.org/get-started/locally/"
        return [*rows, _row("torch", "cuda", False, "this torch is built without CUDA", fix)]
    detail = "torch finds no CUDA device" if gpu_or_none() else _no_gpu()
    return [*rows, _row("torch", "cuda", False, detail, _GPU_FIX)]


def _onnxruntime() -> list[Availability]:
    if not _installed("onnxruntime"):
        return [_row("onnxruntime", "cpu", False, "not installed", "pip install onnxruntime")]
    import onnxruntime

    providers = onnxruntime.get_available_providers()
    usable = "CPUExecutionProvider" in providers
    detail = f"providers: {', '.join(providers)}; {_int8_note()}"
    rows = [_row("onnxruntime", "cpu", usable, detail, None if usable else "pip install onnxruntime")]
    return rows + [_provider(provider, providers) for provider in _GPU_PROVIDERS]


def _provider(provider: Provider, present: list[str]) -> Availability:
    """ONNX Runtime on a GPU; whether the provider's own libraries load shows only when a session is opened."""
    device = f"cuda ({provider})"
    if NAMES[provider] not in present:
        return _row("onnxruntime", device, False, f"no {NAMES[provider]}", "pip install onnxruntime-gpu in its place")
    gpu = gpu_or_none()
    if gpu is None:
        return _row("onnxruntime", device, False, _no_gpu(), _GPU_FIX)
    return _row("onnxruntime", device, True, f"{NAMES[provider]} on {gpu}")


def _openvino() -> list[Availability]:
    if not _installed("openvino"):
        return [_row("openvino", "cpu", False, "not installed", "pip install 'repq[openvino]'")]
    import openvino

    core = openvino.Core()
    rows = []
    for device in core.available_devices:
        name = str(core.get_property(device, "FULL_DEVICE_NAME"))
        if device == "CPU":
            rows.append(_row("openvino", "cpu", True, f"{name}; {_int8_note()}"))
        else:
            detail = f"{name}: OpenVINO can use it, repq's engine runs on the CPU only"
            rows.append(_row("openvino", device.lower(), False, detail))
    if "CPU" not in core.available_devices:
        rows.append(_row("openvino", "cpu", False, "OpenVINO has no CPU plugin here", "pip install 'repq[openvino]'"))
    return rows


def _tensorrt() -> list[Availability]:
    gpu = gpu_or_none()
    missing = [name for name in ("tensorrt", "polygraphy") if not _installed(name)]
    if missing:
        detail = f"not installed: {', '.join(missing)}" + ("" if gpu else f", and {_no_gpu()}")
        fix = "pip install 'repq[tensorrt]'" if gpu else f"{_GPU_FIX}, then pip install 'repq[tensorrt]'"
        return [_row("tensorrt", "cuda", False, detail, fix)]
    import tensorrt

    version = str(tensorrt.__version__)
    if tuple(map(int, version.split(".")[:2])) < OLDEST_TENSORRT:
        detail = f"TensorRT {version} is older than repq knows: it needs 10.16 or 11"
        return [_row("tensorrt", "cuda", False, detail, "pip install --upgrade 'repq[tensorrt]'")]
    if gpu is None:
        detail = f"TensorRT {version} is here, but {_no_gpu()}: it cannot run engines"
        return [_row("tensorrt", "cuda", False, detail, _GPU_FIX, version=version)]
    return [_row("tensorrt", "cuda", True, f"{gpu}", version=version)]


def _no_gpu() -> str:
    try:
        find_gpu()
    except EngineError as error:
        return error.what
    return "no GPU"


def _int8_note() -> str:
    found = DOT_PRODUCT_FEATURES.intersection(cpu_features())
    if found:
        return f"INT8 instructions: {', '.join(sorted(found))}"
    return f"no INT8 dot product in {cpu_name()}: INT8 gains little here"


def _installed(module: str) -> bool:
    if sys.modules.get(module, module) is None:
        return False
    return importlib.util.find_spec(module) is not None


def _row(
    runtime: str, device: str, usable: bool, detail: str, fix: str | None = None, version: str | None = None
) -> Availability:
    return Availability(
        runtime=runtime, device=device, usable=usable, version=version or _version(runtime), detail=detail, fix=fix
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
