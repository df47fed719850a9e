"""ONNX Runtime, on the CPU unless another provider is asked for.

On the CPU the engine holds the graph that ``repq.graph.lowering_onnxruntime`` wrote for the CPU at hand, and describes
the one that ONNX Runtime made of it. The providers of onnxruntime-gpu get the Q/DQ graph as it is; what they do not run
shows up in the description.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from repq.engine.availability import GPU_FIX, installed, int8_note, no_gpu, row
from repq.engine.base import (
    Engine,
    EngineManifest,
    Runtime,
    as_input,
    cannot_run,
    check_images,
    library_version,
    names_before,
)
from repq.errors import EngineError, reason
from repq.files import scratch_folder
from repq.layers import CONVOLUTIONS, PRODUCTS, LayerId
from repq.log import without_warnings
from repq.machine.cpu import cpu_name, has_dot_products, is_x86
from repq.machine.cuda import gpu_or_none
from repq.onnx_file import refusing
from repq.recipe import Provider
from repq.results import UNKNOWN, Availability, EngineDescription, LayerPrecision, NodeTime

if TYPE_CHECKING:
    import onnx

    from repq.engine.source import Source

INSTALL = "pip install onnxruntime"

_MODEL = "model.onnx"
NAMES: dict[Provider, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
"""Setting -> ONNX Runtime's own name."""

_INTEGER_CONVOLUTIONS = frozenset({"QLinearConv", "ConvInteger"})
_FLOAT_CONVOLUTIONS = CONVOLUTIONS | {"FusedConv", "NhwcFusedConv"}
_INTEGER_KINDS = _INTEGER_CONVOLUTIONS | {"MatMulIntegerToFloat", "DynamicQuantizeMatMul"}
_FLOAT_KINDS = _FLOAT_CONVOLUTIONS | PRODUCTS | {"FusedGemm", "FusedMatMul"}
_ACTIVATIONS = frozenset({"Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "Tanh", "Add", "Mul"})
_CONVERSIONS = {
    "QuantizeLinear": "quantize",
    "DequantizeLinear": "dequantize",
    "ReorderInput": "reorder",
    "ReorderOutput": "reorder",
    "Cast": "convert",
}
_BEFORE_LAYERS = frozenset({"QuantizeLinear", "DequantizeLinear", "Transpose", "ReorderInput", "ReorderOutput"})
_FLOAT_TYPES = {1: "float32", 10: "float16", 16: "bfloat16"}  # onnx.TensorProto.FLOAT, FLOAT16, BFLOAT16
# It quantizes the weights of float layers between Q and DQ, with one scale for the whole tensor.
_CHANGES_WEIGHTS = ("WeightBiasQuantization",)
# What ONNX Runtime adds to a node's name when it rewrites or quantizes it, and the lowering to a repeated one.
_ADDED = re.compile(r"(_nchwc|_token_\d+|/\d+|/MatMulAddFusion|_quant)$")
_ADDED_BEFORE = re.compile(r"^(fused |InsertedPrecisionFreeCast_)")


class OnnxRuntime(Runtime):
    name, title, by_default, install = "onnxruntime", "ONNX Runtime", True, "comes with repq"

    def version(self) -> str:
        return library_version("onnxruntime", "ONNX Runtime", INSTALL)

    def build(self, source: Source, manifest: EngineManifest) -> OnnxRuntimeEngine:
        """Lower the model to integer operators and open a session."""
        from repq.graph.lowering_onnxruntime import lower

        provider = manifest.settings.provider
        if manifest.settings.dynamic:
            if source.int8_layers:
                raise EngineError(f"{source.name} has scales already", fix="give --dynamic the float ONNX file")
            with refusing(
                f"{source.name} cannot be quantized dynamically",
                "give a float32 ONNX file of finite weights",
                EngineError,
            ):
                model = quantized_dynamically(source.model)
            return OnnxRuntimeEngine(manifest.model_copy(update={"int8_layers": manifest.layers}), model)
        if manifest.settings.tune:
            from repq.engine.onnxruntime_tuning import tuned

            return tuned(manifest, source.model)
        if provider == "cpu":
            fast = has_dot_products()
            lowered = lower(source.model, integer_sums=None if fast else (), signed_sums=fast)
            return OnnxRuntimeEngine(manifest, lowered)
        return OnnxRuntimeEngine(manifest.model_copy(update={"device": NAMES[provider]}), source.model)

    def load(self, folder: Path, manifest: EngineManifest) -> OnnxRuntimeEngine:
        import onnx

        with refusing(f"{folder / _MODEL} is no ONNX model", "build it again", EngineError):
            model = onnx.load(str(folder / _MODEL))
        return OnnxRuntimeEngine(manifest.model_copy(update={"version": self.version()}), model)

    def availability(self) -> list[Availability]:
        if not installed("onnxruntime"):
            return [row("onnxruntime", "cpu", False, "not installed", INSTALL)]
        import onnxruntime

        providers = onnxruntime.get_available_providers()
        usable = "CPUExecutionProvider" in providers
        detail = f"providers: {', '.join(providers)}; {int8_note()}"
        rows = [row("onnxruntime", "cpu", usable, detail, None if usable else INSTALL, self.version())]
        return rows + [_provider(provider, providers) for provider in NAMES if provider != "cpu"]


def _provider(provider: Provider, present: list[str]) -> Availability:
    """ONNX Runtime on a GPU; whether the provider's own libraries load shows only when a session is opened."""
    import onnxruntime

    device, version = f"cuda ({provider})", str(onnxruntime.__version__)  # of whichever package it is in
    if NAMES[provider] not in present:
        return row(
            "onnxruntime", device, False, f"no {NAMES[provider]}", "pip install onnxruntime-gpu in its place", version
        )
    gpu = gpu_or_none()
    if gpu is None:
        return row("onnxruntime", device, False, no_gpu(), GPU_FIX, version)
    return row("onnxruntime", device, True, f"{NAMES[provider]} on {gpu}", version=version)


class OnnxRuntimeEngine(Engine):
    """One session."""

    def __init__(self, manifest: EngineManifest, model: onnx.ModelProto) -> None:
        super().__init__(manifest)
        _demand_exact_sums(manifest, model)
        self._model = model
        self._data = model.SerializeToString()
        self._provider = manifest.settings.provider
        self._session = open_session(self._data, manifest.threads, self._provider)
        self._outputs = [output.name for output in manifest.outputs]

    def infer(self, images: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        check_images(images, self.manifest.input)
        feed = {self.manifest.input.name: as_input(images, self.manifest.input)}
        try:
            results = self._session.run(self._outputs, feed)
        except Exception as error:  # its exceptions share no public base class
            raise cannot_run(self.manifest, images, reason(error)) from None
        return {name: np.asarray(value, np.float32) for name, value in zip(self._outputs, results, strict=True)}

    def write(self, folder: Path) -> None:
        (folder / _MODEL).write_bytes(self._data)

    def describe(self) -> EngineDescription:
        with scratch_folder() as scratch:
            layers, extra, note = self._executed(scratch / _MODEL)
        if self.manifest.settings.dynamic:
            note = "scales are taken anew in every run: it is slow, and depthwise layers may collapse; measure its AP"
        return self.described(layers=layers, extra_nodes=extra, note=note, size_bytes=len(self._data))

    def _executed(self, optimized: Path) -> tuple[tuple[LayerPrecision, ...], dict[str, int], str | None]:
        """Layers and conversions of the optimized graph, and for a GPU provider what its nodes really ran on."""
        if self._provider == "tensorrt":  # its nodes are engines of their own, which ONNX Runtime cannot write down
            unknown = tuple(LayerPrecision(layer=layer, precision=UNKNOWN) for layer in self.manifest.layers)
            return unknown, {}, f"{self._placement()}; what TensorRT runs inside is not told"
        open_session(self._data, self.manifest.threads, self._provider, optimized=optimized)
        graph = _graph_of(optimized)
        layers = executed_layers(graph, self.manifest.layers, result_names(self._model.graph, self.manifest.layers))
        return layers, conversions(graph.node), None if self._provider == "cpu" else self._placement()

    def profile(self, images: NDArray[Any], runs: int) -> tuple[NodeTime, ...]:
        """By ONNX Runtime's own profiling, of a second session: it costs time as well."""
        check_images(images, self.manifest.input)
        with scratch_folder() as scratch:
            optimized = scratch / _MODEL
            session = open_session(
                self._data, self.manifest.threads, self._provider, optimized=optimized, profile_in=scratch
            )
            graph = _graph_of(optimized)
            feed = {self.manifest.input.name: as_input(images, self.manifest.input)}
            for _ in range(runs + 1):
                session.run(None, feed)
            events = _events(session)
        owner = owners(graph, self.manifest.layers, result_names(self._model.graph, self.manifest.layers))
        times: dict[tuple[str, str], list[float]] = {}
        for event in events:
            if event["name"].endswith("_kernel_time"):
                key = event["name"].removesuffix("_kernel_time"), event["args"].get("op_name", "")
                times.setdefault(key, []).append(event["dur"] / 1e3)
        return tuple(
            NodeTime(
                name=name, kind=kind, layer=owner.get(name, (None, ""))[0], precision=owner.get(name, (None, ""))[1],
                ms=sum(found[len(found) // (runs + 1) :]) / runs,
            )
            for (name, kind), found in times.items()
        )  # fmt: skip

    def _placement(self) -> str:
        images = np.zeros(self.manifest.input.least_shape, self.manifest.input.dtype)
        with scratch_folder() as scratch:
            session = open_session(self._data, self.manifest.threads, self._provider, profile_in=scratch)
            counts = nodes_by_provider(session, {self.manifest.input.name: images})
        return ", ".join(f"{count} nodes ran on {name}" for name, count in counts.items())


def _demand_exact_sums(manifest: EngineManifest, model: onnx.ModelProto) -> None:
    from repq.graph.lowering_onnxruntime import saturates_without_dot_products

    if is_x86() and not has_dot_products() and saturates_without_dot_products(model):
        raise EngineError(
            f"{manifest.source} holds sums that are exact on CPUs with INT8 dot products only (VNNI, AMX)",
            found=f"{cpu_name()}, which has none; it would compute them wrongly",
            fix="build the engine on this machine, from a file that is not written --for onnxruntime-vnni",
        )


def executed_layers(
    graph: onnx.GraphProto, layers: Iterable[LayerId], results: Mapping[str, LayerId]
) -> tuple[LayerPrecision, ...]:
    """Look up every layer among the nodes of the optimized graph; one that is not found is ``unknown``.

    A layer that runs twice shows the precision of both.
    """
    wanted = tuple(layers)
    found: dict[LayerId, list[tuple[str, str]]] = {layer: [] for layer in wanted}
    for node, layer, precision in layer_nodes(graph, wanted, results):
        found[layer].append((precision, f"{node.domain}.{node.op_type}" if node.domain else node.op_type))
    return tuple(_executed_row(layer, found[layer]) for layer in wanted)


def owners(
    graph: onnx.GraphProto, layers: Iterable[LayerId], results: Mapping[str, LayerId]
) -> dict[str, tuple[LayerId, str]]:
    """Layer and precision by the name of a node: what computes a layer, and the conversions of its input and sums."""
    from repq.graph.lowering_onnxruntime import OF_SUMS

    found = {node.name: (layer, precision) for node, layer, precision in layer_nodes(graph, layers, results)}
    sums = ((node.name, node.name.partition(OF_SUMS)[0]) for node in graph.node if OF_SUMS in node.name)
    found |= {name: found[summing] for name, summing in sums if summing in found}
    readers: dict[str, onnx.NodeProto] = {}
    for node in graph.node:
        for tensor in node.input:
            readers.setdefault(tensor, node)
    for node in graph.node:
        reader: onnx.NodeProto | None = node
        while reader is not None and (reader.op_type in _BEFORE_LAYERS or reader.op_type == "Reshape"):
            reader = readers.get(reader.output[0])
        if node.op_type in _BEFORE_LAYERS and reader is not None and reader.name in found:
            found[node.name] = found[reader.name]
    return found


def quantized_dynamically(model: onnx.ModelProto) -> onnx.ModelProto:
    """A float model after ``onnxruntime.quantization.quantize_dynamic``.

    Weights have one scale, those of activations are computed in every run; its kernels take unsigned weights alone, and
    it fails on weights that are no initializers.

    Raises:
        ValueError: there are FP16 weights, which no operator takes that it writes.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from repq.graph.surgeon import export_graph, import_graph

    model = export_graph(import_graph(model))
    if any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer):
        raise ValueError("weights in FP16")
    with scratch_folder() as scratch, without_warnings():
        path = scratch / _MODEL
        quantize_dynamic(model, path, weight_type=QuantType.QUInt8)
        return onnx.load(str(path))


def layer_nodes(
    graph: onnx.GraphProto, layers: Iterable[LayerId], results: Mapping[str, LayerId]
) -> Iterator[tuple[onnx.NodeProto, LayerId, str]]:
    """The nodes of an optimized graph that compute a layer, with the layer and the precision.

    A node is known by its name, by the name of its weight, or by the tensor that it computes (``results``): ONNX
    Runtime names a blocked convolution after its output.
    """
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}
    wanted = frozenset(layers)
    for node in graph.node:
        if node.op_type not in _INTEGER_KINDS | _FLOAT_KINDS:
            continue
        names = _names(node)
        weight = _constant_behind(node.input[_weight_input(node)], producers)
        by_weight = weight.partition(".weight")[0] if ".weight" in weight else ""
        candidates = (*names, by_weight, *map(results.get, names))
        layer = next((c for c in candidates if c in wanted), None)
        if layer is not None:
            yield node, LayerId(layer), _precision(node, weight, initializers, producers)


def _names(node: onnx.NodeProto) -> tuple[str, ...]:
    return *names_before(node.name, _ADDED), *names_before(_ADDED_BEFORE.sub("", node.name), _ADDED)


def result_names(graph: onnx.GraphProto, layers: Iterable[LayerId]) -> dict[str, LayerId]:
    """Map every convolution's output, also that after operators that fuse into it, to the convolution's layer."""
    wanted = frozenset(layers)
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for tensor in node.input:
            readers.setdefault(tensor, []).append(node)
    names: dict[str, LayerId] = {}
    for node in graph.node:
        layer = next((LayerId(name) for name in _names(node) if name in wanted), None)
        if layer is not None and node.op_type in _FLOAT_CONVOLUTIONS | _INTEGER_CONVOLUTIONS:
            tensor = node.output[0]
            names[tensor] = layer
            while len(readers.get(tensor, [])) == 1 and readers[tensor][0].op_type in _ACTIVATIONS:
                tensor = readers[tensor][0].output[0]
                names.setdefault(tensor, layer)
    return names


def conversions(nodes: Sequence[onnx.NodeProto]) -> dict[str, int]:
    """Count the nodes of the optimized graph that only change type or layout."""
    counts = Counter(_CONVERSIONS[node.op_type] for node in nodes if node.op_type in _CONVERSIONS)
    return dict(sorted(counts.items()))


def open_session(
    data: bytes,
    threads: int | None,
    provider: Provider,
    *,
    optimized: Path | None = None,
    profile_in: Path | None = None,
) -> Any:
    """A session as the engine runs it: every optimization, and exact integer sums on every CPU.

    Args:
        optimized: where to write the graph that it runs.
        profile_in: folder of the notes that profiling takes; None: none are taken.

    Raises:
        EngineError: ONNX Runtime cannot run the model, or lacks the provider.
    """
    import onnxruntime

    demand_provider(provider)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns that an optimized model fits this machine only; that is wanted here
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.inter_op_num_threads = 1
    if threads is not None:
        options.intra_op_num_threads = threads
    if not has_dot_products():
        # Without such instructions the fast x86 kernel saturates 16-bit sums; this chooses the exact one.
        options.add_session_config_entry("session.x64quantprecision", "1")
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    if profile_in is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_in / "profile")
    try:
        # Without this it would take the CPU when a GPU provider fails, with no more than a line in its log.
        session = onnxruntime.InferenceSession(
            data, options, providers=[NAMES[provider]], enable_fallback=0, disabled_optimizers=_CHANGES_WEIGHTS
        )
    except Exception as error:  # its exceptions share no public base class
        raise EngineError("ONNX Runtime cannot run the model", found=reason(error)) from None
    if session.get_providers()[0] != NAMES[provider]:
        raise EngineError(
            f"ONNX Runtime did not take {NAMES[provider]}",
            found=", ".join(session.get_providers()),
            fix="see `repq doctor`, or use --provider cpu",
        )
    return session


def demand_provider(provider: Provider) -> None:
    """Refuse a provider that the installed package does not have.

    Raises:
        EngineError: it is not there.
    """
    import onnxruntime

    present = onnxruntime.get_available_providers()
    if NAMES[provider] not in present:
        raise EngineError(
            f"this ONNX Runtime has no {NAMES[provider]}",
            found=", ".join(present),
            fix="pip uninstall onnxruntime, then pip install onnxruntime-gpu; or use --provider cpu",
        )


def nodes_by_provider(session: Any, feed: Mapping[str, Any]) -> dict[str, int]:
    """Run a session that was opened with profiling once, and count the nodes by the provider that ran them."""
    session.run(None, dict(feed))
    events = _events(session)
    ran = {event["name"]: event["args"]["provider"] for event in events if event.get("args", {}).get("provider")}
    return dict(sorted(Counter(ran.values()).items()))


def _events(session: Any) -> list[dict[str, Any]]:
    """What ONNX Runtime noted of the runs of a session that was opened with profiling."""
    profile = Path(session.end_profiling())
    try:
        events: list[dict[str, Any]] = json.loads(profile.read_text(encoding="utf-8"))
    finally:
        profile.unlink()
    return events


def _graph_of(path: Path) -> onnx.GraphProto:
    import onnx

    return onnx.load(str(path)).graph


def _weight_input(node: onnx.NodeProto) -> int:
    from repq.graph.layer_join import INTEGER_OPS

    return INTEGER_OPS.get(node.op_type, 1)


def _constant_behind(tensor: str, producers: Mapping[str, onnx.NodeProto]) -> str:
    while tensor in producers:
        tensor = producers[tensor].input[0]
    return tensor


def _precision(
    node: onnx.NodeProto,
    weight: str,
    initializers: Mapping[str, onnx.TensorProto],
    producers: Mapping[str, onnx.NodeProto],
) -> str:
    if node.op_type in _INTEGER_KINDS:
        return "int8"
    before = producers.get(node.input[1])
    if before is not None and before.op_type == "Cast":
        return next((_FLOAT_TYPES.get(entry.i, UNKNOWN) for entry in before.attribute if entry.name == "to"), UNKNOWN)
    if before is not None and before.op_type == "DequantizeLinear":
        weight = before.input[1]  # the scale's type is the dequantized weight's
    return _FLOAT_TYPES.get(initializers[weight].data_type, UNKNOWN) if weight in initializers else UNKNOWN


def _executed_row(layer: LayerId, executed: Sequence[tuple[str, str]]) -> LayerPrecision:
    precisions = sorted({precision for precision, _ in executed})
    kernels = sorted({kernel for _, kernel in executed})
    return LayerPrecision(
        layer=layer,
        precision="+".join(precisions) if precisions else UNKNOWN,
        kernel="+".join(kernels) + (f" x{len(executed)}" if len(executed) > 1 else ""),
    )
