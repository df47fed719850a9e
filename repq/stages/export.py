"""Export as a stage: one chain of graphs, each made once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from repq.api.exporting import merged, to_onnx, write_graph, write_onnx
from repq.log import Log, quiet
from repq.recipe import DeployConfig, ExportConfig, GraphConfig
from repq.results import ExportedGraphs, ExportReport
from repq.stages.stage import Job, Section, Stage

if TYPE_CHECKING:
    from repq.quant import Weights
    from repq.recipe import Recipe


def export_checkpoint(
    model: Path,
    out: Path,
    imgsz: tuple[int, int],
    config: ExportConfig,
    *,
    deploy: DeployConfig = DeployConfig(),
    graph: GraphConfig = GraphConfig(),
    maxima_from: Path | None = None,
    log: Log = quiet,
) -> ExportReport:
    """Write a checkpoint as ONNX: Q/DQ nodes for a quantized one, plain float else (fused on the way).

    Args:
        deploy: thresholds of its use that the file is to say; the checkpoint's where none are given.
        graph: what the file of ``model`` does not say of itself.
        maxima_from: a quantized checkpoint of the same model, whose activation maxima keep a float one in FP16 from
            overflowing; a quantized ``model`` carries its own.

    Raises:
        RepqError: the checkpoint cannot be read, or the size does not fit the model.
    """
    from repq.quant import load_weights

    weights = load_weights(model, imgsz, graph).with_thresholds(deploy, model.name, log)
    maxima = None if maxima_from is None else load_weights(maxima_from, imgsz).maxima
    return write_onnx(weights, out, imgsz, _with_target(config, weights), maxima)


def _with_target(config: ExportConfig, weights: Weights) -> ExportConfig:
    """The settings; where no target is named and no runtime with rules of lint takes the scheme, with one that does."""
    from repq.engine import ENGINES

    if config.target is not None or config.form is not None or weights.config is None:
        return config
    suited = [entry for entry in ENGINES if entry.settings["ptq"]["scheme"] == weights.config.scheme]
    named = suited[0].name if suited and not any(entry.lints for entry in suited) else None
    return config.model_copy(update={"target": named})


def _export(job: Job) -> ExportedGraphs:
    """Export the float and the quantized model once each; the other graphs are made from these two."""
    from repq.quant import load_weights
    from repq.report.text import export_text

    imgsz, quantized = job.recipe.imgsz, load_weights(job.quantized)
    config, deploy = _with_target(job.section("export", ExportConfig), quantized), job.section("deploy", DeployConfig)
    plain = config.model_copy(update={"float16": False, "float16_io": False})
    found: dict[str, ExportReport] = {}
    started = load_weights(job.fused).with_thresholds(deploy, "the checkpoint", job.log)
    trained = quantized.with_thresholds(deploy, job.quantized.name)
    for opened, names in ((started, ("float32", "float16")), (trained, ("int8", "int8_float16"))):
        graph = merged(to_onnx(opened, imgsz, plain), plain)
        for name, settings in zip(names, (plain, config) if config.float16 else (plain,), strict=False):
            report = write_graph(graph, job.payload / f"{name}.onnx", imgsz, settings, quantized.maxima)
            found[name] = report.model_copy(update={"out": f"{name}.onnx"})  # the folder is renamed when complete
            job.log("\n".join(f"  {line}" for line in export_text(found[name]).splitlines()))
    return ExportedGraphs(graphs=found)


def _plain_graphs(recipe: Recipe) -> None:
    config = recipe.export
    if config.nms is not None or config.preprocess.uint8 or config.preprocess.bgr:
        raise ValueError("a run compares plain graphs: export.preprocess and export.nms are for `repq export`")
    if config.form is not None:
        raise ValueError("a run builds all engines from one graph: export.form is for `repq export`")


STAGE = Stage(
    "export", _export, {"export": Section(ExportConfig), "deploy": Section(DeployConfig)}, ("imgsz",),
    reads=("fuse/fused.safetensors", "ptq/quantized.safetensors", "qat/quantized.safetensors"), result=ExportedGraphs,
    check=_plain_graphs,
)  # fmt: skip
