"""From weights to an ONNX file, with everything that a graph can hold beside the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from repq.recipe import ExportConfig, for_target
from repq.results import ExportReport, PassReport, QdqCount

if TYPE_CHECKING:
    from onnx import ModelProto

    from repq.graph import GraphMetadata
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

    A file in the form of a runtime has the settings that suit it, where ``config`` does not say otherwise.

    Args:
        maxima: activation maxima that keep float weights in FP16 from overflowing; quantized ones carry their own.

    Raises:
        RepqError: the size does not fit the model, or the file cannot be written.
    """
    if config.form is not None:
        from repq.graph.forms import form_named

        form, given = form_named(config.form), config.model_dump(exclude_unset=True)
        target = None if form is None else form.target
        config = ExportConfig.model_validate(for_target(target, {"export": given})["export"])
    graph = merged(to_onnx(weights, imgsz, config), config)
    return write_graph(graph, out, imgsz, config, weights.maxima if maxima is None else maxima)


@dataclass(frozen=True)
class MergedGraph:
    """A graph after the passes that its FP32 and its FP16 file share, and what they changed."""

    graph: ModelProto
    before: QdqCount
    after: QdqCount
    groups: int
    passes: tuple[PassReport, ...]


def merged(graph: ModelProto, config: ExportConfig) -> MergedGraph:
    """Run the shared passes, such as the merging of scales, and count what they change."""
    from repq.graph import count_qdq
    from repq.graph.passes import PASSES, Outcome, PassContext, run_passes

    context = PassContext(config, quantized=_metadata(graph).precision == "int8")
    result, outcomes, passes = run_passes(graph, context, [entry for entry in PASSES if entry.shared])
    groups = outcomes.get("merge_scales", Outcome()).touched.get("groups", ())
    before = count_qdq(graph)
    return MergedGraph(result, before, before if result is graph else count_qdq(result), len(groups), passes)


def write_graph(
    merged: MergedGraph, out: Path, imgsz: tuple[int, int], config: ExportConfig, maxima: Mapping[str, float]
) -> ExportReport:
    """Type a graph as FP16 and put the work of a service inside, as ``config`` says, and write it."""
    from repq.export import save_onnx
    from repq.graph import layer_nodes, lint
    from repq.graph.conversion import batch_of, opset_of
    from repq.graph.forms import in_form
    from repq.graph.layer_join import whole_layer
    from repq.graph.passes import PASSES, Outcome, PassContext, run_passes

    context = PassContext(config, quantized=_metadata(merged.graph).precision == "int8", maxima=maxima)
    graph, outcomes, passes = run_passes(merged.graph, context, [entry for entry in PASSES if not entry.shared])
    half = outcomes.get("to_fp16", Outcome()).touched
    metadata = _metadata(graph)
    int8, layers = len(metadata.int8_layers), len({whole_layer(layer) for layer in layer_nodes(graph)})
    if config.form is not None:
        graph, written = in_form(graph, config.form)
        passes = (*passes, written)
    save_onnx(out, graph)
    return ExportReport(
        out=str(out),
        imgsz=imgsz,
        batch=batch_of(graph),
        opset=opset_of(graph),
        precision=metadata.precision,
        preprocess=config.preprocess.model_dump(mode="json"),
        nms=config.nms and config.nms.model_dump(mode="json"),
        qdq_before_merging=merged.before,
        qdq=merged.after,
        merged_groups=merged.groups,
        fp32_nodes=half.get("fp32_nodes", ()),
        raised_scales=half.get("raised_scales", ()),
        layers_int8=int8,
        layers_float=layers - int8,
        size_bytes=out.stat().st_size,
        findings=lint(graph).findings,
        passes=(*merged.passes, *passes),
    )


def _metadata(graph: ModelProto) -> GraphMetadata:
    from repq.graph import read_metadata

    found = read_metadata(graph)
    assert found is not None, "the export wrote it"
    return found
