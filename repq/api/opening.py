"""Opening models: every kind of file becomes one kind of handle."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repq.api.model import Kind, Model, Size
from repq.api.running import HERE, Options, Running, in_engine, in_torch
from repq.api.sizes import FALLBACK, as_metadata, from_metadata
from repq.errors import EngineError, GraphError, RepqError
from repq.layers import LayerId
from repq.layout import OutputLayout
from repq.log import Log, quiet
from repq.progress import Progress, silent
from repq.recipe import BuildConfig, EngineName, TensorRtConfig, default_engines
from repq.recipe.deployment import RuntimeName
from repq.results import Expectation

if TYPE_CHECKING:
    from repq.engine import Engine, EngineManifest
    from repq.engine.source import Source
    from repq.model import Detector
    from repq.quant import Weights

CHECKPOINT_SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors")
_ANY_BATCH = TensorRtConfig(batches=(1, 8, 32))
"""For ONNX files with a free batch axis that are run without having been built first."""


def load(
    path: str | Path,
    *,
    engine: RuntimeName | None = None,
    imgsz: Size | None = None,
    device: str = "cpu",
    threads: int | None = None,
    half: bool = False,
    progress: Progress = silent,
    log: Log = quiet,
) -> Model:
    """Open a model of any kind.

    Nothing in a checkpoint is run, and the code that it was made with is not needed.

    Args:
        path: a checkpoint (.pt, .pth, .ckpt, .safetensors; float or quantized), an ONNX file, or an engine's folder.
        engine: what runs an ONNX file (default: ONNX Runtime); a checkpoint is exported and built for it.
        imgsz: with ``engine``, of that export.
        device: where torch runs a checkpoint: ``cpu``, ``cuda``, ``cuda:1`` …
        threads: CPU threads; None leaves the choice to the runtime.
        half: run a float checkpoint in FP16, on a GPU.
        progress: wraps what long steps go through; `repq.progress.on_terminal` draws bars.
        log: gets what the user should know beside the result, such as ``print``.

    Raises:
        RepqError: there is no such file, it is of no known kind, damaged, or the runtime contradicts it.
    """
    path, options = Path(path), Options(None, device, threads, half, progress, log)
    if not path.exists():
        raise RepqError(f"there is no model at {path}", fix="give a checkpoint, an ONNX file or an engine's folder")
    if path.is_dir():
        from repq.engine import load as load_engine

        built = load_engine(path, threads=threads)
        if engine not in (None, built.name):
            raise EngineError(f"{path} is an engine for {built.name}, not for {engine}", fix="leave --engine away")
        return replace(of_engine(path.name, built, options), path=path)
    if path.suffix == ".onnx":
        if engine == "torch":
            raise EngineError(
                f"torch does not run the ONNX file {path}", fix=f"use --engine {' or '.join(default_engines())}"
            )
        return open_onnx(path, replace(options, engine=engine))
    if path.suffix not in CHECKPOINT_SUFFIXES:
        raise RepqError(
            f"{path} is no model that repq knows",
            found=f"the suffix {path.suffix or '(none)'}",
            fix=f"give one of {', '.join(CHECKPOINT_SUFFIXES)}, .onnx, or the folder of a built engine",
        )
    from repq.quant import load_weights

    opened = of_weights(path.name, load_weights(path), options, path)
    if engine in (None, "torch"):
        return opened
    if imgsz is None:
        raise RepqError(f"running {path.name} in {engine} needs an input size", fix="give --imgsz")
    return opened.build(engine, imgsz=imgsz, batch=None)


def of_weights(label: str, weights: Weights, options: Options = HERE, path: Path | None = None) -> Model:
    """A handle of weights."""
    from repq.model import layer_ids

    spec = weights.model.spec
    return Model(
        kind="checkpoint",
        label=label,
        names=weights.names,
        num_classes=spec.num_classes,
        imgsz=None,
        layers=_deployed_layers(weights.model) if not weights.model.deploy else layer_ids(weights.model),
        quantized=weights.quantized,
        spec=spec.name,
        layout=spec.layout,
        preprocessing=spec.preprocessing,
        start=partial(_start_weights, weights, label, 0 if path is None else path.stat().st_size),
        options=options,
        notes=weights.notes,
        weights=weights,
        path=path,
        usual=from_metadata(weights.metadata) or FALLBACK,
    )


def build_model(name: str, num_classes: int = 80, *, names: Sequence[str] | None = None, seed: int = 0) -> Model:
    """A detector with fresh weights, such as ``yolov6n``.

    Raises:
        RepqError: the name is unknown; the message names the closest ones.
    """
    import torch

    from repq.model import build
    from repq.quant import Weights

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(name, num_classes).eval()
    return of_weights(model.spec.name, Weights(model, None if names is None else tuple(names)))


def save_weights(path: Path, weights: Weights, imgsz: tuple[int, int] | None = None) -> None:
    """Write weights as safetensors, whole or not at all.

    Args:
        imgsz: at which they work; later steps take it from the file.

    Raises:
        CheckpointError: the file cannot be written.
        QuantizationError: a layer has no scale.
    """
    from repq.model import save_checkpoint
    from repq.quant import save_quantized

    model, names, metadata = weights.model, weights.names, dict(weights.metadata)
    metadata |= {} if imgsz is None else as_metadata(imgsz)
    if weights.config is None:
        save_checkpoint(path, model, names=names, metadata=metadata)
    else:
        save_quantized(
            path, model, weights.config, names=names, metadata=metadata, maxima=weights.maxima, groups=weights.groups
        )


def _start_weights(weights: Weights, label: str, size_bytes: int, options: Options) -> Running:
    return in_torch(weights, options, label, size_bytes)


def _deployed_layers(model: Detector) -> tuple[LayerId, ...]:
    import torch

    from repq.model import build, layer_ids

    with torch.device("meta"):
        return layer_ids(build(model.spec, deploy=True))


def open_onnx(path: Path, options: Options) -> Model:
    from repq.engine.source import read_source

    def start(options: Options) -> Running:
        from repq.engine import build

        config = BuildConfig(threads=options.threads, tensorrt=_ANY_BATCH)
        return in_engine(build(options.engine or default_engines()[0], path, config))

    return _of_graph("onnx", path.name, read_source(path), start, options, path=path)


def of_engine(label: str, engine: Engine, options: Options) -> Model:
    def start(wanted: Options) -> Running:
        from repq.engine import load

        if wanted.threads in (None, options.threads):
            return in_engine(engine)
        with tempfile.TemporaryDirectory(prefix="repq-engine-") as folder:
            engine.save(Path(folder) / "engine")
            return in_engine(load(Path(folder) / "engine", threads=wanted.threads))

    return _of_graph("engine", label, engine.manifest, start, options, engine=engine)


def _of_graph(
    kind: Kind, label: str, graph: Source | EngineManifest, start: Callable[[Options], Running], options: Options,
    **further: Any,
) -> Model:  # fmt: skip
    """A handle of what a graph, or the engine built from one, says about itself."""
    from repq.graph import parse_metadata

    metadata = parse_metadata(graph.metadata)
    batch, height, width = graph.input.shape[0], *(metadata.imgsz if metadata else graph.input.shape[2:4])
    last = graph.outputs[0].shape[-1] if graph.outputs[0].shape else None
    layout = OutputLayout() if metadata is None else metadata.layout
    known = ("preprocessing", "preprocess", "nms")
    inside = {} if metadata is None else {name: getattr(metadata, name) for name in known}
    return Model(
        kind=kind,
        label=label,
        names=metadata.names if metadata else None,
        num_classes=metadata.num_classes if metadata else last - layout.width(0) if isinstance(last, int) else None,
        imgsz=(height, width) if isinstance(height, int) and isinstance(width, int) else None,
        layers=graph.layers,
        quantized=bool(graph.int8_layers),
        spec=json.loads(metadata.spec).get("name") if metadata else None,
        start=start,
        options=options,
        batch=batch if isinstance(batch, int) else None,
        layout=layout,
        **inside,
        **further,
    )


def build_graph(engine: EngineName, onnx: Path, config: BuildConfig) -> Engine:
    """Build an engine; where ``lint`` tells what a runtime will run, the engine remembers what it said."""
    from repq.engine import build, runtime

    return build(engine, onnx, config, expected=_expectation(onnx) if runtime(engine).lints else None)


def _expectation(onnx: Path) -> Expectation | None:
    """What lint makes of a graph; None where it cannot read it (the build then says why)."""
    from repq.graph import lint, load_onnx

    try:
        report = lint(load_onnx(onnx))
    except GraphError:
        return None
    layers = {row.layer: str(row.precision) for row in report.layers}
    return Expectation(layers=layers, extra_kernels=report.counts.extra_kernels)
