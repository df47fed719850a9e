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

    A TensorRT engine remembers what ``lint`` expects of it, and the equivalent ``trtexec`` line is logged.

    Raises:
        EngineError: the file is no ONNX model, or the runtime is missing or cannot build it.
    """
    built = build_graph(engine, onnx, config)
    built.save(out)
    if engine == "tensorrt":
        from repq.engine.tensorrt import build_command

        log(build_command(built.manifest, onnx, out))
    return built.describe()


def graph_of(job: Job, engine: EngineName, variant: str) -> Path:
    """The ONNX file that an engine is built from: TensorRT gets the INT8 file whose other layers are FP16."""
    mixed = engine == "tensorrt" and variant == "int8" and job.recipe.export.float16
    return job.artifacts["export"] / f"{'int8_float16' if mixed else variant}.onnx"


def _build(job: Job) -> BuiltEngines:
    """Every engine of the recipe, in float and INT8; TensorRT in FP16 too if the recipe exports it."""
    config = job.section("build", BuildConfig)
    found: dict[str, EngineDescription] = {}
    for variant in ("float32", "float16", "int8"):
        for engine in config.engines:
            if variant == "float16" and not (engine == "tensorrt" and job.recipe.export.float16):
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
