"""What a measurement was made on."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata

from repq.machine.cpu import cpu_cores, cpu_features, cpu_name
from repq.results import Environment

_LIBRARIES = (
    "torch", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "ncnn", "nncf",
    "opencv-python", "opencv-python-headless",
)  # fmt: skip


def capture_environment() -> Environment:
    """Describe this machine, its load and the libraries that results depend on."""
    return Environment(
        cpu=cpu_name(),
        cores=cpu_cores(),
        cpu_features=cpu_features(),
        memory_gib=round(_memory_bytes() / 2**30, 1),
        load_average=round(load_average(), 2),
        os=platform.platform(),
        python=platform.python_version(),
        libraries=_versions(),
        gpu=_gpu(),
    )


def load_average() -> float:
    """Processes that ran or waited during the last minute, on average; 0 where the system does not say."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return 0.0


def _memory_bytes() -> int:
    import psutil

    return int(psutil.virtual_memory().total)


def _versions() -> dict[str, str]:
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _gpu() -> str | None:
    try:
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        result = subprocess.run(query, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    names = [line.strip() for line in result.stdout.splitlines() if line.strip()]
    return ", ".join(names) if result.returncode == 0 and names else None
