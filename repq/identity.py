"""What a result depends on, decided in one place.

An `Identity` is taken of the settings of a job and of everything that it reads. It names artifacts in a run folder,
says whether a saved training belongs to a job, and whether a journal of measurements does. Two jobs with equal
identities have equal results; the identity leaves out only fields that are marked ``no_effect`` where they are defined
(`repq.recipe.base.setting`, `repq.results.base.measured_time`).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import os
import platform
import sqlite3
import time
from collections.abc import Collection, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from repq import __version__
from repq.errors import RepqError, reason
from repq.files import cache_folder
from repq.onnx_file import hash_model
from repq.spinning import VARIABLES

KEY_LENGTH = 12
LIBRARIES = {
    "torch": ("torch",),
    "numpy": ("numpy",),
    "opencv": (
        "opencv-python-headless", "opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python",
    ),
    "onnx": ("onnx",),
    "onnxscript": ("onnxscript",),
    "onnx-graphsurgeon": ("onnx-graphsurgeon",),
    "onnxruntime": (
        "onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml", "onnxruntime-training",
    ),
    "openvino": ("openvino",),
    "ncnn": ("ncnn",),
    "pnnx": ("pnnx",),
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-rtx"),
    "dali": ("nvidia-dali-cuda120", "nvidia-dali-cuda130", "nvidia-dali-cuda110"),
    "pycocotools": ("pycocotools",),
    "faster-coco-eval": ("faster-coco-eval",),
    "ensemble-boxes": ("ensemble-boxes",),
    "jinja2": ("jinja2",),
    "matplotlib": ("matplotlib",),
}  # fmt: skip
"""Libraries that a result can depend on, and the distributions that may provide each."""


@dataclass(frozen=True)
class Identity:
    """Everything that one result depends on, as plain JSON values by name.

    Attributes:
        stage: what is computed.
        settings: settings, files by the hash of their content.
        inputs: name to content hash of everything else that is read.
        versions: libraries, and repq itself.
        machine: CPU, GPU, driver and threads, for results that depend on them; else empty.
        seed: of everything random.
    """

    stage: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    machine: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seed: int = 0

    @property
    def key(self) -> str:
        """The identity as a short name; equal for equal identities."""
        return hash_json(self.values())[:KEY_LENGTH]

    def values(self) -> dict[str, Any]:
        """The identity as plain JSON values."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self), sort_keys=True))
        return plain


def identify(
    stage: str, settings: Mapping[str, Any], inputs: Mapping[str, Any] | None = None, *, seed: int = 0,
    on_machine: bool = False,
) -> Identity:  # fmt: skip
    """Take the identity of a job.

    Args:
        settings: settings objects and plain values by name; see `describe`.
        inputs: data sets, models, arrays and content hashes by name; see `describe`.
        on_machine: whether the result depends on the machine (engines, timings).

    Raises:
        RepqError: a file that the settings name cannot be read.
    """
    return Identity(
        stage=stage,
        settings=describe(settings),
        inputs=describe(inputs or {}),
        versions={**library_versions(), "repq": code_version()},
        machine=machine_values() if on_machine else {},
        seed=seed,
    )


def differences(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Names of the values in which two identities differ, such as ``settings.train.epochs``."""
    found: list[str] = []
    for key in sorted(one.keys() | other.keys()):
        mine, yours, name = one.get(key), other.get(key), f"{prefix}{key}"
        if isinstance(mine, Mapping) and isinstance(yours, Mapping):
            found += differences(mine, yours, f"{name}.")
        elif mine != yours:
            found.append(name)
    return found


def describe(value: Any) -> Any:
    """A value as plain JSON: files, folders, arrays, models and data sets by the hash of their content.

    Settings and results lose their fields marked ``no_effect``. An object with a method ``identity()`` is what that
    gives.

    Raises:
        RepqError: a file cannot be read.
        TypeError: a value of a kind that has no identity.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, Path):
        return {"sha256": hash_path(value)}
    if callable(getattr(value, "identity", None)):
        return describe(value.identity())
    if isinstance(value, BaseModel):
        return describe_fields(value)
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(describe, value))
    if callable(getattr(value, "state_dict", None)):  # a torch module
        return {"tensors": hash_tensors(value.state_dict())}
    if callable(getattr(value, "detach", None)) or hasattr(value, "tobytes"):  # a torch tensor, a numpy array
        return {"tensors": hash_tensors({"": value})}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: describe(getattr(value, field.name)) for field in dataclasses.fields(value)}
    raise TypeError(f"{type(value).__name__} has no identity")


def describe_fields(value: BaseModel, without: Collection[str] = ()) -> dict[str, Any]:
    """The fields of a settings object or result that belong to its identity, but those named."""
    names = (name for name in type(value).model_fields if name not in without and counts(type(value), name))
    return {name: describe(getattr(value, name)) for name in names}


def counts(model: type[BaseModel], name: str) -> bool:
    """Whether a field belongs to the identity: it is not marked as having no effect."""
    extra = model.model_fields[name].json_schema_extra
    return not (isinstance(extra, dict) and extra.get("no_effect"))


def hash_json(value: Any) -> str:
    """SHA-256 of a value's canonical JSON (sorted keys, no white space), hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def hash_tensors(tensors: Mapping[str, Any]) -> str:
    """SHA-256 over named tensors or arrays: names, types, shapes, values."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        if hasattr(value, "detach"):
            import torch

            flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        else:
            flat = value
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}|".replace("torch.", "").encode())
        digest.update(flat.tobytes())
    return digest.hexdigest()


def hash_path(path: Path) -> str:
    """SHA-256 of a file, with those in which an ONNX file keeps weights, or of all files of a folder.

    Raises:
        RepqError: it cannot be read.
    """
    try:
        if path.is_dir():
            return hash_json(hash_folder(path))
        return hash_model(path) if path.suffix == ".onnx" else hash_file(path)
    except (OSError, ValueError) as error:
        raise RepqError(f"cannot read {path}", found=reason(error), fix="check the path") from None


def hash_folder(folder: Path) -> dict[str, str]:
    """Relative path to SHA-256 of every file below ``folder``."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hash_file(path) for path in files}


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(paths: list[Path]) -> list[str]:
    """SHA-256 of many files, remembered between runs.

    A file is hashed again when its size, change times or inode differ from those remembered. A file that changed
    within the last two seconds is not remembered: it could change again within one tick of the clock.

    Raises:
        OSError: a file cannot be read.
    """
    states = [_state(path) for path in paths]
    known = _remembered([state for state in states if state is not None])
    found, new = [], []
    for path, state in zip(paths, states, strict=True):
        digest = known.get(state) if state else None
        if digest is None:
            digest = hash_file(path)
            if state is not None and _state(path) == state:
                new.append((state, digest))
        found.append(digest)
    _remember(new)
    return found


def _state(path: Path) -> str | None:
    status = path.stat()
    if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) < 2_000_000_000:
        return None
    parts = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return "-".join(map(str, parts))


def _database() -> sqlite3.Connection:
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(folder / "hashes.sqlite", timeout=5)
    connection.execute("CREATE TABLE IF NOT EXISTS hashes (state TEXT PRIMARY KEY, sha256 TEXT) WITHOUT ROWID")
    return connection


def _remembered(states: list[str]) -> dict[str, str]:
    """What is known of these files; nothing where there is no cache, or a damaged one."""
    with suppress(OSError, sqlite3.Error), closing(_database()) as connection:
        connection.execute("CREATE TEMP TABLE wanted (state TEXT)")
        connection.executemany("INSERT INTO wanted VALUES (?)", [(state,) for state in states])
        return dict(connection.execute("SELECT state, sha256 FROM hashes JOIN wanted USING (state)").fetchall())
    return {}


def _remember(rows: list[tuple[str, str]]) -> None:
    if rows:
        with suppress(OSError, sqlite3.Error), closing(_database()) as connection, connection:
            connection.executemany("INSERT OR REPLACE INTO hashes VALUES (?, ?)", rows)


@functools.cache
def library_versions() -> dict[str, str]:
    """Library to the distribution that is installed and its version; ``absent`` where there is none."""
    return {library: _installed(names) for library, names in LIBRARIES.items()}


def _installed(names: tuple[str, ...]) -> str:
    found = []
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    return ", ".join(found) or "absent"


@functools.cache
def code_version() -> str:
    """repq's own code: a release by its version, a working copy by the hash of its sources."""
    package = Path(__file__).resolve().parent
    with suppress(metadata.PackageNotFoundError):
        installed = metadata.distribution("repq")
        if Path(str(installed.locate_file("repq/__init__.py"))).resolve() == package / "__init__.py":
            with suppress(TypeError):
                # An installer leaves RECORD; what a build leaves in a working copy (egg-info) has none.
                editable = '"editable": true' in (installed.read_text("direct_url.json") or "")
                if installed.read_text("RECORD") and not editable:
                    return __version__
    sources = sorted(path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    digest = hashlib.sha256()
    for path in sources:
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return f"{__version__} {digest.hexdigest()[:16]}"


def machine_values() -> dict[str, Any]:
    """What engines and timings depend on: CPU and its instructions, GPU and its driver, and threads."""
    from repq.machine.cpu import cpu_cores, cpu_features, cpu_name
    from repq.machine.cuda import driver_version, gpu_or_none

    gpu = gpu_or_none()
    return {
        "cpu": cpu_name(),
        "cores": cpu_cores(),
        "features": list(cpu_features()),
        "architecture": platform.machine(),
        "system": platform.system(),
        "gpu": None if gpu is None else str(gpu),
        "driver": None if gpu is None else driver_version(),
        "threads": {name: os.environ.get(name) for name in VARIABLES},
    }
