"""Export and engines as stages."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repq.checkpoints import open_checkpoint, to_onnx
from repq.predictor import open_model
from repq.recipe import BuildConfig, EngineName, ExportConfig
from repq.results import EngineDescription

if TYPE_CHECKING:
    from repq.graph import LintReport


def export_checkpoint(model: Path, out: Path, imgsz: tuple[int, int], config: ExportConfig) -> dict[str, Any]:
    """Write a checkpoint as ONNX: Q/DQ nodes for a quantized one, plain float else (fused on the way).

    Raises:
        RepqError: the checkpoint cannot be read, or the size does not fit the model.
    """
    from repq.export import save_onnx
    from repq.graph import count_qdq, layer_nodes, merge_scales, quantize_residuals, read_metadata, to_fp16

    opened = open_checkpoint(model)
    graph = to_onnx(opened, imgsz, config)
    before = count_qdq(graph)
    if config.merge_scales and opened.quantized:
        graph, _ = quantize_residuals(graph)
        graph, _ = merge_scales(graph)
    after = count_qdq(graph)
    if config.float16:
        graph, _ = to_fp16(graph)
    metadata = read_metadata(graph)
    assert metadata is not None
    int8 = len(metadata.int8_layers)
    save_onnx(out, graph)
    return {
        "out": str(out),
        "imgsz": list(imgsz),
        "batch": config.batch,
        "opset": config.opset,
        "precision": metadata.precision,
        "qdq_before_merging": asdict(before),
        "qdq": asdict(after),
        "layers_int8": int8,
        "layers_float": len(layer_nodes(graph)) - int8,
        "size_bytes": out.stat().st_size,
    }


def lint_graph(onnx: Path) -> LintReport:
    """Look at an ONNX file, repq's or another tool's, through TensorRT's eyes.

    Raises:
        GraphError: the file is no ONNX model.
    """
    from repq.graph import lint, load_onnx

    return lint(load_onnx(onnx))


def build_engine(onnx: Path, out: Path, engine: EngineName, config: BuildConfig) -> EngineDescription:
    """Build an engine from an ONNX file, save it and describe what it really runs.

    Raises:
        EngineError: the file is no ONNX model, or the runtime is missing or cannot build it.
    """
    from repq.engine import build

    built = build(engine, onnx, config)
    built.save(out)
    return built.describe()


def describe_model(path: Path, engine: Any, imgsz: tuple[int, int], threads: int | None) -> tuple[dict[str, Any], str]:
    """The layers of a model of any form: as values and as text."""
    from repq.report.text import engine_table, table_text

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
        cells = [[str(row[key]) for key in ("layer", "precision", "weight_shape", "macs")] for row in rows]
        title = f"{fused.spec.name}, {fused.spec.num_classes} classes, {imgsz[0]}x{imgsz[1]}"
        return values, table_text(title, ("layer", "precision", "weight", "multiply-adds"), cells, left=2)
    predictor = open_model(path, engine=engine, imgsz=imgsz, threads=threads)
    assert predictor.description is not None
    return predictor.description.values(), engine_table(predictor.description)
