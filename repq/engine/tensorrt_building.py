"""From ONNX to a TensorRT plan, through Polygraphy's loaders.

Networks are strongly typed (10.x: by flag; 11.x: always): what runs in INT8 and FP16 is what the graph says, and the
builder chooses kernels and layouts alone. So there are no precision flags and no calibrator here.

Source: NVIDIA TensorRT Developer Guide, "Strongly typed networks"; "Migrating trtexec usage from 10.x to 11.x".
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from repq.engine.base import TensorInfo
from repq.errors import EngineError
from repq.machine.cuda import find_gpu
from repq.recipe import TensorRtConfig

INSTALL = "pip install 'repq[tensorrt]'"

Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""The smallest, the most frequent and the largest shape of the input."""

_FIRST_ERRORS = 3

Bound = TypeVar("Bound")


def build_plan(onnx: bytes, images: TensorInfo, config: TensorRtConfig) -> bytes:
    """Parse and build; returns the serialized engine.

    Raises:
        EngineError: the parser or the builder refuses the model, an axis is free that has no profile, there is not
            enough workspace, or the builder needs a GPU that is not there.
    """
    import tensorrt as trt
    from polygraphy.backend.trt import CreateConfig, EngineBytesFromNetwork, Profile
    from polygraphy.exception import PolygraphyException
    from polygraphy.logger import G_LOGGER

    shapes = profile_shapes(images, config)
    log = _error_log(trt)
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL + 1):  # its messages would mix with what the command prints
        parsed = _parse(trt, onnx, log)
        pools = {} if config.workspace_mib is None else {trt.MemoryPoolType.WORKSPACE: config.workspace_mib << 20}
        cache = None if config.timing_cache is None else str(config.timing_cache)
        settings = CreateConfig(
            tf32=config.tf32,
            refittable=config.refit,
            version_compatible=config.version_compatible,
            memory_pool_limits=pools or None,
            profiles=[Profile().add(images.name, *shapes)],
            profiling_verbosity=trt.ProfilingVerbosity.DETAILED,
            load_timing_cache=cache if cache is not None and Path(cache).is_file() else None,
        )
        try:
            return bytes(EngineBytesFromNetwork(parsed, config=settings, save_timing_cache=cache)())
        except PolygraphyException as error:
            raise _refusal(log.errors or [str(error)], config) from None
        except OSError as error:
            raise EngineError(f"cannot use the timing cache {cache}", found=str(error), fix="check the path") from None


def profile_shapes(images: TensorInfo, config: TensorRtConfig) -> Shapes:
    """The shapes that the engine is built for; three equal ones for a model of one shape.

    Raises:
        EngineError: the batch or the height and width are free and the configuration does not bound them, or another
            axis is free.
    """
    free = [axis for axis, size in enumerate(images.shape) if isinstance(size, str)]
    bounds: dict[int, tuple[int, ...]] = {}
    if 0 in free:
        bounds[0] = _bounds(
            config.batches, f"the input {images.name!r} takes any batch", images,
            "give --profile SMALLEST USUAL LARGEST (build.tensorrt.batches), such as 1 8 32, or export one batch",
        )  # fmt: skip
    if images.shape[-1] == 3 and free[-2:] == [1, 2]:  # decoded images, which the graph letterboxes
        sizes = _bounds(
            config.sources, f"the input {images.name!r} takes images of any size", images,
            "give --source-profile SMALLEST USUAL LARGEST (build.tensorrt.sources), such as 240x320 720x1280 "
            "1080x1920, or export one --source-size",
        )  # fmt: skip
        bounds[1], bounds[2] = zip(*sizes, strict=True)
    if other := [str(images.shape[axis]) for axis in free if axis not in bounds]:
        raise EngineError(
            f"the input {images.name!r} has free axes beside the batch",
            found=f"{images.shape}: {', '.join(other)}",
            fix="export the model for one image size (`repq export --imgsz`)",
        )
    smallest, usual, largest = (
        tuple(bounds[axis][which] if axis in bounds else int(size) for axis, size in enumerate(images.shape))
        for which in range(3)
    )
    return smallest, usual, largest


def _bounds(wanted: tuple[Bound, Bound, Bound] | None, what: str, images: TensorInfo, fix: str) -> tuple[Bound, ...]:
    if wanted is None:
        raise EngineError(f"{what}, and TensorRT must know which", found=f"{images.shape} and no profile", fix=fix)
    return wanted


def trtexec_line(onnx: str, plan: str, images: TensorInfo, config: TensorRtConfig, version: str) -> str:
    """The ``trtexec`` command that builds the same engine."""
    parts = ["trtexec", f"--onnx={onnx}", f"--saveEngine={plan}"]
    if int(version.partition(".")[0]) < 11:
        parts.append("--stronglyTyped")
    if any(isinstance(size, str) for size in images.shape):
        for name, shape in zip(("min", "opt", "max"), profile_shapes(images, config), strict=True):
            parts.append(f"--{name}Shapes={images.name}:{'x'.join(map(str, shape))}")
    if config.workspace_mib is not None:
        parts.append(f"--memPoolSize=workspace:{config.workspace_mib}M")
    if config.timing_cache is not None:
        parts.append(f"--timingCacheFile={config.timing_cache}")
    flags = {"--versionCompatible": config.version_compatible, "--refit": config.refit, "--noTF32": not config.tf32}
    parts += [flag for flag, wanted in flags.items() if wanted]
    return shlex.join([*parts, "--profilingVerbosity=detailed", "--skipInference"])


def _parse(trt: Any, onnx: bytes, log: Any) -> tuple[Any, Any, Any]:
    """Builder, network and parser; the parser owns the weights until the engine is built."""
    try:
        builder = trt.Builder(log)
    except TypeError:  # its constructor gave nothing: the TensorRT that runs on GPUs has no builder without a driver
        find_gpu()
        raise EngineError("TensorRT gives no builder", found=_listed(log.errors), fix="see `repq doctor`") from None
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(onnx) or parser.num_errors:
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        found = [f"{error.node_operator()} {error.node_name()}: {error.desc()}" for error in errors]
        zero_point = any("zero point" in error.desc() for error in errors)
        raise EngineError(
            "TensorRT's parser refuses the model",
            found=_listed(found or log.errors),
            fix="quantize with --scheme symmetric: TensorRT knows no zero points" if zero_point
            else "`repq lint` names what it does not take",
        )  # fmt: skip
    return builder, network, parser


def _error_log(trt: Any) -> Any:
    class ErrorLog(trt.ILogger):
        """Keeps what TensorRT reports as an error, for the message to the user."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

    return ErrorLog()


def _refusal(errors: Sequence[str], config: TensorRtConfig) -> EngineError:
    text = " ".join(errors)
    if "workspace" in text:
        limit = "no limit" if config.workspace_mib is None else f"{config.workspace_mib} MiB"
        return EngineError(
            f"TensorRT finds no kernel for a layer within its workspace ({limit})",
            found=_listed(errors),
            fix="allow more with --workspace, or leave it away: then all of the GPU's memory may be used",
        )
    if "CUDA" in text or "Cuda" in text:
        find_gpu()  # says that there is none, where that is the reason
    return EngineError("TensorRT cannot build the model", found=_listed(errors), fix="`repq lint` may name the reason")


def _listed(errors: Sequence[str]) -> str:
    first = [error.strip().splitlines()[0] for error in errors[:_FIRST_ERRORS] if error.strip()]
    more = f" (and {len(errors) - len(first)} more)" if len(errors) > len(first) else ""
    return "; ".join(first) + more
