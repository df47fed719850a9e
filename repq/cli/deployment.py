"""Commands on graphs and engines: export, lint, estimate, build, describe."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

from repq.cli.generated import Offer
from repq.cli.options import OUT, OWN_THREADS, Model, OwnSize, Runtime, Target
from repq.cli.shell import Shell
from repq.printable import command_line
from repq.recipe import BuildConfig, DeployConfig, EngineName, ExportConfig, GraphConfig, default_engines
from repq.recipe.base import AnyPath, Batch, ImageSize, Threads, setting

EngineOut = Annotated[AnyPath, setting(flag="-o --out", writes=("engine.json",), help="Folder for the engine.")]


def export_command(
    shell: Shell, model: Model, out: Annotated[AnyPath, setting(flag="-o --out", writes=".onnx", help=OUT)],
    export: ExportConfig, deploy: DeployConfig, graph: GraphConfig,
    imgsz: OwnSize = None,
    maxima: Annotated[
        AnyPath | None,
        setting(flag="--maxima", metavar="INT8", needs="--fp16",
                help="Quantized checkpoint that knows where a float one overflows."),
    ] = None,
    target: Target = None,
) -> None:  # fmt: skip
    """A quantized MODEL gets Q/DQ nodes; any other is fused and stays float. Pre- and postprocessing can go into the
    graph; the file says what is inside, and `repq eval` and `repq bench` act by it.
    """
    from repq.api.sizes import size_for
    from repq.graph.forms import form_named
    from repq.report.text import export_text
    from repq.stages import export_checkpoint

    imgsz = size_for(model, imgsz, shell.log)
    report = export_checkpoint(model, out, imgsz, export, deploy=deploy, graph=graph, maxima_from=maxima, log=shell.log)
    form = None if export.form is None else form_named(export.form)
    engine = form.runs_in if form is not None else target or default_engines()[0]
    then = command_line("repq", "build", out, "--engine", engine, "-o", out.with_suffix(""))
    shell.finish({**report.values(), "out": str(out)}, lambda: export_text(report), next=then)


def lint_command(
    shell: Shell, model: Model,
    fail_on: Annotated[
        Literal["error", "warning", "info"], setting(flag="--fail-on", help="Exit with 1 from this severity on.")
    ] = "warning",
    target: Annotated[
        EngineName | None,
        setting(flag="--target", help="Runtime whose rules count.  [default: what MODEL was exported for, or all]"),
    ] = None,
) -> None:  # fmt: skip
    """Says without a GPU which layers run in INT8, which Q/DQ TensorRT's parser refuses and which cost extra kernels.
    A graph for another runtime is not measured by TensorRT's rules.
    """
    from repq.report.text import lint_table
    from repq.stages import lint_graph

    report = lint_graph(model, target)
    values = report.values()
    shell.finish(values, lambda: lint_table(values))
    sys.exit(report.exit_code(fail_on))


def estimate_command(
    shell: Shell, model: Model,
    devices: Annotated[
        tuple[str, ...],
        setting(flag="--device", metavar="NAME", min_length=1,
                help="t4, v100, a10, a100, l4, h100, orin, orin-nano; repeat for several."),
    ] = ("t4",),
    batches: Annotated[tuple[Batch, ...], setting(flag="--batch", help="Batch sizes; repeat for several.")] = (1, 32),
    fp16: Annotated[bool, setting(flag="--fp16", help="As if what is not INT8 had been exported as FP16.")] = False,
    top: Annotated[
        int, setting(flag="--top", ge=0, le=100_000, excludes="--json", help="Show this many kernels.")
    ] = 8,
) -> None:  # fmt: skip
    """A roofline model over the kernels that TensorRT is expected to run; nothing is measured."""
    from repq.report.text import estimate_tables
    from repq.stages import estimate_graph

    found = estimate_graph(model, devices, batches, as_fp16=fp16)
    values = {"estimated": True, "model": str(model), "estimates": [row.values() for row in found]}
    shell.finish(values, lambda: estimate_tables(found, top))


def build_command(
    shell: Shell, model: Model, engine: Annotated[EngineName, setting(flag="--engine", help="Runtime to build for.")],
    out: EngineOut,
    build: Annotated[BuildConfig, Offer("threads", "provider", "dynamic", "tune", "tensorrt", others=False)],
) -> None:  # fmt: skip
    """Says which precision every layer of MODEL really runs in."""
    from repq.report.text import engine_table
    from repq.stages import build_engine

    description = build_engine(model, out, engine, build.model_copy(update={"engines": (engine,)}), log=shell.log)
    shell.finish({**description.values(), "out": str(out)}, lambda: engine_table(description))


def describe_command(
    shell: Shell, model: Model,
    engine: Runtime = None,
    imgsz: Annotated[
        ImageSize | None,
        setting(flag="--imgsz", needs="MODEL checkpoint|onnx", help="640 or HEIGHTxWIDTH.  [default: the model's own]"),
    ] = None,
    threads: Annotated[
        Threads | None,
        setting(flag="--threads", needs="MODEL onnx|engine on the CPU or --engine onnxruntime|openvino",
                excludes="--engine tensorrt", help=OWN_THREADS),
    ] = None,
) -> None:  # fmt: skip
    """Their ids and sizes, and the precision that the runtime uses."""
    from repq.api.sizes import size_for
    from repq.stages import describe_model

    imgsz = size_for(model, imgsz, shell.log)
    values, text = describe_model(model, engine, imgsz, threads)
    shell.finish(values, text)
