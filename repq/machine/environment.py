"""What a measurement was made on."""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import suppress
from importlib import metadata
from itertools import chain

from repq.identity import LIBRARIES
from repq.machine.cpu import cpu_cores, cpu_features, cpu_name
from repq.results import Environment

_SHOWN = ("torch", "numpy", "onnx", "onnxruntime", "openvino", "tensorrt", "ncnn", "opencv")
"""Of `repq.identity.LIBRARIES`, those that measurements say; NNCF, which no result depends on, comes beside them."""


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
    for name in (*chain.from_iterable(LIBRARIES[library] for library in _SHOWN), "nncf"):
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _gpu() -> str | None:
    try:
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        result = subprocess.run(query, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    names = [line.strip() for line in result.stdout.splitlines() if line.strip()]
    return ", ".join(names) if result.returncode == 0 and names else None
