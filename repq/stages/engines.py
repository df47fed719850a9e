"""Engines as stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from repq.api.opening import load
from repq.log import Log, quiet
from repq.recipe import BuildConfig, EngineName
from repq.results import EngineDescription, WeightsDescription


def build_engine(onnx: Path, out: Path, engine: EngineName, config: BuildConfig, log: Log = quiet) -> EngineDescription:
    """Build an engine from an ONNX file, save it and describe what it really runs.

    A TensorRT engine remembers what ``lint`` expects of it, and the equivalent ``trtexec`` line is logged.

    Raises:
        EngineError: the file is no ONNX model, or the runtime is missing or cannot build it.
    """
    from repq.api.opening import build_graph

    built = build_graph(engine, onnx, config)
    built.save(out)
    if engine == "tensorrt":
        from repq.engine.tensorrt import build_command

        log(build_command(built.manifest, onnx, out))
    return built.describe()


def describe_model(path: Path, engine: Any, imgsz: tuple[int, int], threads: int | None) -> tuple[dict[str, Any], str]:
    """The layers of a model of any form: as values and as text."""
    from repq.report.text import engine_table, table_text

    model = load(path, engine=engine, imgsz=imgsz, threads=threads)
    found = model.describe(imgsz=imgsz if model.weights is not None else None)
    if isinstance(found, WeightsDescription):
        cells = [[row.layer, row.precision, str(list(row.weight_shape)), str(row.macs)] for row in found.layers]
        title = f"{found.model}, {found.classes} classes, {imgsz[0]}x{imgsz[1]}"
        return found.values(), table_text(title, ("layer", "precision", "weight", "multiply-adds"), cells, left=2)
    return found.values(), engine_table(found)
