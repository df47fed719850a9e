"""Export as a stage: one chain of graphs, each made once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from repq.checkpoints import open_checkpoint, to_onnx
from repq.recipe import ExportConfig
from repq.results import ExportedGraphs, ExportReport, GraphFinding, QdqCount
from repq.stages.stage import Job, Section, Stage

if TYPE_CHECKING:
    from onnx import ModelProto

    from repq.recipe import Recipe


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
    opened = open_checkpoint(model)
    maxima = opened.maxima if maxima_from is None else open_checkpoint(maxima_from).maxima
    return _write(_merged(to_onnx(opened, imgsz, config), config), out, imgsz, config, maxima)


@dataclass(frozen=True)
class _Merged:
    """A graph, with the scales that TensorRT wants equal made equal if that was asked for, and what it changed."""

    graph: ModelProto
    before: QdqCount
    after: QdqCount
    groups: int


def _merged(graph: ModelProto, config: ExportConfig) -> _Merged:
    from repq.graph import count_qdq, merge_scales, quantize_residuals

    before, groups = QdqCount(**asdict(count_qdq(graph))), 0
    if config.merge_scales:
        graph, _ = quantize_residuals(graph)
        graph, report = merge_scales(graph)
        groups = len(report.groups)
    return _Merged(graph, before, QdqCount(**asdict(count_qdq(graph))), groups)


def _write(
    merged: _Merged, out: Path, imgsz: tuple[int, int], config: ExportConfig, maxima: Mapping[str, float]
) -> ExportReport:
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


def _export(job: Job) -> ExportedGraphs:
    """Export the float and the quantized model once each; the other graphs are made from these two."""
    from repq.report.text import export_text

    config, imgsz = job.section("export", ExportConfig), job.recipe.imgsz
    plain = config.model_copy(update={"float16": False, "float16_io": False})
    quantized = open_checkpoint(job.quantized)
    found: dict[str, ExportReport] = {}
    for opened, names in ((open_checkpoint(job.fused), ("float32", "float16")), (quantized, ("int8", "int8_float16"))):
        merged = _merged(to_onnx(opened, imgsz, plain), plain)
        for name, settings in zip(names, (plain, config) if config.float16 else (plain,), strict=False):
            report = _write(merged, job.payload / f"{name}.onnx", imgsz, settings, quantized.maxima)
            found[name] = report.model_copy(update={"out": f"{name}.onnx"})  # the folder is renamed when complete
            job.log("\n".join(f"  {line}" for line in export_text(found[name]).splitlines()))
    return ExportedGraphs(graphs=found)


def _plain_graphs(recipe: Recipe) -> None:
    config = recipe.export
    if config.nms is not None or config.preprocess.uint8 or config.preprocess.bgr:
        raise ValueError("a run compares plain graphs: export.preprocess and export.nms are for `repq export`")


STAGE = Stage(
    "export", _export, {"export": Section(ExportConfig)}, ("imgsz",),
    reads=("fuse/fused.safetensors", "ptq/quantized.safetensors", "qat/quantized.safetensors"), result=ExportedGraphs,
    check=_plain_graphs,
)  # fmt: skip
