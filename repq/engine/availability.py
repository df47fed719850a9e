"""Which runtimes and devices are usable here, and why others are not: the rows of ``repq doctor``."""

from __future__ import annotations

import ctypes.util
import importlib.util
import sys
from collections.abc import Callable
from importlib import metadata

from repq.engine.cpu import DOT_PRODUCT_FEATURES, cpu_features, cpu_name
from repq.results import Availability

_NO_DRIVER = "no NVIDIA driver (libcuda) on this machine"


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
    detail = "torch finds no CUDA device" if _cuda_driver() else _NO_DRIVER
    return [*rows, _row("torch", "cuda", False, detail, "run on a machine with an NVIDIA GPU and its driver")]


def _onnxruntime() -> list[Availability]:
    if not _installed("onnxruntime"):
        return [_row("onnxruntime", "cpu", False, "not installed", "pip install onnxruntime")]
    import onnxruntime

    providers = onnxruntime.get_available_providers()
    usable = "CPUExecutionProvider" in providers
    detail = f"providers: {', '.join(providers)}; {_int8_note()}"
    return [_row("onnxruntime", "cpu", usable, detail, None if usable else "pip install onnxruntime")]


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
    driver = _cuda_driver()
    gpu_fix = "run on a machine with an NVIDIA GPU and its driver"
    if not _installed("tensorrt"):
        detail = "not installed" if driver else f"not installed, and {_NO_DRIVER}"
        fix = "pip install 'repq[tensorrt]'" if driver else f"{gpu_fix}, then pip install 'repq[tensorrt]'"
        return [_row("tensorrt", "cuda", False, detail, fix)]
    if not driver:
        return [_row("tensorrt", "cuda", False, _NO_DRIVER, gpu_fix)]
    import tensorrt

    detail = f"TensorRT {tensorrt.__version__} and an NVIDIA driver are here, but this repq builds no TensorRT engines"
    return [_row("tensorrt", "cuda", False, detail, "use onnxruntime or openvino")]


def _int8_note() -> str:
    found = DOT_PRODUCT_FEATURES.intersection(cpu_features())
    if found:
        return f"INT8 instructions: {', '.join(sorted(found))}"
    return f"no INT8 dot product in {cpu_name()}: INT8 gains little here"


def _installed(module: str) -> bool:
    if sys.modules.get(module, module) is None:
        return False
    return importlib.util.find_spec(module) is not None


def _cuda_driver() -> bool:
    return ctypes.util.find_library("cuda") is not None or ctypes.util.find_library("nvcuda") is not None


def _row(runtime: str, device: str, usable: bool, detail: str, fix: str | None = None) -> Availability:
    return Availability(
        runtime=runtime, device=device, usable=usable, version=_version(runtime), detail=detail, fix=fix
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
