"""Commands on graphs and engines: export, lint, build, describe."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from repq.cli.options import (
    ENGINES,
    Shell,
    Size,
    engine_option,
    imgsz_option,
    out_option,
    shared_options,
    threads_option,
)


@click.command()
@click.argument("model", type=Path)
@out_option
@imgsz_option
@click.option("--batch", default="1", show_default=True, help="Batch size, or 'dynamic'.")
@click.option("--opset", default=19, show_default=True, type=click.IntRange(19, 21))
@click.option("--merge-scales", "merge", is_flag=True, help="For TensorRT: one scale where unequal ones cost kernels.")
@click.option("--fp16", is_flag=True, help="For TensorRT: what is not INT8 becomes FP16, where it does not overflow.")
@click.option(
    "--maxima", type=Path, metavar="INT8", help="Quantized checkpoint that knows where a float one overflows."
)
@click.option("--fp16-io", is_flag=True, help="With --fp16: input and outputs become FP16 too.")
@click.option("--uint8-input", is_flag=True, help="The graph takes pixels as bytes; /255 is in its first weights.")
@click.option("--bgr", is_flag=True, help="The graph takes blue first, as OpenCV decodes.")
@click.option("--letterbox-in-graph", is_flag=True, help="The graph takes decoded images (B, h, w, 3) as bytes.")
@click.option("--source-size", default="any", show_default=True, help="Their size: HEIGHTxWIDTH, or 'any'.")
@click.option("--border", default=0, show_default=True, type=click.IntRange(0), help="Grey border of that letterbox.")
@click.option("--inner-size", type=click.IntRange(1), help="Long side of the image inside that letterbox.")
@click.option("--nms", is_flag=True, help="The graph ends with boxes (B, K, 6): x1, y1, x2, y2, score, class.")
@click.option("--conf", default=0.03, show_default=True, help="Score threshold of that suppression.")
@click.option("--iou", default=0.65, show_default=True, help="IoU threshold of that suppression.")
@click.option("--max-detections", default=300, show_default=True, type=click.IntRange(1), help="Its K.")
@shared_options
def export(
    model: Path, out: Path, imgsz: tuple[int, int], batch: str, opset: int, merge: bool, fp16: bool,
    maxima: Path | None, fp16_io: bool, uint8_input: bool, bgr: bool, letterbox_in_graph: bool, source_size: str,
    border: int, inner_size: int | None, nms: bool, conf: float, iou: float, max_detections: int, as_json: bool,
) -> None:  # fmt: skip
    """Write a checkpoint as ONNX.

    A quantized MODEL gets Q/DQ nodes; any other is fused and stays float. Pre- and postprocessing can go into the
    graph; the file says what is inside, and `repq eval` and `repq bench` act by it.
    """
    from repq.recipe import ExportConfig, LetterboxConfig, NmsConfig, PreprocessConfig
    from repq.report.text import export_text
    from repq.stages import export_checkpoint

    if fp16_io and not fp16:
        raise click.UsageError("--fp16-io needs --fp16")
    if batch != "dynamic" and not (batch.isdigit() and int(batch) > 0):
        raise click.BadParameter("give a positive number or 'dynamic'", param_hint="--batch")
    size = None if batch == "dynamic" else int(batch)
    source = None if source_size == "any" else Size().convert(source_size, None, None)
    if source is not None and not letterbox_in_graph:
        raise click.UsageError("--source-size is of images that the graph letterboxes: give --letterbox-in-graph too")
    preprocess = PreprocessConfig(
        uint8=uint8_input or letterbox_in_graph,
        bgr=bgr,
        letterbox=LetterboxConfig(border=border, inner_size=inner_size) if letterbox_in_graph else None,
        source=source,
    )
    suppression = NmsConfig(confidence=conf, iou=iou, max_detections=max_detections) if nms else None
    config = ExportConfig(
        opset=opset,
        batch=size,
        merge_scales=merge,
        float16=fp16,
        float16_io=fp16_io,
        preprocess=preprocess,
        nms=suppression,
    )
    report = export_checkpoint(model, out, imgsz, config, maxima_from=maxima)
    Shell(as_json).finish(report.values(), lambda: export_text(report))


@click.command()
@click.argument("model", type=Path)
@click.option("--fail-on", type=click.Choice(["error", "warning", "info"]), default="warning", show_default=True,
              help="Exit with 1 from this severity on.")  # fmt: skip
@shared_options
def lint(model: Path, fail_on: Any, as_json: bool) -> None:
    """Look at an ONNX file through TensorRT's eyes.

    Says without a GPU which layers run in INT8, which Q/DQ the parser refuses and which cost extra kernels.
    """
    from dataclasses import asdict

    from repq.report.text import lint_table
    from repq.stages import lint_graph

    report = lint_graph(model)
    values = asdict(report)
    Shell(as_json).finish(values, lambda: lint_table(values))
    sys.exit(report.exit_code(fail_on))


@click.command()
@click.argument("model", type=Path)
@click.option("--engine", type=click.Choice(ENGINES), required=True)
@out_option
@threads_option
@click.option("--provider", type=click.Choice(["cpu", "cuda", "tensorrt"]), default="cpu", show_default=True,
              help="What ONNX Runtime runs on; nothing else takes its place.")  # fmt: skip
@click.option("--profile", nargs=3, type=click.IntRange(1), metavar="MIN USUAL MAX",
              help="TensorRT: batch sizes of a model with a free batch axis.")  # fmt: skip
@click.option("--source-profile", nargs=3, type=Size(), metavar="MIN USUAL MAX",
              help="TensorRT: sizes of the images that a model letterboxes by itself.")  # fmt: skip
@click.option("--workspace", type=click.IntRange(1), metavar="MIB", help="TensorRT: memory for one kernel.")
@click.option("--timing-cache", type=Path, help="TensorRT: file of kernel timings, read and written.")
@click.option("--version-compatible", is_flag=True, help="TensorRT: for later versions as well, a little slower.")
@click.option("--refit", is_flag=True, help="TensorRT: keep the weights exchangeable, a little slower.")
@click.option("--tf32/--no-tf32", default=True, show_default=True, help="TensorRT: FP32 layers may multiply in TF32.")
@shared_options
def build(
    model: Path, engine: Any, out: Path, threads: int | None, provider: Any, profile: tuple[int, int, int] | None,
    source_profile: tuple[tuple[int, int], ...] | None, workspace: int | None, timing_cache: Path | None,
    version_compatible: bool, refit: bool, tf32: bool, as_json: bool,
) -> None:  # fmt: skip
    """Build an engine from an ONNX file.

    Says which precision every layer of MODEL really runs in.
    """
    from repq.recipe import BuildConfig, parse_settings
    from repq.report.text import engine_table
    from repq.stages import build_engine

    shell = Shell(as_json)
    config = parse_settings(
        BuildConfig,
        {"engines": (engine,), "threads": threads, "provider": provider, "tensorrt": {
            "batches": profile, "sources": source_profile, "workspace_mib": workspace, "timing_cache": timing_cache,
            "version_compatible": version_compatible, "refit": refit, "tf32": tf32}},
        what="building",
    )  # fmt: skip
    description = build_engine(model, out, engine, config, log=shell.log)
    shell.finish({**description.values(), "out": str(out)}, lambda: engine_table(description))


@click.command()
@click.argument("model", type=Path)
@engine_option
@imgsz_option
@threads_option
@shared_options
def describe(model: Path, engine: Any, imgsz: tuple[int, int], threads: int | None, as_json: bool) -> None:
    """List the layers of a model.

    Their ids and sizes, and the precision that the runtime uses.
    """
    from repq.stages import describe_model

    values, text = describe_model(model, engine, imgsz, threads)
    Shell(as_json).finish(values, text)
