"""The folder that is deployed, as a stage: the engine to ship, what documents it, samples, and the model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from repq.api.opening import load
from repq.files import write_text
from repq.machine.cpu import DOT_PRODUCT_FEATURES
from repq.recipe import engine_title
from repq.report.blocks import Block, Column, Columns, Facts, Text, number, table
from repq.report.comparison import built_title
from repq.report.numbers import fraction, mebibytes, milliseconds
from repq.report.verdict import engine_sentences
from repq.results import Accuracies, Accuracy, BenchReport, BenchRow, Environment, ExportedGraphs, PtqReport, Verdict
from repq.stages.build import built
from repq.stages.stage import Job, Stage
from repq.stages.verdict import judged


def shipped(
    verdict: Verdict, names: Mapping[str, Any], timed: Mapping[str, BenchRow], target: str | None
) -> str | None:
    """The engine to ship, by its name such as ``openvino-int8``; None: it cannot be built here.

    Where INT8 is not good enough it is FP32: in the target, where that was built, else in the fastest engine.
    """
    if verdict.ship is not None:
        name = f"{verdict.ship}-int8"
        return name if name in names else None
    if f"{target}-float32" in names:
        return f"{target}-float32"
    plain = [name for name in names if name.endswith("-float32")]
    return min(plain, key=lambda name: timed[name].latency_ms_median if name in timed else float("inf"), default=None)


def _package(job: Job) -> None:
    from repq.deploy import write_package

    artifacts, engines = job.artifacts, built(job)
    bench = artifacts["bench"].result(BenchReport)
    timed = bench.inferences
    verdict = judged(job.recipe, artifacts["eval"].result(Accuracies), bench, ())
    name = shipped(verdict, engines, timed, job.recipe.target)
    graph = name.rpartition("-")[2] if name else "int8"
    if name is None and "int8_float16" in artifacts["export"].result(ExportedGraphs).graphs:
        graph = "int8_float16"
    onnx = load(artifacts["export"] / f"{graph}.onnx")
    model = onnx if name is None else load(engines[name])
    if reason := write_package(job.payload, model, onnx, job.recipe.eval.letterbox):
        job.log(f"  without samples, which cannot make boxes of its outputs: {reason}")
    card = model_card(job, verdict, name, timed, artifacts["eval"].result(Accuracies).models)
    write_text(job.payload / "README.md", card)  # last: it lists what is there
    job.log(f"  to ship: {name or onnx.label}")


def why_shipped(verdict: Verdict, name: str | None) -> list[str]:
    """Why this is shipped, in sentences, with what was measured of it and no more.

    Args:
        name: of the engine that is shipped, such as ``openvino-int8``; None: the graph alone, for an engine that was
            not built.
    """
    found = [f"{line.replace('->', '→')}." for line in engine_sentences(verdict)]
    if name is None and verdict.ship is not None:
        title = engine_title(verdict.ship)
        return [f"{title} was not built here: neither its AP nor its latency was measured.", *found]
    return found if verdict.ship is not None else ["INT8 is not shipped.", *found]


def model_card(
    job: Job, verdict: Verdict, name: str | None, timed: Mapping[str, BenchRow], measured: Mapping[str, Accuracy]
) -> str:
    """What is in the folder, what was measured of it and where, and what it must not be taken for."""
    from repq.report.markdown import render_markdown

    recipe, bench = job.recipe, job.artifacts["bench"].result(BenchReport)
    ptq = job.artifacts["ptq"].result(PtqReport)
    environment, row = bench.environment, bench.rows[0]
    int8 = sum(layer.precision == "int8" for layer in ptq.layers)

    def latency(one: str) -> float | None:
        return timed[one].latency_ms_median if one in timed and not bench.crowded else None

    columns: Columns[str] = (
        Column("Engine", built_title),
        number("AP", lambda one: measured[one].ap, fraction),
        number("AP50", lambda one: measured[one].ap50, fraction),
        number("Median latency (ms)", latency, milliseconds),
        number("Size", lambda one: timed[one].size_bytes if one in timed else None, mebibytes),
    )
    what = built_title(name) if name else f"graph for {engine_title(verdict.ship or '')}, without an engine"
    files = [row for row in _FILES if all((job.payload / file).exists() for file in row[0].split(", "))]
    blocks: list[Block] = [
        Text(f"{ptq.model} for {data_name(recipe.data.path)}: {what}."),
        *map(Text, why_shipped(verdict, name)),
        *map(Text, _needs(name, environment, ptq)),
        Facts([
            ("Input", f"{recipe.imgsz[0]}x{recipe.imgsz[1]} (height x width); model.json says how images become it"),
            ("Layers in INT8", f"{int8} of {len(ptq.layers)}, of the INT8 engines"),
            ("Calibration", f"{ptq.calibration}, {ptq.images} images of the split {recipe.data.train!r}"),
            ("Measured on", f"{environment.gpu or environment.cpu}; {row.threads} threads, batch {row.batch}"),
            ("AP measured on", f"{next(iter(measured.values())).images} images of the split {recipe.data.val!r}"),
            ("Made by", f"the recipe {recipe.name!r} of repq, seed {recipe.seed}"),
        ]),
        table("What was measured", columns, list(measured)),
        Text(
            "Latency holds for that machine alone, AP for images of that kind alone. The weights have the licence of "
            "where they come from, and so has this engine: those of the official YOLOv6 are under GPL-3.0."
        ),
        table(
            "Files",
            (Column("File", lambda row: row[0], code=True), Column("What", lambda row: row[1], wrap=True)),
            files,
        ),
    ]  # fmt: skip
    return f"# {ptq.model}: {what}\n\n" + render_markdown(blocks) + "\n"


def data_name(path: Path | None) -> str:
    """What the card calls a data set: its file and folder, without the rest of the path, which is private."""
    return "the drawn set" if path is None else "/".join(path.absolute().parts[1:][-2:])


def _needs(name: str | None, environment: Environment, ptq: PtqReport) -> list[str]:
    """What another CPU must have for the AP of this one."""
    fast = DOT_PRODUCT_FEATURES.intersection(environment.cpu_features)
    if name not in ("openvino-int8", "onnxruntime-int8") or not fast or ptq.settings.get("reduce_range"):
        return []
    return [
        f"The AP holds for CPUs with INT8 dot products, as this one has ({', '.join(sorted(fast))}). On x86 without "
        "them sums of two products saturate, and AP may be far lower: measure there, or quantize with --reduce-range."
    ]


_FILES = (
    ("engine/", "the engine, as repq loads it; the file that the runtime reads is named in model.json"),
    ("model.onnx", "the graph that the engine is built from"),
    ("decode.onnx", "makes rows of box and scores of the model's outputs"),
    ("model.json", "input, letterbox, output, classes and thresholds"),
    ("detect.py", "from image files to boxes with numpy, OpenCV and the runtime: python detect.py IMAGE"),
    ("detect.cpp, model.hpp", "the same in C++ with OpenVINO; its head says how to build it"),
)

STAGE = Stage(
    "package", _package,
    uses=("name", "imgsz", "eval", "data", "target", "max_drop", "min_speedup"),
    reads=("build/*", "export/*", "eval/eval.json", "bench/bench.json", "ptq/ptq.json"), publish="deploy",
)  # fmt: skip
