"""How a model runs: in torch, or in an engine."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from repq.errors import EngineError
from repq.layout import OutputLayout, demand_finite
from repq.log import Log, quiet
from repq.machine.torch_device import layout, resolve_device
from repq.machine.torch_settings import usual_torch
from repq.progress import Progress, silent
from repq.recipe import BuildConfig
from repq.recipe.deployment import RuntimeName
from repq.recipe.reader import parse_settings
from repq.results import UNKNOWN, EngineDescription, Variant

if TYPE_CHECKING:
    import torch

    from repq.engine import Engine
    from repq.model import Detector
    from repq.quant import Weights

Images = NDArray[Any]


@dataclass(frozen=True)
class Options:
    """Where a model runs, and where its steps show how far they are.

    Attributes:
        engine: the runtime of an ONNX file.
        device: of torch, for a checkpoint: ``cpu``, ``cuda``, ``cuda:1`` …
        threads: CPU threads; None leaves the choice to the runtime.
        half: compute in FP16, for a float checkpoint on a GPU.
        progress: shows how far long steps are.
        log: gets what the user should know beside the result.
        concurrent: run several images at once where the runtime has more of them a second so; see `Engine.concurrent`.

    Raises:
        RecipeError: the number of threads is out of range.
    """

    engine: RuntimeName | None = None
    device: str = "cpu"
    threads: int | None = None
    half: bool = False
    progress: Progress = silent
    log: Log = quiet
    concurrent: bool = False

    def __post_init__(self) -> None:
        if self.threads is not None:
            threads = parse_settings(BuildConfig, {"threads": self.threads}, what="threads").threads
            object.__setattr__(self, "threads", threads)  # a number, however it was given


HERE = Options()


@dataclass(frozen=True)
class Running:
    """A model that is ready to run.

    Attributes:
        engine: the runtime.
        infer: network input (B, 3, H, W) to detections in network pixels; any B. A graph
            with work of the service inside takes and gives what the model's ``preprocess`` and ``nms`` say. An output
            with a value that is not finite is an `EngineError`.
        unchecked: the same without a look at the values, for timing.
        variant: what it was built as.
        precision: what its layers really run in: ``float32``, ``int8``, ``int8 in 83 of 154 layers`` …
        size_bytes: size on disk of what is deployed.
        description: per layer, where the runtime tells.
        runs_at_once: how many threads may call ``infer`` at once.
        on_device: shape of the input -> one run for a stream of the GPU, and that stream's handle; None: it runs on
            the CPU.
    """

    engine: RuntimeName
    infer: Callable[[Images], Images]
    unchecked: Callable[[Images], Images]
    variant: Variant
    precision: str
    size_bytes: int = 0
    description: EngineDescription | None = None
    runs_at_once: int = 1
    on_device: Callable[[tuple[int, ...]], tuple[Callable[[], object], int]] | None = None


def in_torch(weights: Weights, options: Options, label: str, size_bytes: int = 0) -> Running:
    """Run weights in torch. A fake-quantized model computes in float32: it simulates INT8, and says so.

    Raises:
        EngineError: torch cannot use the device, or is to compute in FP16 on a CPU, or what simulates INT8.
    """
    import torch

    from repq.machine.torch_threads import passes_at_once, torch_threads

    device, half = resolve_device(options.device), options.half
    if half and (weights.quantized or not device.startswith("cuda")):
        found = "a quantized checkpoint" if weights.quantized else f"the device {device!r}"
        raise EngineError(f"torch does not run {label} in FP16", found=found, fix="use a float one on a GPU")
    dtype = torch.float16 if half else torch.float32
    model = weights.model.eval()
    if half or next(model.parameters()).device != torch.empty(0, device=device).device:
        model = copy.deepcopy(model).to(device, dtype)  # others run these weights too

    threads = options.threads or torch.get_num_threads()
    at_once = min(threads, passes_at_once(device)) if options.concurrent else 1

    @usual_torch()
    @torch.inference_mode()
    def unchecked(images: Images) -> Images:
        batch = torch.from_numpy(images).to(device, dtype, non_blocking=True, memory_format=layout(device))
        with torch_threads(threads // at_once):
            result: Images = model(batch).float().cpu().numpy()
        return result

    def infer(images: Images) -> Images:
        _demand_images(images, label)
        model.spec.check_size(*images.shape[2:])
        result = unchecked(images.copy() if min(images.strides) < 0 else images)  # torch takes no negative strides
        demand_finite({"detections": result}, f"{label} in torch")
        return result

    return Running(
        engine="torch",
        infer=infer,
        unchecked=unchecked,
        variant="int8" if weights.quantized else "float16" if half else "float32",
        precision="int8 simulated in float32" if weights.quantized else "float16" if half else "float32",
        size_bytes=size_bytes,
        runs_at_once=at_once,
        on_device=partial(_torch_work, model, device, dtype) if device.startswith("cuda") else None,
    )


def _demand_images(images: Images, label: str) -> None:
    """Refuse what torch would fail on, or take as something else: as engines do.

    Raises:
        EngineError: no float32 array (B, 3, H, W).
    """
    from repq.engine.base import CONVERSIONS

    found = images.dtype if isinstance(images, np.ndarray) else f"{type(images).__name__}, no array"
    if found != np.float32:
        fix = f"convert them, for example {CONVERSIONS['float32']}"
        raise EngineError(f"{label} takes float32 images", found=f"{found}", fix=fix)
    if images.ndim != 4 or images.shape[1] != 3:
        fix = "give a batch of images, colours first"
        raise EngineError(f"{label} takes images of shape (B, 3, H, W)", found=f"{images.shape}", fix=fix)


def _torch_work(
    model: Detector, device: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> tuple[Callable[[], object], int]:
    import torch

    images, stream = torch.zeros(shape, device=device, dtype=dtype), torch.cuda.Stream(device)
    return partial(model, images), stream.cuda_stream


def in_engine(engine: Engine, options: Options = HERE, layout: OutputLayout | None = None) -> Running:
    """Run a built engine; one of a fixed batch size gets its batches padded.

    Args:
        options: whether several images run at once; the engine has its threads.
        layout: of its outputs, where the graph does not tell or somebody else does; None: as it tells.
    """
    from repq.graph import parse_metadata
    from repq.machine.cuda import gpu_or_none

    engine = engine.concurrent() if options.concurrent else engine
    description, metadata = engine.describe(), parse_metadata(engine.manifest.metadata)
    half = metadata is not None and metadata.precision == "float16"
    source = f"{engine.manifest.source} in {engine.name}"
    if layout is None:
        layout = OutputLayout() if metadata is None or metadata.nms is not None else metadata.layout

    def run(images: Images, check: bool) -> Images:
        outputs = engine.infer(images)
        if check:
            demand_finite(outputs, source)
        size = (images.shape[2], images.shape[3]) if metadata is None else metadata.imgsz
        result: Images = layout.decode([outputs[name] for name in description.output_names], size)
        if check and not layout.plain:  # an exponential may exceed float32
            demand_finite({"detections": result}, source)
        return result

    infer, unchecked = (
        _in_chunks(partial(run, check=check), engine.batch) if engine.batch else partial(run, check=check)
        for check in (True, False)
    )
    return Running(
        engine=engine.name,
        infer=infer,
        unchecked=unchecked,
        variant="int8" if engine.manifest.int8_layers else "float16" if half else "float32",
        precision=summarize_precision(description),
        size_bytes=description.size_bytes,
        description=description,
        runs_at_once=engine.runs_at_once,
        on_device=getattr(engine, "on_device", None) if gpu_or_none() else None,
    )


def _in_chunks(infer: Callable[[Images], Images], size: int) -> Callable[[Images], Images]:
    def run(images: Images) -> Images:
        parts = []
        for start in range(0, len(images), size):
            chunk = images[start : start + size]
            missing = size - len(chunk)
            if missing:
                chunk = np.concatenate([chunk, np.repeat(chunk[-1:], missing, axis=0)])
            parts.append(infer(chunk)[: size - missing])
        return np.concatenate(parts)

    return run


def summarize_precision(description: EngineDescription) -> str:
    """One precision if all layers share it, else the share of each."""
    counts = description.precision_counts() or {UNKNOWN: 0}
    if len(counts) == 1:
        return next(iter(counts))
    total = sum(counts.values())
    return ", ".join(f"{precision} in {count} of {total} layers" for precision, count in counts.items())
