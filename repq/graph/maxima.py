"""The largest magnitude of every tensor of a float graph on real images: what decides whether FP16 can hold it.

Float tensors get ``ReduceMax`` and ``ReduceMin`` behind them, so that one run gives all maxima as scalars and no tensor
has to be kept. ONNX Runtime computes it in float32, where nothing overflows that FP16 could not hold.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from repq.concurrency import concurrently
from repq.errors import GraphError
from repq.graph.integers import VIEWS

MOST_AT_ONCE = 8
"""Images that are run at once at most: each holds activations."""

_NEVER_NEGATIVE = frozenset({"HardSigmoid", "Relu", "Sigmoid"})
_KEEP_ALL_VALUES = VIEWS - {"Slice", "Split"} | {"Transpose"}


def tensor_maxima(
    model: ModelProto, images: Iterable[NDArray[np.float32]], *, threads: int | None = None
) -> dict[str, float]:
    """Largest magnitude of every computed float tensor, by tensor name in graph order.

    Args:
        model: a graph in FP32 with one input.
        images: inputs of the network, each of the shape that it takes.
        threads: images that are run at once, each by one thread; None: one for each core.

    Raises:
        GraphError: there are no images, or a tensor is not finite.
    """
    import onnxruntime

    watch = _watched(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1  # several would wait for each other at each of a thousand nodes
    session = onnxruntime.InferenceSession(
        watch.model.SerializeToString(), options, providers=["CPUExecutionProvider"], enable_fallback=0
    )
    source = session.get_inputs()[0]
    parts = (part for batch in images for part in (np.split(batch, len(batch)) if source.shape[0] == 1 else [batch]))

    def magnitudes(part: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.abs([float(value) for value in session.run(list(watch.edges), {source.name: part})])

    largest = np.full(len(watch.edges), -np.inf)
    for found in concurrently(magnitudes, parts, min(threads or os.cpu_count() or 1, MOST_AT_ONCE)):
        largest = np.maximum(largest, found)
    return watch.maxima(largest)


@dataclass(frozen=True)
class _Watched:
    """A graph whose further outputs are the edges of its tensors' ranges.

    Attributes:
        edges: output -> the tensor that it is an edge of.
        copies: tensor -> those whose values it has, all of them and no others.
        names: the tensors that maxima are wanted of, in graph order.
    """

    model: ModelProto
    edges: Mapping[str, str]
    copies: Mapping[str, tuple[str, ...]]
    names: tuple[str, ...]

    def maxima(self, largest: NDArray[np.float64]) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, value in zip(self.edges.values(), largest.tolist(), strict=True):
            found[name] = max(value, found.get(name, value))
        for name in self.names:
            if name in self.copies:
                found[name] = max(found[part] for part in self.copies[name])
            if not np.isfinite(found[name]):
                raise GraphError(
                    "an activation is not finite", found=name, fix="give at least one image, and finite weights"
                )
        return {name: found[name] for name in self.names}


def _watched(model: ModelProto) -> _Watched:
    result = ModelProto()
    result.CopyFrom(model)
    floats, edges, copies, names = _floats(model), dict[str, str](), dict[str, tuple[str, ...]](), dict[str, None]()
    for node in model.graph.node:
        for name in node.output if node.op_type != "Constant" else ():
            if name not in floats:
                continue
            if (sources := _copied_by(node)) and all(source in names for source in sources):
                copies[name] = sources
            else:
                edges |= _with_edges(result.graph, node, name)
            names[name] = None
    return _Watched(result, edges, copies, tuple(names))


def _floats(model: ModelProto) -> set[str]:
    inferred = onnx.shape_inference.infer_shapes(model).graph
    return {
        entry.name
        for entry in (*inferred.value_info, *inferred.output)
        if entry.type.tensor_type.elem_type == TensorProto.FLOAT
    }


def _copied_by(node: NodeProto) -> tuple[str, ...]:
    """The tensors whose values a node puts out, all of them and no others."""
    if node.op_type not in _KEEP_ALL_VALUES:
        return ()
    return tuple(node.input) if node.op_type == "Concat" else (node.input[0],)


def _with_edges(graph: GraphProto, node: NodeProto, name: str) -> dict[str, str]:
    """Let the graph put out the edges of a tensor's range: both read it; Abs would write another one of its size."""
    edges = {}
    for kind in ("ReduceMax",) if node.op_type in _NEVER_NEGATIVE else ("ReduceMax", "ReduceMin"):
        scalar = f"{kind} of {name}"
        graph.node.append(helper.make_node(kind, [name], [scalar], keepdims=0))
        graph.output.append(helper.make_tensor_value_info(scalar, TensorProto.FLOAT, ()))
        edges[scalar] = name
    return edges
