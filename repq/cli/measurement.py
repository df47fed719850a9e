"""Commands that measure models and machines: accuracy, agreement, latency."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

from repq.cli.generated import Offer
from repq.cli.options import (
    WHERE,
    AnySeed,
    Data,
    DataSplit,
    Model,
    Models,
    OwnSize,
    RunDevice,
    RunThreads,
    Runtime,
    ValSplit,
)
from repq.cli.shell import Shell
from repq.machine.cpu import cpu_cores
from repq.recipe import BenchConfig, CheckConfig, EngineName, EvalConfig, GraphConfig
from repq.recipe.base import AnyPath, Batch, Count, Device, setting
from repq.recipe.deployment import RuntimeName

PROFILED = ("profile.json", "trace.json", "report.*", "*.svg")
TIMED = ("bench.json", "report.*", "*.svg")


def eval_command(
    shell: Shell, model: Model, data: Data, eval: EvalConfig, graph: GraphConfig, split: ValSplit = "val",
    imgsz: OwnSize = None,
    engine: Runtime = None,
    threads: RunThreads = None,
    device: RunDevice = "cpu",
) -> None:  # fmt: skip
    """The AP is that of pycocotools, over all classes and thresholds. Under torchrun several processes share the
    images.
    """
    from repq.report.text import accuracy_table
    from repq.stages import evaluate_model

    context = shell.context(model, imgsz, data, eval, val_split=split, graph=graph, device=device)
    accuracy, opened = evaluate_model(model, context, engine=engine, threads=threads)
    values = {**accuracy.values(), "model": str(model), "engine": opened.running.engine, "precision": opened.precision}
    shell.finish(
        values, lambda: accuracy_table(accuracy, f"{model.name} ({opened.running.engine}, {opened.precision})")
    )


def check_command(
    shell: Shell, models: Models, data: Data, check: CheckConfig, eval: Annotated[EvalConfig, Offer("batch")],
    graph: GraphConfig, split: ValSplit = "val", imgsz: OwnSize = None,
    engines: Annotated[
        tuple[EngineName, ...],
        setting(flag="--engine", needs="MODEL onnx|alone", help="Repeat for several.  [default: those on the CPU]"),
    ] = (),
    device: Annotated[Device, setting(flag="--device", needs="MODEL checkpoint", help=WHERE)] = "cpu",
) -> None:  # fmt: skip
    """Gives the SNR of each output and the AP of each. The first MODEL is the reference; alone, engines are built from
    it.
    """
    from repq.report.text import check_table
    from repq.stages import check_models, demand_agreement

    context = shell.context(models, imgsz, data, eval, val_split=split, graph=graph, device=device)
    report = check_models(models, check, context, engines=engines)
    shell.finish(report.values(), lambda: check_table(report))
    demand_agreement(report)


def bench_command(
    shell: Shell, models: Models,
    bench: Annotated[
        BenchConfig,
        Offer(changes={
            "threads": {"default": (cpu_cores(),), "help": "Repeat for several.  [default: all cores]"},
            "runs_per_round": {"default": 20},
        }),
    ],
    imgsz: OwnSize = None,
    engines: Annotated[
        tuple[RuntimeName, ...],
        setting(flag="--engine", needs="MODEL checkpoint|onnx", help="Repeat for several."),
    ] = (),
    data: Annotated[
        AnyPath | None,
        setting(flag="--data", excludes="--infer-only", help="data.yaml, COCO .json, or folder of images."),
    ] = None,
    split: DataSplit = "val",
    images: Annotated[Count, setting(flag="--images", needs="--data", help="How many of --data.")] = 64,
    loaders: Annotated[
        tuple[Literal["opencv", "dali"], ...],
        setting(flag="--loader", needs="--data", help="What decodes the images of --data; repeat for several."),
    ] = ("opencv",),
    out: Annotated[
        AnyPath | None, setting(flag="-o --out", writes=TIMED, help="Folder for bench.json and the report.")
    ] = None,
    device: Annotated[
        Device, setting(flag="--device", needs="MODEL checkpoint|engine or --loader dali", help=WHERE)
    ] = "cpu",
    seed: AnySeed = 0,
) -> None:  # fmt: skip
    """The first MODEL is what the others are compared with. With --data also end to end on its images, and the way from
    JPEG files to boxes step by step: which side is the bottleneck.
    """
    from repq.api.images import open_data
    from repq.api.sizes import size_for
    from repq.machine.load import OtherLoad
    from repq.report.text import bench_table
    from repq.results import joined_load
    from repq.stages import bench_models, bench_service, write_bench

    imgsz = size_for(models, imgsz, shell.log)
    dataset = None if data is None else open_data(data, split)
    if dataset is None and bench.end_to_end:
        shell.log("inference alone is timed; with --data also end to end, on its images")
    report = bench_models(
        models, imgsz, bench, engines=engines, dataset=dataset, images=images, device=device, seed=seed,
        progress=shell.progress,
    )  # fmt: skip
    if data is not None:
        load = OtherLoad()
        rows_of_service = bench_service(
            models, data, split, imgsz, bench, engines=engines, loaders=loaders, images=images, device=device,
            progress=shell.progress, log=shell.log,
        )  # fmt: skip
        together = joined_load(report, load.so_far(max(bench.threads)))
        report = report.model_copy(update={"service": rows_of_service, **dict(together)})
    if out is not None:
        write_bench(report, out)
    values = report.values()
    rows = [{key: value for key, value in row.items() if key != "samples_ms"} for row in values.pop("rows")]
    shell.finish({"models": rows, **values}, lambda: bench_table(report))


def profile_command(
    shell: Shell, model: Model,
    out: Annotated[AnyPath, setting(flag="-o --out", writes=PROFILED, help="Folder for tables, plot and trace.json.")],
    engine: Runtime = None,
    imgsz: OwnSize = None,
    batch: Annotated[Batch, setting(flag="--batch", help="Batch size.")] = 1,
    threads: RunThreads = None,
    runs: Annotated[int, setting(flag="--runs", ge=1, le=10_000, help="Runs to take the mean of.")] = 20,
    device: RunDevice = "cpu",
) -> None:  # fmt: skip
    """As the runtime itself tells it. trace.json opens in chrome://tracing and Perfetto."""
    from repq.api.opening import load
    from repq.api.profiling import nsight_lines, profiled, write_profile
    from repq.api.sizes import size_for
    from repq.report.text import profile_table

    imgsz = size_for(model, imgsz, shell.log)
    opened = load(model, device=device, threads=threads)
    report = profiled(opened, imgsz, engine=engine, batch=batch, runs=runs)
    again = [sys.executable, "-m", "repq", "profile", str(model), "--engine", report.engine, "-o", str(out)]
    report = report.model_copy(update={"nsight": nsight_lines(again, out)})
    write_profile(report, out)
    shell.finish({**report.values(), "out": str(out)}, lambda: profile_table(report))


def report_command(
    shell: Shell,
    benches: Annotated[tuple[AnyPath, ...], setting(flag="BENCH", min_length=1, help="bench.json or its folder.")],
    out: Annotated[AnyPath, setting(flag="-o --out", writes=("report.*", "*.svg"), help="Folder for the report.")],
    title: Annotated[str, setting(flag="--title", max_length=300, help="Title of the report.")] = "Latency",
) -> None:  # fmt: skip
    """Each BENCH is a bench.json that `repq bench -o FOLDER` wrote, or its folder. Figures of the YOLOv6 report on a T4
    stand beside what was measured of the same models.
    """
    from repq.stages import report_benches

    paths = report_benches(benches, out, title)
    values = {form: str(path) for form, path in paths.items()}
    shell.finish(values, "\n".join(values.values()))


def doctor_command(shell: Shell) -> None:
    """Shows the machine too, as reports do."""
    from repq.report.text import doctor_table
    from repq.stages import diagnose_machine

    environment, rows = diagnose_machine()
    values = {"environment": environment.values(), "runtimes": [row.values() for row in rows]}
    shell.finish(values, lambda: doctor_table(environment, rows))
