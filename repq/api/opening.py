"""Opening models: every kind of file becomes one kind of handle."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from repq.api.arguments import Size, arguments
from repq.api.model import Kind, Model
from repq.api.running import HERE, Options, Running, in_engine, in_torch
from repq.api.sizes import FALLBACK, as_metadata, from_metadata
from repq.errors import EngineError, GraphError, RepqError
from repq.files import scratch_folder
from repq.layers import LayerId
from repq.layout import OutputLayout, demand_finite
from repq.log import Log, quiet
from repq.machine.torch_settings import usual_torch
from repq.output_layouts import Outputs, class_names, form_of
from repq.progress import Progress, silent
from repq.recipe import BuildConfig, EngineName, ExportConfig, GraphConfig, TensorRtConfig, default_engines
from repq.recipe.deployment import RuntimeName
from repq.results import Expectation

if TYPE_CHECKING:
    from repq.engine import Engine, EngineManifest
    from repq.engine.base import TensorInfo
    from repq.engine.source import Source
    from repq.graph import GraphMetadata
    from repq.model import Detector
    from repq.quant import Weights

CHECKPOINT_SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors")
_ANY_BATCH = TensorRtConfig(batches=(1, 8, 32))
"""For ONNX files with a free batch axis that are run without having been built first."""


@usual_torch()
def load(
    path: str | Path,
    *,
    engine: RuntimeName | None = None,
    imgsz: Size | None = None,
    device: str = "cpu",
    threads: int | None = None,
    half: bool = False,
    graph: GraphConfig = GraphConfig(),
    progress: Progress = silent,
    log: Log = quiet,
) -> Model:
    """Open a model of any kind.

    Nothing in a checkpoint is run, and the code that it was made with is not needed.

    Args:
        path: a checkpoint (.pt, .pth, .ckpt, .safetensors; float or quantized), an ONNX file, or an engine's folder.
        engine: what runs an ONNX file (default: ONNX Runtime); a checkpoint is exported and built for it.
        imgsz: at which it works where a step is given no other; with ``engine``, of the export of a checkpoint.
        graph: what the file does not say of itself: how images become its input, what its outputs mean; of an engine,
            what the file does not say that it was built from.
        device: where torch runs a checkpoint: ``cpu``, ``cuda``, ``cuda:1`` …
        threads: CPU threads; None leaves the choice to the runtime.
        half: run a float checkpoint in FP16, on a GPU.
        progress: wraps what long steps go through; `repq.progress.on_terminal` draws bars.
        log: gets what the user should know beside the result, such as ``print``.

    Raises:
        RepqError: there is no such file, it is of no known kind, damaged, or the runtime or the size contradicts it.
    """
    if path == "":
        raise RepqError("a path is empty", fix="give a checkpoint, an ONNX file or an engine's folder")
    path, options = Path(path), Options(None, device, threads, half, progress, log)
    size = arguments(path.name, imgsz=imgsz).imgsz
    opened = _opened(path, engine, size, options, graph)
    return opened if size is None else replace(opened, usual=opened.size(size))


def _opened(
    path: Path, engine: RuntimeName | None, size: tuple[int, int] | None, options: Options, graph: GraphConfig
) -> Model:
    if not os.path.exists(path):  # noqa: PTH110 (Path's raises on a name too long)
        raise RepqError(f"there is no model at {path}", fix="give a checkpoint, an ONNX file or an engine's folder")
    if path.is_dir():
        from repq.engine import load as load_engine

        built = load_engine(path, threads=options.threads)
        if engine not in (None, built.name):
            raise EngineError(f"{path} is an engine for {built.name}, not for {engine}", fix="leave --engine away")
        return replace(of_engine(path.name, built, options, graph, size), path=path.absolute())
    is_graph = path.suffix == ".onnx"
    if is_graph and engine != "torch":
        return open_onnx(path, replace(options, engine=engine), graph, size)
    if not is_graph and path.suffix not in CHECKPOINT_SUFFIXES:
        raise RepqError(
            f"{path} is no model that repq knows",
            found=f"the suffix {path.suffix or '(none)'}",
            fix=f"give one of {', '.join(CHECKPOINT_SUFFIXES)}, .onnx, or the folder of a built engine",
        )
    from repq.quant import load_weights  # torch, which graphs and engines do without

    opened = of_weights(path.name, load_weights(path, size if is_graph else None, graph), options, path.absolute())
    if engine in (None, "torch"):
        return opened
    if size is None:
        raise RepqError(f"running {path.name} in {engine} needs an input size", fix="give --imgsz")
    return opened.build(engine, imgsz=size, batch=None)


def labels(paths: Sequence[Path]) -> list[str]:
    """What tables call models: the names of their files and folders, or their paths where several have one name."""
    names = Counter(path.name for path in paths)
    return [path.name if names[path.name] == 1 else str(path) for path in paths]


def of_weights(label: str, weights: Weights, options: Options = HERE, path: Path | None = None) -> Model:
    """A handle of weights."""
    from repq.model import layer_ids

    spec = weights.model.spec
    return Model(
        kind="checkpoint",
        label=label,
        names=weights.names,
        num_classes=spec.num_classes,
        imgsz=spec.only_size,
        layers=_deployed_layers(weights.model) if not weights.model.deploy else layer_ids(weights.model),
        quantized=weights.quantized,
        spec=spec.name,
        layout=spec.layout,
        preprocessing=spec.preprocessing,
        thresholds=spec.thresholds,
        start=partial(_start_weights, weights, label, 0 if path is None else path.stat().st_size),
        options=options,
        notes=weights.notes,
        weights=weights,
        path=path,
        usual=from_metadata(weights.metadata) or FALLBACK,
    )


@usual_torch()
def build_model(name: str, num_classes: int = 80, *, names: Sequence[str] | None = None, seed: int = 0) -> Model:
    """A detector with fresh weights, such as ``yolov6n``.

    Raises:
        RepqError: the name is unknown; the message names the closest ones. Or the names are not those of so many
            different classes.
    """
    from repq.machine.torch_random import seeded
    from repq.model import build
    from repq.quant import Weights

    asked = arguments(name, num_classes=num_classes, names=names, seed=seed)
    if asked.names is not None and len(set(asked.names)) != asked.num_classes:
        raise RepqError(
            f"a model of {asked.num_classes} classes needs as many different names", found=", ".join(asked.names),
            fix="name each class once",
        )  # fmt: skip
    with seeded(asked.seed):
        model = build(name, asked.num_classes).eval()
    return of_weights(model.spec.name, Weights(model, asked.names))


def save_weights(path: Path, weights: Weights, imgsz: tuple[int, int] | None = None) -> None:
    """Write weights as safetensors, or as an ONNX file for this size; whole or not at all.

    Args:
        imgsz: at which they work; later steps take it from the file.

    Raises:
        CheckpointError: the file cannot be written.
        QuantizationError: a layer has no scale.
    """
    from repq.model import save_checkpoint
    from repq.quant import save_quantized

    if path.suffix == ".onnx":
        from repq.api.exporting import write_onnx

        assert imgsz is not None, "a graph is of one size"
        write_onnx(weights, path, imgsz, ExportConfig())
        return
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
    from repq.model import layer_ids, outline

    return layer_ids(outline(model.spec, True))


def open_onnx(
    path: Path, options: Options, graph: GraphConfig = GraphConfig(), imgsz: tuple[int, int] | None = None
) -> Model:
    """A handle of an ONNX file; one that repq did not write runs once to show what its outputs mean.

    Args:
        imgsz: height and width, for a graph of any size.
    """
    from repq.engine.source import read_source
    from repq.onnx_file import unchanged

    source, path = read_source(path), path.absolute()
    config = BuildConfig(threads=options.threads, tensorrt=_ANY_BATCH)
    usual = _engines_for(source)[0]

    def started(options: Options, layout: OutputLayout | None = None) -> Running:
        from repq.engine import build

        file = unchanged(path, source.sha256)
        return in_engine(build(options.engine or usual, file, config), options, layout)

    size = imgsz or from_metadata(source.metadata)
    opened = _of_graph(
        "onnx", path.name, source, started, options, path=path, sha256=source.sha256, graph=graph,
        usual=size or FALLBACK,
    )  # fmt: skip
    return _with_form(opened, source, started, partial(_outputs_of, source, size))


def _with_form(
    opened: Model, source: Source | EngineManifest, started: Callable[..., Running], shown: Callable[[], Outputs]
) -> Model:
    """The handle of a graph with what goes in and comes out, as far as the graph does not say it.

    Args:
        started: starts it; takes the layout of its outputs as well.
        shown: what it gives for an image, which one that repq did not write is asked for.
    """
    own, graph = "repq.spec" in source.metadata, opened.graph
    if own and graph == GraphConfig():
        return opened
    told = own and (graph.layout is None or not opened.plain)
    try:
        form = form_of(Outputs({}, opened.size(None)) if told else shown(), source.metadata, graph)
    except RepqError as error:
        if own:
            raise
        return replace(opened, unclear=error)
    return replace(
        opened, layout=form.layout, preprocessing=form.preprocessing, num_classes=form.classes, notes=form.notes,
        names=class_names(source.metadata), start=partial(started, layout=form.layout),
    )  # fmt: skip


def engines_of(onnx: Path) -> tuple[EngineName, ...]:
    """The engines that an ONNX file is compared in if nobody says: its form's, or those on the CPU."""
    from repq.engine.source import read_source

    return _engines_for(read_source(onnx))


def _engines_for(source: Source) -> tuple[EngineName, ...]:
    from repq.graph.forms import form_of

    form = form_of(source.metadata)
    return default_engines() if form is None else (form.runs_in,)


def _outputs_of(source: Source, imgsz: tuple[int, int] | None) -> Outputs:
    """What a graph gives for an image of noise.

    Raises:
        EngineError: it cannot be run.
        GraphError: it takes no images, or such of any size, and none is given.
    """
    import onnxruntime

    from repq.onnx_file import refusing

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    noise = _noise(source.name, source.input, imgsz)
    what, fix = f"{source.name} cannot be run in onnxruntime", "export the detector alone, with ONNX's own operators"
    with refusing(what, fix, EngineError):
        content = source.model.SerializeToString()
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        arrays = session.run(None, {source.input.name: noise.astype(source.input.dtype)})
        return _shown(f"{source.name} in onnxruntime", source, noise, arrays)


def _outputs_in(engine: Engine, label: str, imgsz: tuple[int, int] | None) -> Outputs:
    """What an engine gives for an image of noise. Errors: as `_outputs_of`."""
    manifest = engine.manifest
    noise = _noise(label, manifest.input, imgsz)
    found = engine.infer(noise)
    return _shown(f"{label} in {engine.name}", manifest, noise, [found[output.name] for output in manifest.outputs])


def _noise(label: str, wanted: TensorInfo, imgsz: tuple[int, int] | None) -> NDArray[np.float32]:
    from repq.engine.base import FLOATS

    listed = f"{wanted.name} {wanted.shape}"
    if wanted.dtype not in FLOATS:
        raise GraphError(f"{label} takes no float images", found=f"{listed} of {wanted.dtype}",
                         fix="export it for float32 images")  # fmt: skip
    batch, channels, *sides = (side if isinstance(side, int) else None for side in wanted.shape)
    if channels not in (3, None):
        raise GraphError(f"{label} takes no images (batch, 3, height, width)", found=listed,
                         fix="export it for channels first")  # fmt: skip
    height, width = (own or given for own, given in zip(sides, imgsz or sides, strict=True))
    if height is None or width is None:
        raise GraphError(f"{label} takes images of any size", found=listed, fix="give --imgsz")
    return np.random.default_rng(0).random((batch or 1, 3, height, width)).astype(np.float32)


def _shown(
    title: str, source: Source | EngineManifest, noise: NDArray[np.float32], arrays: Sequence[NDArray[Any]]
) -> Outputs:
    """What a graph gave, of the first image."""
    given = zip(source.outputs, arrays, strict=True)
    first = {output.name: _of_one(array, len(noise), output.dtype) for output, array in given}
    demand_finite(first, title)
    names = class_names(source.metadata)
    return Outputs(first, (noise.shape[2], noise.shape[3]), None if names is None else len(names))


def _of_one(array: NDArray[Any], images: int, dtype: str) -> NDArray[Any]:
    """What is of the first of so many images, in float32 where it is no whole number."""
    first = array[:1] if images > 1 else array
    return first.astype(dtype if dtype.startswith(("int", "uint")) else np.float32)


def of_engine(
    label: str, engine: Engine, options: Options, graph: GraphConfig = GraphConfig(),
    imgsz: tuple[int, int] | None = None,
) -> Model:  # fmt: skip
    """A handle of an engine; one of a graph that repq did not write runs once to show what its outputs mean.

    Args:
        graph: what the ONNX file that it was built from does not say of itself.
        imgsz: height and width, for an engine of any size.
    """

    def started(wanted: Options, layout: OutputLayout | None = None) -> Running:
        from repq.engine import load

        if wanted.threads in (None, options.threads):
            return in_engine(engine, wanted, layout)
        with scratch_folder() as folder:
            engine.save(folder / "engine")
            return in_engine(load(folder / "engine", threads=wanted.threads), wanted, layout)

    manifest = engine.manifest
    size = imgsz or from_metadata(manifest.metadata)
    opened = _of_graph("engine", label, manifest, started, options, engine=engine, graph=graph, usual=size or FALLBACK)
    return _with_form(opened, manifest, started, partial(_outputs_in, engine, label, size))


def _of_graph(
    kind: Kind, label: str, source: Source | EngineManifest, start: Callable[[Options], Running], options: Options,
    **further: Any,
) -> Model:  # fmt: skip
    """A handle of what a graph, or the engine built from one, says about itself."""
    from repq.graph import parse_metadata

    metadata = parse_metadata(source.metadata)
    if len(source.input.shape) != 4:
        raise EngineError(f"{label} takes no images (batch, 3, height, width)",
                          found=f"{source.input.name} {source.input.shape}", fix="export it for images")  # fmt: skip
    batch = source.input.shape[0]
    last = source.outputs[0].shape[-1] if source.outputs[0].shape else None
    layout = OutputLayout() if metadata is None else metadata.layout
    known = ("preprocessing", "thresholds", "preprocess", "nms")
    inside = {} if metadata is None else {name: getattr(metadata, name) for name in known}
    return Model(
        kind=kind,
        label=label,
        names=metadata.names if metadata else None,
        num_classes=metadata.num_classes if metadata else last - layout.width(0) if isinstance(last, int) else None,
        imgsz=_fixed_size(source, metadata),
        layers=source.layers,
        quantized=bool(source.int8_layers),
        spec=json.loads(metadata.spec).get("name") if metadata else None,
        start=start,
        options=options,
        batch=batch if isinstance(batch, int) else None,
        layout=layout,
        **inside,
        **further,
    )


def _fixed_size(source: Source | EngineManifest, metadata: GraphMetadata | None) -> tuple[int, int] | None:
    height, width = source.input.shape[2:4] if metadata is None else metadata.imgsz
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def said_size(path: Path) -> tuple[int, int] | None:
    """The size that an ONNX file, or an engine's folder, is fixed to or says; nothing is run. None: it says none.

    Raises:
        RepqError: it cannot be read.
    """
    from repq.engine.source import read_source
    from repq.engine.storage import read_engine
    from repq.graph import parse_metadata

    source = read_engine(path) if path.is_dir() else read_source(path)
    if len(source.input.shape) != 4:
        return None
    return _fixed_size(source, parse_metadata(source.metadata)) or from_metadata(source.metadata)


def build_graph(engine: EngineName, onnx: Path, config: BuildConfig) -> Engine:
    """Build an engine; where ``lint`` tells what a runtime will run, the engine remembers what it said."""
    from repq.engine import build, runtime

    return build(engine, onnx, config, expected=_expectation(onnx) if runtime(engine).lints else None)


def _expectation(onnx: Path) -> Expectation | None:
    """What lint makes of a graph; None where it cannot read it (the build then says why)."""
    from repq.graph import lint, load_onnx

    try:
        report = lint(load_onnx(onnx, beside=True))
    except GraphError:
        return None
    layers = {row.layer: str(row.precision) for row in report.layers}
    return Expectation(layers=layers, extra_kernels=report.counts.extra_kernels)
