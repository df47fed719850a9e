"""Building engines as a stage."""

from __future__ import annotations

from pathlib import Path

from repq.api.opening import build_graph
from repq.log import Log, quiet
from repq.recipe import BuildConfig, EngineName
from repq.results import BuiltEngines, EngineDescription
from repq.stages.stage import Job, Section, Stage


def build_engine(onnx: Path, out: Path, engine: EngineName, config: BuildConfig, log: Log = quiet) -> EngineDescription:
    """Build an engine from an ONNX file, save it and describe what it really runs.

    Where the runtime's own tool can build the same, its command line is logged.

    Raises:
        EngineError: the file is no ONNX model, or the runtime is missing or cannot build it.
    """
    from repq.engine import runtime

    built = build_graph(engine, onnx, config)
    built.save(out)
    if command := runtime(engine).build_command(built.manifest, onnx, out):
        log(command)
    return built.describe()


def graph_of(job: Job, engine: EngineName, variant: str) -> Path:
    """The ONNX file that an engine is built from; an INT8 one has FP16 beside INT8 for a runtime that takes it."""
    mixed = variant == "int8" and _in_float16(job, engine)
    return job.artifacts["export"] / f"{'int8_float16' if mixed else variant}.onnx"


def _in_float16(job: Job, engine: EngineName) -> bool:
    from repq.engine import runtime

    return bool(job.recipe.export.float16) and "float16" in runtime(engine).variants


def _build(job: Job) -> BuiltEngines:
    """Every engine of the recipe, in float and INT8; in FP16 too if the recipe exports it and the runtime takes it."""
    from repq.engine import runtime

    config = job.section("build", BuildConfig)
    found: dict[str, EngineDescription] = {}
    for variant in ("float32", "float16", "int8"):
        for engine in config.engines:
            if variant not in runtime(engine).variants or (variant == "float16" and not job.recipe.export.float16):
                continue
            name = f"{engine}-{variant}"
            found[name] = build_engine(graph_of(job, engine, variant), job.payload / name, engine, config, job.log)
            counts = ", ".join(f"{count} {kind}" for kind, count in found[name].precision_counts().items())
            job.log(f"  {name}: {counts}")
    return BuiltEngines(engines=found)


def built(job: Job, variant: str | None = None) -> dict[str, Path]:
    """The engine folders of a run by name, of one variant or all."""
    names = job.artifacts["build"].result(BuiltEngines).engines
    return {name: job.artifacts["build"] / name for name in names if variant in (None, name.rpartition("-")[2])}


STAGE = Stage(
    "build", _build, {"build": Section(BuildConfig)}, ("export",), reads=("export/*",), result=BuiltEngines,
    on_machine=True,
)  # fmt: skip
