"""ONNX Runtime on the CPU.

The engine holds the graph that ``onnxruntime_lowering`` wrote, and describes the one that ONNX Runtime made of it.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from repq.engine.base import EngineManifest, check_images
from repq.engine.cpu import DOT_PRODUCT_FEATURES, cpu_features
from repq.engine.onnxruntime_lowering import lower
from repq.engine.source import CONVOLUTIONS, Source
from repq.engine.storage import write_engine
from repq.errors import EngineError
from repq.layers import LayerId
from repq.recipe import EngineName
from repq.results import EngineDescription, LayerPrecision

INSTALL = "pip install onnxruntime"

_MODEL = "model.onnx"
_INTEGER_KINDS = frozenset({"QLinearConv", "ConvInteger"})
_FLOAT_KINDS = frozenset({*CONVOLUTIONS, "FusedConv", "NhwcFusedConv"})
_ACTIVATIONS = frozenset({"Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "Tanh", "Add", "Mul"})
_CONVERSIONS = {
    "QuantizeLinear": "quantize",
    "DequantizeLinear": "dequantize",
    "ReorderInput": "reorder",
    "ReorderOutput": "reorder",
    "Cast": "convert",
}
_FLOAT_TYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16",
}
# What ONNX Runtime appends to a node's name when it rewrites it, and what the lowering appends to a repeated one.
_SUFFIX = re.compile(r"(_nchwc|_token_\d+|/\d+)+$")


class OnnxRuntimeEngine:
    """One session on the CPU."""

    name: EngineName = "onnxruntime"

    def __init__(self, manifest: EngineManifest, model: onnx.ModelProto) -> None:
        self.manifest = manifest
        self._model = model
        self._data = model.SerializeToString()
        self._session = _session(self._data, manifest.threads)
        self._outputs = [output.name for output in manifest.outputs]

    @property
    def batch(self) -> int | None:
        return self.manifest.batch

    def infer(self, images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        check_images(images, self.manifest.input)
        feed = {self.manifest.input.name: np.ascontiguousarray(images)}
        return dict(zip(self._outputs, self._session.run(self._outputs, feed), strict=True))

    def save(self, folder: Path) -> None:
        write_engine(folder, self.manifest, lambda new: _write(new / _MODEL, self._data))

    def describe(self) -> EngineDescription:
        with tempfile.TemporaryDirectory() as scratch:
            optimized = Path(scratch) / _MODEL
            _session(self._data, self.manifest.threads, optimized)
            executed = onnx.load(str(optimized))
        return EngineDescription(
            engine=self.name,
            version=self.manifest.version,
            device=self.manifest.device,
            input_name=self.manifest.input.name,
            input_shape=self.manifest.input.shape,
            output_names=tuple(self._outputs),
            size_bytes=len(self._data),
            layers=executed_layers(executed.graph, self.manifest.layers, result_names(self._model.graph)),
            extra_nodes=conversions(executed.graph.node),
        )


def runtime_version() -> str:
    """Version of the installed ONNX Runtime.

    Raises:
        EngineError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError("ONNX Runtime is not installed here", found=str(error), fix=INSTALL) from None
    return str(onnxruntime.__version__)


def build(source: Source, manifest: EngineManifest) -> OnnxRuntimeEngine:
    """Lower the model to integer operators and open a session.

    Raises:
        EngineError: ONNX Runtime cannot run the model.
    """
    return OnnxRuntimeEngine(manifest, lower(source.model))


def load(folder: Path, manifest: EngineManifest) -> OnnxRuntimeEngine:
    """Open a session on a saved model.

    Raises:
        EngineError: ONNX Runtime cannot run the model.
    """
    return OnnxRuntimeEngine(manifest, onnx.load(str(folder / _MODEL)))


def executed_layers(
    graph: onnx.GraphProto, layers: Iterable[LayerId], results: Mapping[str, LayerId]
) -> tuple[LayerPrecision, ...]:
    """Look up every layer among the nodes of the optimized graph; one that is not found is ``unknown``.

    A node is known by its name, by the name of its weight, or by the tensor that it computes (``results``): ONNX
    Runtime names a blocked convolution after its output. A layer that runs twice shows the precision of both.
    """
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}
    wanted = tuple(layers)
    found: dict[LayerId, list[tuple[str, str]]] = {layer: [] for layer in wanted}
    for node in graph.node:
        if node.op_type not in _INTEGER_KINDS | _FLOAT_KINDS:
            continue
        name = _SUFFIX.sub("", node.name)
        weight = _constant_behind(node.input[_weight_input(node)], producers)
        candidates = (node.name, name, weight.partition(".weight")[0] if ".weight" in weight else "", results.get(name))
        layer = next((c for c in candidates if c in found), None)
        if layer is None:
            continue
        kind = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        found[LayerId(layer)].append((_precision(node, weight, initializers, producers), kind))
    return tuple(_row(layer, found[layer]) for layer in wanted)


def result_names(graph: onnx.GraphProto) -> dict[str, LayerId]:
    """Map every convolution's output, also that after operators that fuse into it, to the convolution's layer."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for tensor in node.input:
            readers.setdefault(tensor, []).append(node)
    names: dict[str, LayerId] = {}
    for node in graph.node:
        if node.op_type in _FLOAT_KINDS | _INTEGER_KINDS:
            tensor = node.output[0]
            names[tensor] = LayerId(_SUFFIX.sub("", node.name))
            while len(readers.get(tensor, [])) == 1 and readers[tensor][0].op_type in _ACTIVATIONS:
                tensor = readers[tensor][0].output[0]
                names.setdefault(tensor, LayerId(_SUFFIX.sub("", node.name)))
    return names


def conversions(nodes: Sequence[onnx.NodeProto]) -> dict[str, int]:
    """Count the nodes of the optimized graph that only change type or layout."""
    counts = Counter(_CONVERSIONS[node.op_type] for node in nodes if node.op_type in _CONVERSIONS)
    return dict(sorted(counts.items()))


def _session(data: bytes, threads: int | None, optimized: Path | None = None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns that an optimized model fits this machine only; that is wanted here
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.inter_op_num_threads = 1
    if threads is not None:
        options.intra_op_num_threads = threads
    if not DOT_PRODUCT_FEATURES.intersection(cpu_features()):
        # Without such instructions the fast x86 kernel saturates 16-bit sums; this chooses the exact one.
        options.add_session_config_entry("session.x64quantprecision", "1")
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no public base class
        raise EngineError("ONNX Runtime cannot run the model", found=str(error).strip().splitlines()[0]) from None


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _weight_input(node: onnx.NodeProto) -> int:
    return 3 if node.op_type == "QLinearConv" else 1


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
    tensor = node.input[1]
    if tensor in producers and producers[tensor].op_type == "DequantizeLinear":
        weight = producers[tensor].input[1]  # the scale's type is the dequantized weight's
    return _FLOAT_TYPES.get(initializers[weight].data_type, "unknown") if weight in initializers else "unknown"


def _row(layer: LayerId, executed: Sequence[tuple[str, str]]) -> LayerPrecision:
    precisions = sorted({precision for precision, _ in executed})
    kernels = sorted({kernel for _, kernel in executed})
    return LayerPrecision(
        layer=layer,
        precision="+".join(precisions) if precisions else "unknown",
        kernel="+".join(kernels) + (f" x{len(executed)}" if len(executed) > 1 else ""),
    )
