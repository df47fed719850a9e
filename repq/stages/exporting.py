"""Export and lint as stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from repq.checkpoints import open_checkpoint, to_onnx
from repq.recipe import ExportConfig
from repq.results import ExportReport, GraphFinding, QdqCount

if TYPE_CHECKING:
    from onnx import ModelProto

    from repq.graph import LintReport


def export_checkpoint(
    model: Path,
    out: Path,
    imgsz: tuple[int, int],
    config: ExportConfig,
    *,
    maxima_from: Path | None = None,
) -> ExportReport:
    """Write a checkpoint as ONNX: Q/DQ nodes for a quantized one, plain float else (fused on the way).

    Args:
        maxima_from: a quantized checkpoint of the same model, whose activation maxima keep a float one in FP16 from
            overflowing; a quantized ``model`` carries its own.

    Raises:
        RepqError: the checkpoint cannot be read, or the size does not fit the model.
    """
    from repq.export import save_onnx
    from repq.graph import (
        count_qdq,
        for_serving,
        layer_nodes,
        lint,
        merge_scales,
        quantize_residuals,
        read_metadata,
    )

    opened = open_checkpoint(model)
    graph = to_onnx(opened, imgsz, config)
    before, merged = count_qdq(graph), 0
    if config.merge_scales and opened.quantized:
        graph, _ = quantize_residuals(graph)
        graph, report = merge_scales(graph)
        merged = len(report.groups)
    after = count_qdq(graph)
    kept: tuple[str, ...] = ()
    if config.float16:
        maxima = opened.maxima if maxima_from is None else open_checkpoint(maxima_from).maxima
        graph, kept = _to_fp16(graph, maxima, config)
    graph = for_serving(graph, config.preprocess, config.nms)
    metadata = read_metadata(graph)
    assert metadata is not None
    int8 = len(metadata.int8_layers)
    save_onnx(out, graph)
    return ExportReport(
        out=str(out),
        imgsz=imgsz,
        batch=config.batch,
        opset=config.opset,
        precision=metadata.precision,
        preprocess=config.preprocess.model_dump(mode="json"),
        nms=config.nms and config.nms.model_dump(mode="json"),
        qdq_before_merging=QdqCount(**asdict(before)),
        qdq=QdqCount(**asdict(after)),
        merged_groups=merged,
        fp32_nodes=kept,
        layers_int8=int8,
        layers_float=len(layer_nodes(graph)) - int8,
        size_bytes=out.stat().st_size,
        findings=tuple(GraphFinding(**asdict(finding)) for finding in lint(graph).findings),
    )


def _to_fp16(
    graph: ModelProto, maxima: Mapping[str, float], config: ExportConfig
) -> tuple[ModelProto, tuple[str, ...]]:
    from repq.graph import nodes_beyond_fp16, to_fp16

    beyond = nodes_beyond_fp16(graph, maxima)
    half, _ = to_fp16(graph, keep_fp32=beyond, float32_io=not config.float16_io)
    return half, beyond


def lint_graph(onnx: Path) -> LintReport:
    """Look at an ONNX file, repq's or another tool's, through TensorRT's eyes.

    Raises:
        GraphError: the file is no ONNX model.
    """
    from repq.graph import lint, load_onnx

    return lint(load_onnx(onnx))
