"""From weights to an ONNX file, with everything that a graph can hold beside the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
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
    graph = merged(to_onnx(weights, imgsz, config), config)
    return write_graph(graph, out, imgsz, config, weights.maxima if maxima is None else maxima)


@dataclass(frozen=True)
class MergedGraph:
    """A graph, with the scales that TensorRT wants equal made equal if that was asked for, and what it changed."""

    graph: ModelProto
    before: QdqCount
    after: QdqCount
    groups: int


def merged(graph: ModelProto, config: ExportConfig) -> MergedGraph:
    """Merge scales if ``config`` says so, and count what it changes."""
    from repq.graph import count_qdq, merge_scales, quantize_residuals

    before, groups = QdqCount(**asdict(count_qdq(graph))), 0
    if config.merge_scales:
        graph, _ = quantize_residuals(graph)
        graph, report = merge_scales(graph)
        groups = len(report.groups)
    return MergedGraph(graph, before, QdqCount(**asdict(count_qdq(graph))), groups)


def write_graph(
    merged: MergedGraph, out: Path, imgsz: tuple[int, int], config: ExportConfig, maxima: Mapping[str, float]
) -> ExportReport:
    """Type a graph as FP16 and put the work of a service inside, as ``config`` says, and write it."""
    from repq.export import save_onnx
    from repq.graph import for_serving, layer_nodes, lint, nodes_beyond_fp16, read_metadata, to_fp16

    graph = merged.graph
    kept: tuple[str, ...] = ()
    raised: tuple[str, ...] = ()
    if config.float16:
        kept = nodes_beyond_fp16(graph, maxima)
        graph, report = to_fp16(graph, keep_fp32=kept, float32_io=not config.float16_io)
        raised = report.raised_scales
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
        qdq_before_merging=merged.before,
        qdq=merged.after,
        merged_groups=merged.groups,
        fp32_nodes=kept,
        raised_scales=raised,
        layers_int8=int8,
        layers_float=len(layer_nodes(graph)) - int8,
        size_bytes=out.stat().st_size,
        findings=tuple(GraphFinding(**asdict(finding)) for finding in lint(graph).findings),
    )
