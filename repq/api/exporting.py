"""From weights to an ONNX file, with everything that a graph can hold beside the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from repq.recipe import ExportConfig
from repq.results import ExportReport, GraphFinding, QdqCount

if TYPE_CHECKING:
    from onnx import ModelProto

    from repq.quant import Weights


def to_onnx(weights: Weights, imgsz: tuple[int, int], config: ExportConfig) -> ModelProto:
    """Export quantized weights with Q/DQ nodes, any other in float, fused on the way.

    Raises:
        RepqError: the size does not fit the model.
    """
    from repq.export import export_float, export_quantized
    from repq.reparam import fuse

    if weights.quantized:
        return export_quantized(weights.model, imgsz, config, names=weights.names, maxima=weights.maxima)
    return export_float(fuse(weights.model), imgsz, config, names=weights.names)


def write_onnx(
    weights: Weights,
    out: Path,
    imgsz: tuple[int, int],
    config: ExportConfig,
    maxima: Mapping[str, float] | None = None,
) -> ExportReport:
    """Write weights as ONNX: Q/DQ nodes for quantized ones, plain float else (fused on the way).

    Args:
        maxima: activation maxima that keep float weights in FP16 from overflowing; quantized ones carry their own.

    Raises:
        RepqError: the size does not fit the model, or the file cannot be written.
    """
    from repq.export import save_onnx
    from repq.graph import (
        count_qdq,
        for_serving,
        layer_nodes,
        lint,
        merge_scales,
        nodes_beyond_fp16,
        quantize_residuals,
        read_metadata,
        to_fp16,
    )

    graph = to_onnx(weights, imgsz, config)
    before, merged = count_qdq(graph), 0
    if config.merge_scales and weights.quantized:
        graph, _ = quantize_residuals(graph)
        graph, report = merge_scales(graph)
        merged = len(report.groups)
    after = count_qdq(graph)
    kept: tuple[str, ...] = ()
    if config.float16:
        kept = nodes_beyond_fp16(graph, weights.maxima if maxima is None else maxima)
        graph, _ = to_fp16(graph, keep_fp32=kept, float32_io=not config.float16_io)
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
