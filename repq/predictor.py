"""One way to run a model, whatever its form: a checkpoint, an ONNX file or a built engine."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from repq.checkpoints import open_checkpoint, to_onnx
from repq.errors import EngineError, RepqError
from repq.layout import OutputLayout
from repq.recipe import BuildConfig, EngineName, ExportConfig, NmsConfig, PreprocessConfig, TensorRtConfig
from repq.results import EngineDescription, Variant

if TYPE_CHECKING:
    import torch

    from repq.engine import Engine
    from repq.graph import GraphMetadata
    from repq.model import Detector

Images = NDArray[Any]
Runtime = Literal["torch", "onnxruntime", "openvino", "tensorrt"]
_ANY_BATCH = TensorRtConfig(batches=(1, 8, 32))
"""For ONNX files with a free batch axis that are run without having been built first."""

CHECKPOINT_SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors")


@dataclass(frozen=True)
class Predictor:
    """A model that is ready to run.

    Attributes:
        label: what tables call it.
        engine: the runtime.
        infer: images (B, 3, H, W), RGB in 0..1, to detections (columns of ``layout``) in network pixels; any B. A graph
            with work of the service inside takes and gives what ``preprocess`` and ``nms`` say.
        names: class names, where the file holds them.
        imgsz: height and width, where the file fixes them.
        batch: the batch size, where the file fixes it; ``infer`` pads to it.
        variant: what it was built as.
        precision: what its layers really run in: ``float32``, ``int8``, ``int8 in 83 of 154 layers`` …
        size_bytes: size on disk of what is deployed.
        description: per layer, where the runtime tells.
        preprocess: what the graph does to images itself.
        nms: the suppression inside the graph, which then gives boxes (B, K, 6); None: it gives detections.
        layout: what the columns of the detections mean.
        spec: the architecture, such as ``yolov6s_v2``, where it is known.
        on_device: shape of the input -> one run for a stream of the GPU, and that stream's handle; None: it runs on
            the CPU.
    """

    label: str
    engine: Runtime
    infer: Callable[[Images], Images]
    names: tuple[str, ...] | None
    imgsz: tuple[int, int] | None
    batch: int | None
    variant: Variant
    precision: str
    size_bytes: int
    description: EngineDescription | None = None
    preprocess: PreprocessConfig = PreprocessConfig()
    nms: NmsConfig | None = None
    layout: OutputLayout = OutputLayout()
    spec: str | None = None
    on_device: Callable[[tuple[int, ...]], tuple[Callable[[], object], int]] | None = None

    @property
    def plain(self) -> bool:
        """Whether pre- and postprocessing are left to the caller, as for a checkpoint."""
        return self.preprocess == PreprocessConfig() and self.nms is None


def open_model(
    path: Path,
    *,
    engine: Runtime | None = None,
    imgsz: tuple[int, int] | None = None,
    device: str = "cpu",
    threads: int | None = None,
    half: bool = False,
) -> Predictor:
    """Open a checkpoint (torch, or the named engine after an export), an ONNX file or a built engine.

    Raises:
        RepqError: the file is missing or of no known kind, or the runtime contradicts it.
    """
    if not path.exists():
        raise RepqError(f"there is no model at {path}", fix="give a checkpoint, an ONNX file or an engine's folder")
    if path.is_dir():
        return _open_engine(path, engine, threads)
    if path.suffix == ".onnx":
        return _open_onnx(path, engine or "onnxruntime", threads)
    if path.suffix in CHECKPOINT_SUFFIXES:
        if engine in (None, "torch"):
            return _open_checkpoint(path, device, threads, half)
        return _open_exported(path, engine, imgsz, threads)  # type: ignore[arg-type]
    raise RepqError(
        f"{path} is no model that repq knows",
        found=f"the suffix {path.suffix or '(none)'}",
        fix=f"give one of {', '.join(CHECKPOINT_SUFFIXES)}, .onnx, or the folder of a built engine",
    )


def _open_engine(path: Path, engine: Runtime | None, threads: int | None) -> Predictor:
    from repq.engine import load

    built = load(path, threads=threads)
    if engine not in (None, built.name):
        raise EngineError(f"{path} is an engine for {built.name}, not for {engine}", fix="leave --engine away")
    return from_engine(path.name, built)


def _open_onnx(path: Path, engine: Runtime, threads: int | None) -> Predictor:
    from repq.engine import build

    if engine == "torch":
        raise EngineError(f"torch does not run the ONNX file {path}", fix="use --engine onnxruntime or openvino")
    return from_engine(path.name, build(engine, path, BuildConfig(threads=threads, tensorrt=_ANY_BATCH)))


def _open_exported(path: Path, engine: EngineName, imgsz: tuple[int, int] | None, threads: int | None) -> Predictor:
    from repq.export import save_onnx

    if imgsz is None:
        raise RepqError(f"running {path.name} in {engine} needs an input size", fix="give --imgsz")
    with tempfile.TemporaryDirectory() as folder:
        onnx = Path(folder) / f"{path.stem}.onnx"
        save_onnx(onnx, to_onnx(open_checkpoint(path), imgsz, ExportConfig(batch=None)))
        return _open_onnx(onnx, engine, threads)


def _open_checkpoint(path: Path, device: str, threads: int | None, half: bool) -> Predictor:
    opened = open_checkpoint(path)
    return from_torch(
        path.name,
        opened.model,
        device=device,
        threads=threads,
        names=opened.names,
        quantized=opened.quantized,
        size_bytes=path.stat().st_size,
        half=half,
    )


def from_torch(
    label: str,
    model: Detector,
    *,
    device: str = "cpu",
    threads: int | None = None,
    names: tuple[str, ...] | None = None,
    quantized: bool = False,
    size_bytes: int = 0,
    half: bool = False,
) -> Predictor:
    """Wrap a torch model. A fake-quantized model computes in float32: it simulates INT8, and says so.

    Args:
        half: compute in FP16, on a GPU.

    Raises:
        EngineError: torch cannot use the device, or is to compute in FP16 on a CPU, or what simulates INT8.
    """
    import torch

    model = model.to(resolve_device(device)).eval()
    if half:
        if quantized or not device.startswith("cuda"):
            found = "a quantized checkpoint" if quantized else f"the device {device!r}"
            raise EngineError(f"torch does not run {label} in FP16", found=found, fix="use a float one on a GPU")
        model = model.half()
    dtype = torch.float16 if half else torch.float32

    @torch.inference_mode()
    def infer(images: Images) -> Images:
        if threads:
            torch.set_num_threads(threads)
        batch = torch.from_numpy(images).to(device, dtype, non_blocking=True)
        result: Images = model(batch).float().cpu().numpy()
        return result

    variant: Variant = "int8" if quantized else "fp16" if half else "fp32"
    precision = "int8 simulated in float32" if quantized else "float16" if half else "float32"
    return Predictor(
        label=label,
        engine="torch",
        infer=infer,
        names=names,
        imgsz=None,
        batch=None,
        variant=variant,
        precision=precision,
        size_bytes=size_bytes,
        layout=model.spec.layout,
        spec=model.spec.name,
        on_device=partial(_torch_work, model, device, dtype) if device.startswith("cuda") else None,
    )


def _torch_work(
    model: Detector, device: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> tuple[Callable[[], object], int]:
    import torch

    images, stream = torch.zeros(shape, device=device, dtype=dtype), torch.cuda.Stream(device)
    return partial(model, images), stream.cuda_stream


def resolve_device(device: str) -> str:
    """Check that torch can use the device.

    Raises:
        EngineError: the device is unknown or not usable here.
    """
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise EngineError(f"torch cannot use the device {device!r}", found=first, fix="use --device cpu") from None
    return device


def from_engine(label: str, engine: Engine) -> Predictor:
    """Wrap a built engine."""
    from repq.graph import parse_metadata
    from repq.machine.cuda import gpu_or_none

    description, metadata = engine.describe(), parse_metadata(engine.manifest.metadata)
    height, width = metadata.imgsz if metadata else description.input_shape[2:]
    output = description.output_names[0]

    def infer(images: Images) -> Images:
        return engine.infer(images)[output]

    return Predictor(
        label=label,
        engine=engine.name,
        infer=_in_chunks(infer, engine.batch) if engine.batch else infer,
        names=metadata.names if metadata else None,
        imgsz=(height, width) if isinstance(height, int) and isinstance(width, int) else None,
        batch=engine.batch,
        variant="int8" if engine.manifest.int8_layers else _float_variant(metadata),
        precision=summarize_precision(description),
        size_bytes=description.size_bytes,
        description=description,
        preprocess=metadata.preprocess if metadata else PreprocessConfig(),
        nms=metadata.nms if metadata else None,
        layout=metadata.layout if metadata else OutputLayout(),
        spec=json.loads(metadata.spec).get("name") if metadata else None,
        on_device=getattr(engine, "on_device", None) if gpu_or_none() else None,
    )


def _float_variant(metadata: GraphMetadata | None) -> Variant:
    return "fp16" if metadata is not None and metadata.precision == "float16" else "fp32"


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
    counts = description.precision_counts()
    if len(counts) == 1:
        return next(iter(counts))
    total = sum(counts.values())
    return ", ".join(f"{precision} in {count} of {total} layers" for precision, count in counts.items())
