"""Engines as stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from repq.checkpoints import open_checkpoint
from repq.errors import GraphError
from repq.log import Log, quiet
from repq.predictor import open_model
from repq.recipe import BuildConfig, EngineName
from repq.results import EngineDescription, Expectation


def build_engine(onnx: Path, out: Path, engine: EngineName, config: BuildConfig, log: Log = quiet) -> EngineDescription:
    """Build an engine from an ONNX file, save it and describe what it really runs.

    A TensorRT engine remembers what ``lint`` expects of it, and the equivalent ``trtexec`` line is logged.

    Raises:
        EngineError: the file is no ONNX model, or the runtime is missing or cannot build it.
    """
    from repq.engine import build

    built = build(engine, onnx, config, expected=_expectation(onnx) if engine == "tensorrt" else None)
    built.save(out)
    if engine == "tensorrt":
        from repq.engine.tensorrt import build_command

        log(build_command(built.manifest, onnx, out))
    return built.describe()


def _expectation(onnx: Path) -> Expectation | None:
    """What lint makes of a graph; None where it cannot read it (the build then says why)."""
    from repq.graph import lint, load_onnx

    try:
        report = lint(load_onnx(onnx))
    except GraphError:
        return None
    layers = {row.layer: str(row.precision) for row in report.layers}
    return Expectation(layers=layers, extra_kernels=report.counts.extra_kernels)


def describe_model(path: Path, engine: Any, imgsz: tuple[int, int], threads: int | None) -> tuple[dict[str, Any], str]:
    """The layers of a model of any form: as values and as text."""
    from repq.report.text import engine_table, layer_table

    if not path.is_dir() and path.suffix != ".onnx" and engine in (None, "torch"):
        from repq.model import count_macs, layer_ids
        from repq.quant import scale_table
        from repq.reparam import fuse

        opened = open_checkpoint(path)
        fused = opened.model if opened.quantized else fuse(opened.model)
        int8 = scale_table(fused) if opened.quantized else {}
        macs = count_macs(fused, imgsz)
        rows = [
            {"layer": layer, "precision": "int8" if layer in int8 else "float32", "macs": macs[layer],
             "weight_shape": list(fused.get_submodule(layer).weight.shape)}  # type: ignore[arg-type]
            for layer in layer_ids(fused)
        ]  # fmt: skip
        values = {"model": fused.spec.name, "classes": fused.spec.num_classes, "names": opened.names,
                  "notes": opened.notes, "layers": rows}  # fmt: skip
        title = f"{fused.spec.name}, {fused.spec.num_classes} classes, {imgsz[0]}x{imgsz[1]}"
        return values, layer_table(title, rows)
    predictor = open_model(path, engine=engine, imgsz=imgsz, threads=threads)
    assert predictor.description is not None
    return predictor.description.values(), engine_table(predictor.description)
