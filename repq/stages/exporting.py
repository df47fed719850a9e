"""Export and lint as stages."""

from __future__ import annotations

from pathlib import Path

from repq.checkpoints import open_checkpoint, to_onnx
from repq.recipe import ExportConfig
from repq.results import ExportReport, LintReport


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
    from repq.graph import count_qdq, layer_nodes, lint, read_metadata
    from repq.graph.passes import Outcome, PassContext, run_passes

    opened = open_checkpoint(model)
    maxima = opened.maxima if maxima_from is None else open_checkpoint(maxima_from).maxima
    exported = to_onnx(opened, imgsz, config)
    context = PassContext(config, quantized=opened.quantized, maxima=maxima)
    graph, outcomes, passes = run_passes(exported, context)
    merged, half = (outcomes.get(name, Outcome()).touched for name in ("merge_scales", "to_fp16"))
    metadata = read_metadata(graph)
    assert metadata is not None
    int8 = len(metadata.int8_layers)
    save_onnx(out, graph)
    linted = lint(graph)
    return ExportReport(
        out=str(out),
        imgsz=imgsz,
        batch=config.batch,
        opset=config.opset,
        precision=metadata.precision,
        preprocess=config.preprocess.model_dump(mode="json"),
        nms=config.nms and config.nms.model_dump(mode="json"),
        qdq_before_merging=count_qdq(exported),
        qdq=linted.counts,
        merged_groups=len(merged),
        fp32_nodes=half,
        layers_int8=int8,
        layers_float=len(layer_nodes(graph)) - int8,
        size_bytes=out.stat().st_size,
        findings=linted.findings,
        passes=passes,
    )


def lint_graph(onnx: Path) -> LintReport:
    """Look at an ONNX file, repq's or another tool's, through TensorRT's eyes.

    Raises:
        GraphError: the file is no ONNX model.
    """
    from repq.graph import lint, load_onnx

    return lint(load_onnx(onnx))
