"""Engines: a model built for one runtime, that says what it really runs.

`ENGINES` lists the runtimes; none of their libraries is loaded before one is used. One that is appended can be built
for, checked, timed and reported.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from repq import __version__
from repq.engine.availability import guarded, torch_rows
from repq.engine.base import Engine, EngineManifest, Runtime, TensorInfo
from repq.engine.ncnn import Ncnn
from repq.engine.onnxruntime import OnnxRuntime
from repq.engine.opencv import OpenCv
from repq.engine.openvino import OpenVino
from repq.engine.storage import is_engine, read_engine
from repq.engine.tensorrt import TensorRt
from repq.errors import EngineError
from repq.machine.cpu import cpu_features, cpu_name
from repq.recipe import BuildConfig, EngineName
from repq.results import Availability, Expectation

if TYPE_CHECKING:
    from repq.engine.source import Source

__all__ = [
    "ENGINES",
    "Engine",
    "EngineManifest",
    "Runtime",
    "TensorInfo",
    "availability",
    "build",
    "default_engines",
    "is_engine",
    "load",
    "runtime",
]

ENGINES: list[Runtime] = [OnnxRuntime(), OpenVino(), TensorRt(), Ncnn(), OpenCv()]


def runtime(name: EngineName) -> Runtime:
    """The runtime of this name.

    Raises:
        EngineError: there is none.
    """
    found = next((entry for entry in ENGINES if entry.name == name), None)
    if found is None:
        names = ", ".join(entry.name for entry in ENGINES)
        raise EngineError(f"unknown engine {name!r}", fix=f"use one of {names}")
    return found


def default_engines() -> tuple[EngineName, ...]:
    """What engines are built for if nobody says."""
    return tuple(entry.name for entry in ENGINES if entry.by_default)


def build(
    name: EngineName, onnx_path: Path, config: BuildConfig | None = None, *, expected: Expectation | None = None
) -> Engine:
    """Build an engine from an ONNX file.

    Args:
        expected: what a look at the graph predicts; the engine keeps it to compare with what really runs.

    Raises:
        EngineError: the runtime is not installed, or the file is no model that it can run.
    """
    from repq.engine.source import read_source

    config = config or BuildConfig()
    chosen = runtime(name)
    version = chosen.version()
    source = read_source(Path(onnx_path))
    _demand_readable(source, name)
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
    return chosen.build(source, manifest)


def _demand_readable(source: Source, name: EngineName) -> None:
    """Refuse a file in a form that this runtime does not read (OpenVINO ends the process over integer operators)."""
    from repq.graph.forms import form_of

    form = form_of(source.metadata)
    if form is not None and not form.portable and form.target != name:
        raise EngineError(
            f"{source.name} is written --for {form.name} alone",
            fix=f"build it with --engine {form.runs_in}, or export it without --for",
        )


def load(folder: Path, *, threads: int | None = None) -> Engine:
    """Load a saved engine; ``threads`` overrides the number that it was built with.

    Raises:
        EngineError: the folder is missing, damaged, changed, or of a runtime that is not installed here.
    """
    folder = Path(folder)
    manifest = read_engine(folder)
    if threads is not None:
        manifest = manifest.model_copy(update={"threads": threads})
    return runtime(manifest.engine).load(folder, manifest)


def availability() -> tuple[Availability, ...]:
    """Probe torch and every runtime. Never raises: one that breaks on import is a row that says so."""
    probes = [("torch", torch_rows), *((entry.name, entry.availability) for entry in ENGINES)]
    return tuple(row for name, probe in probes for row in guarded(name, probe))
