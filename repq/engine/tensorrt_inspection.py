"""What TensorRT's engine inspector says of a plan, read in both of its JSON forms.

Up to 10.x a tensor has one field ``Format/Datatype`` ("Thirty-two wide channel vectorized row major Int8 format"); from
11 on it has ``Format`` and ``Datatype`` (NVIDIA's migration guide writes ``DataType``). A kernel names the ONNX nodes
that it computes in ``Metadata``, ``[ONNX Layer: a][ONNX Layer: b]``; before 8.6 only its own name holds them, joined by
`` + ``. Convolutions of repq's files bear their ``LayerId`` as node name, so the join is exact.

Source: NVIDIA TensorRT Developer Guide, "Engine Inspector"; "Migrating IEngineInspector usage from 10.x to 11.x".
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from repq.errors import EngineError
from repq.layers import LayerId
from repq.results import UNKNOWN, LayerPrecision, NodeTime

_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_REFORMAT = "Reformat"
_FLOATS = ("float32", "float16", "bfloat16")
_TYPES = (
    ("int8", "int8"),
    ("bf16", "bfloat16"),
    ("bfloat", "bfloat16"),
    ("fp16", "float16"),
    ("half", "float16"),
    ("fp32", "float32"),
    ("float", "float32"),
)
"""Parts of the inspector's words for a type, in the order of the search."""


@dataclass(frozen=True)
class Kernel:
    """One layer of the engine: a kernel, or several that run as one.

    Attributes:
        kind: the inspector's ``LayerType``, such as ``CaskConvolution`` or ``Reformat``.
        nodes: names of the ONNX nodes that it computes.
        inputs, outputs: type of every tensor, None where the inspector does not say.
        weights: type of its weights, None if it has none.
        for_scales: whether it stems from a Q or DQ of the graph, not from the builder's choice of layouts.
    """

    name: str
    kind: str
    nodes: tuple[str, ...]
    inputs: tuple[str | None, ...]
    outputs: tuple[str | None, ...]
    weights: str | None
    tactic: str
    for_scales: bool


def read_kernels(text: str) -> tuple[Kernel, ...]:
    """Parse what ``get_engine_information`` returns as JSON, of 8.5 to 11.x.

    Raises:
        EngineError: it is no such JSON, or the engine was built without detailed profiling verbosity.
    """
    fix = "build it again with `repq build`, which asks for details"
    try:
        layers = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError("the engine's layer information cannot be read", found=repr(error), fix=fix) from None
    if any(not isinstance(layer, dict) for layer in layers):
        raise EngineError("the engine names its layers but does not describe them", found="names only", fix=fix)
    return tuple(_kernel(layer) for layer in layers)


def executed_layers(kernels: Sequence[Kernel], layers: Iterable[LayerId]) -> tuple[LayerPrecision, ...]:
    """The precision and the kernel of every layer; one that no kernel names is ``unknown``."""
    found: dict[str, list[Kernel]] = {}
    for kernel in kernels:
        if not _only_converts(kernel):
            for node in kernel.nodes:
                found.setdefault(node, []).append(kernel)
    return tuple(_row(layer, found.get(layer, [])) for layer in layers)


def conversions(kernels: Iterable[Kernel]) -> dict[str, int]:
    """Count the kernels that do no work of the network.

    ``quantize``, ``dequantize`` and ``requantize`` follow from the scales of the graph, ``convert`` from its float
    types, ``reformat`` from the layouts that the builder chose.
    """
    counts = Counter(_conversion(kernel) for kernel in kernels if _only_converts(kernel))
    return dict(sorted(counts.items()))


def node_times(
    times: Mapping[str, float], kernels: Mapping[str, Kernel], layers: Iterable[LayerId]
) -> tuple[NodeTime, ...]:
    """Milliseconds by the name of a kernel, with the layer that it computes."""
    known, rows = set(layers), []
    for name, ms in times.items():
        kernel = kernels.get(name)
        owner = None
        if kernel is not None and not _only_converts(kernel):
            owner = next((node for node in kernel.nodes if node in known), None)
        precision = _precision(kernel) if kernel is not None and owner else ""
        rows.append(NodeTime(name=name, kind=kernel.kind if kernel else "", layer=owner, ms=ms, precision=precision))
    return tuple(rows)


def _kernel(layer: Mapping[str, Any]) -> Kernel:
    name, kind = str(layer.get("Name", "")), str(layer.get("LayerType", ""))
    nodes = tuple(_NODE.findall(str(layer.get("Metadata", "")))) or tuple(name.split(" + "))
    weights = layer.get("Weights") or layer.get("ConvWeights") or {}
    return Kernel(
        name=name,
        kind=kind,
        nodes=nodes,
        inputs=tuple(map(_tensor_type, layer.get("Inputs", ()))),
        outputs=tuple(map(_tensor_type, layer.get("Outputs", ()))),
        weights=_type(str(weights.get("Type", ""))),
        tactic=str(layer.get("TacticName", "")),
        for_scales=layer.get("Origin") == "QDQ" or all(map(_is_qdq, nodes)),
    )


def _tensor_type(tensor: Mapping[str, Any]) -> str | None:
    words = [tensor.get(key) for key in ("Datatype", "DataType", "Format/Datatype", "Format")]
    return next((found for word in words if word and (found := _type(str(word)))), None)


def _type(words: str) -> str | None:
    lower = words.lower()
    return next((name for part, name in _TYPES if part in lower), None)


def _is_qdq(node: str) -> bool:
    return "QuantizeLinear" in node or "DequantizeLinear" in node


def _only_converts(kernel: Kernel) -> bool:
    return kernel.kind == _REFORMAT or (kernel.weights is None and all(map(_is_qdq, kernel.nodes)))


def _conversion(kernel: Kernel) -> str:
    source = next((kind for kind in kernel.inputs if kind), None)
    target = next((kind for kind in kernel.outputs if kind), None)
    if source in _FLOATS and target == "int8":
        return "quantize"
    if source == "int8" and target in _FLOATS:
        return "dequantize"
    if source == target == "int8" and kernel.for_scales:
        return "requantize"
    return "convert" if source != target else "reformat"


def _row(layer: LayerId, kernels: Sequence[Kernel]) -> LayerPrecision:
    computing = [kernel for kernel in kernels if kernel.weights] or kernels
    precisions = sorted({_precision(kernel) for kernel in computing})
    names = sorted({kernel.tactic or kernel.kind for kernel in computing})
    return LayerPrecision(
        layer=layer, precision="+".join(precisions) if precisions else UNKNOWN, kernel="+".join(names)
    )


def _precision(kernel: Kernel) -> str:
    """The type that a kernel multiplies in: that of its weights, else what its tactic says, else its input's."""
    tactic = kernel.tactic.lower()
    if kernel.weights == "float32" and "tf32" in tactic:
        return "tf32"
    if kernel.weights:
        return kernel.weights
    for part, name in (("i8i8", "int8"), ("f16f16", "float16"), ("tf32", "tf32"), ("f32f32", "float32")):
        if part in tactic:
            return name
    return next((kind for kind in kernel.inputs if kind), None) or UNKNOWN
