"""Engines: a model built for one runtime, that says what it really runs.

A runtime is one module of this package with ``runtime_version()``, ``build(source, manifest)`` and
``load(folder, manifest)``; the runtime itself is imported inside functions only.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import cast

from repq import __version__
from repq.engine.availability import availability
from repq.engine.base import Engine, EngineManifest, TensorInfo
from repq.engine.source import read_source
from repq.engine.storage import is_engine, read_engine
from repq.errors import EngineError
from repq.machine.cpu import cpu_cores, cpu_features, cpu_name
from repq.recipe import BuildConfig, EngineName
from repq.results import Expectation

__all__ = [
    "Engine",
    "EngineManifest",
    "TensorInfo",
    "availability",
    "build",
    "cpu_cores",
    "cpu_features",
    "cpu_name",
    "is_engine",
    "load",
]


def build(
    name: EngineName, onnx_path: Path, config: BuildConfig | None = None, *, expected: Expectation | None = None
) -> Engine:
    """Build an engine from an ONNX file.

    Args:
        expected: what a look at the graph predicts; the engine keeps it to compare with what really runs.

    Raises:
        EngineError: the runtime is not installed, or the file is no model that it can run.
    """
    config = config or BuildConfig()
    runtime = _runtime(name)
    version = runtime.runtime_version()
    source = read_source(Path(onnx_path))
    manifest = EngineManifest(
        engine=name,
        version=version,
        repq_version=__version__,
        source=source.name,
        source_sha256=source.sha256,
        input=source.input,
        outputs=source.outputs,
        metadata=source.metadata,
        layers=source.layers,
        int8_layers=source.int8_layers,
        threads=config.threads,
        device="CPU",
        cpu=cpu_name(),
        cpu_features=cpu_features(),
        settings=config,
        expected=expected,
    )
    return cast(Engine, runtime.build(source, manifest))


def load(folder: Path, *, threads: int | None = None) -> Engine:
    """Load a saved engine; ``threads`` overrides the number that it was built with.

    Raises:
        EngineError: the folder is missing, damaged, changed, or of a runtime that is not installed here.
    """
    folder = Path(folder)
    manifest = read_engine(folder)
    runtime = _runtime(manifest.engine)
    if threads is not None:
        manifest = manifest.model_copy(update={"threads": threads})
    return cast(Engine, runtime.load(folder, manifest))


def _runtime(name: EngineName) -> ModuleType:
    if name == "onnxruntime":
        from repq.engine import onnxruntime

        return onnxruntime
    if name == "openvino":
        from repq.engine import openvino

        return openvino
    if name == "tensorrt":
        from repq.engine import tensorrt

        return tensorrt
    raise EngineError(f"unknown engine {name!r}", fix="use one of those that `repq doctor` lists")
