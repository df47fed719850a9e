"""The largest magnitude of every tensor of a float graph on real images: what decides whether FP16 can hold it.

Float tensors get ``ReduceMax`` and ``ReduceMin`` behind them, so that one run gives all ranges as scalars and no tensor
has to be kept. What follows from the range of another tensor is not measured: that of a copy, and of an activation.
ONNX Runtime computes it in float32, where nothing overflows that FP16 could not hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from repq.concurrency import concurrently
from repq.errors import GraphError
from repq.graph.integers import VIEWS
from repq.machine.cpu import cpu_cores
from repq.onnx_file import with_shapes
from repq.results import Range

MOST_AT_ONCE = 8
"""Images that are run at once at most: each holds activations."""

_KEEP_ALL_VALUES = VIEWS - {"Slice", "Split"} | {"Transpose"}


def _sigmoid(x: float, _attributes: Mapping[str, float]) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _hard_sigmoid(x: float, attributes: Mapping[str, float]) -> float:
    return min(max(attributes.get("alpha", 0.2) * x + attributes.get("beta", 0.5), 0.0), 1.0)


def _hard_swish(x: float, _attributes: Mapping[str, float]) -> float:
    return x * min(max(x / 6 + 0.5, 0.0), 1.0)


_ACTIVATIONS: Mapping[str, tuple[Callable[[float, Mapping[str, float]], float], float | None]] = {
    "HardSigmoid": (_hard_sigmoid, None),
    "HardSwish": (_hard_swish, -1.5),
    "Relu": (lambda x, _: max(x, 0.0), None),
    "Sigmoid": (_sigmoid, None),
}
"""By operator its function (ONNX opset 14), and where that has its minimum; None: it rises everywhere."""


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

    signs = np.array([edge.sign for edge in watch.edges.values()])

    def edges(part: NDArray[np.float32]) -> NDArray[np.float64]:
        return signs * np.array([float(value) for value in session.run(list(watch.edges), {source.name: part})])

    largest = np.full(len(watch.edges), -np.inf)
    for found in concurrently(edges, parts, min(threads or cpu_cores(), MOST_AT_ONCE)):
        largest = np.maximum(largest, found)
    return watch.maxima(largest)


@dataclass(frozen=True)
class _Edge:
    """One end of a tensor's range; ``sign`` is 1 for the upper end, and -1 for the lower."""

    tensor: str
    sign: int


@dataclass(frozen=True)
class _Watched:
    """A graph whose further outputs are the edges of its tensors' ranges.

    Attributes:
        edges: output -> what it is.
        derived: tensor -> its range from those of the tensors before.
        names: the tensors that maxima are wanted of, in graph order.
    """

    model: ModelProto
    edges: Mapping[str, _Edge]
    derived: Mapping[str, Callable[[Mapping[str, Range]], Range]]
    names: tuple[str, ...]

    def maxima(self, largest: NDArray[np.float64]) -> dict[str, float]:
        """The largest magnitude of each tensor.

        Args:
            largest: of each edge times its sign, over all images.

        Raises:
            GraphError: a tensor is not finite.
        """
        seen = {(edge.tensor, edge.sign): value for edge, value in zip(self.edges.values(), largest, strict=True)}
        ranges: dict[str, Range] = {}
        for name in self.names:
            derive = self.derived.get(name)
            ranges[name] = (-float(seen[name, -1]), float(seen[name, 1])) if derive is None else derive(ranges)
            if not np.isfinite(ranges[name]).all():
                raise GraphError(
                    "an activation is not finite", found=name, fix="give at least one image, and finite weights"
                )
        return {name: max(-low, high) for name, (low, high) in ranges.items()}


def _watched(model: ModelProto) -> _Watched:
    result = ModelProto()
    result.CopyFrom(model)
    floats, edges, names = _floats(model), dict[str, _Edge](), dict[str, None]()
    derived: dict[str, Callable[[Mapping[str, Range]], Range]] = {}
    for node in model.graph.node:
        for name in node.output if node.op_type != "Constant" else ():
            if name not in floats:
                continue
            if (derive := _derived(node, names)) is not None:
                derived[name] = derive
            else:
                edges |= _with_edges(result.graph, name)
            names[name] = None
    return _Watched(result, edges, derived, tuple(names))


def _derived(node: NodeProto, known: Collection[str]) -> Callable[[Mapping[str, Range]], Range] | None:
    """The range of what a node puts out, if it follows from those of tensors that are known."""
    sources = tuple(node.input) if node.op_type == "Concat" else tuple(node.input[:1])
    if not sources or not all(source in known for source in sources):
        return None
    if node.op_type in _KEEP_ALL_VALUES:
        return lambda ranges: (min(ranges[s][0] for s in sources), max(ranges[s][1] for s in sources))
    if node.op_type in _ACTIVATIONS:
        function, lowest = _ACTIVATIONS[node.op_type]
        attributes = {entry.name: entry.f for entry in node.attribute}

        def activated(ranges: Mapping[str, Range]) -> Range:
            low, high = ranges[sources[0]]
            ends = [function(x, attributes) for x in (low, high)]
            if lowest is not None and low < lowest < high:  # some value may come close to it
                ends.append(function(lowest, attributes))
            return min(ends), max(ends)

        return activated
    return None


def _floats(model: ModelProto) -> set[str]:
    inferred = with_shapes(model).graph
    return {
        entry.name
        for entry in (*inferred.value_info, *inferred.output)
        if entry.type.tensor_type.elem_type == TensorProto.FLOAT
    }


def _with_edges(graph: GraphProto, name: str) -> dict[str, _Edge]:
    """Let the graph put out the edges of a tensor's range: both read it; Abs would write another one of its size."""
    edges = {}
    for kind, sign in (("ReduceMax", 1), ("ReduceMin", -1)):
        scalar = f"{kind} of {name}"
        graph.node.append(helper.make_node(kind, [name], [scalar], keepdims=0))
        graph.output.append(helper.make_tensor_value_info(scalar, TensorProto.FLOAT, ()))
        edges[scalar] = _Edge(name, sign)
    return edges
