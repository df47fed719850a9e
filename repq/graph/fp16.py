r"""Float tensors in FP16, as types in the graph: what a strongly typed TensorRT network runs.

Before::

    images (FP32) -> Q -> DQ (FP32) -> Conv (FP32 bias) -> Softmax -> ... -> boxes and scores (FP32)

After::

    images (FP32) -> Q -> DQ (FP16) -> Conv (FP16 bias) -> Softmax (FP16) -> Cast -> ... -> boxes and scores (FP32)

A DequantizeLinear's output has the type of its scale (ONNX, opset 19), so scales become FP16; layers that stay float
get FP16 weights. A float graph without any Q/DQ becomes the pure FP16 graph.

Five things need care:

- *Scales.* FP16 is normal from 2^-14 on; below, it loses digits and may be flushed to zero. Scales are raised to that
  value, and the integers of a weight whose scale was raised are computed anew, ``q' = round(q s / s')``.
- *Boxes.* FP16 has 11 binary digits: from 1024 pixels on it counts in whole pixels, from 512 on in halves, and width
  and height are differences of such numbers. So the decoding of boxes, from the point where distances meet the anchor
  grid (or DFL probabilities their bins) to the output, stays FP32. It is a few element-wise operations on some thousand
  boxes; class scores join it at the very end.
- *Operators.* What ONNX has in FP32 alone, such as Celu and NonMaxSuppression, stays FP32.
- *Numbers of places.* FP16 does not hold all whole numbers beyond 2048. What becomes an integer, or the factor of a
  Resize, is computed in FP32, back to the layer that it hangs on.
- *Overflow.* What exceeds 65504 becomes infinite. The caller measures (``nodes_beyond_fp16``) and names the nodes that
  stay FP32; a node whose constants overflow stays FP32 by itself.

A Q has the type of the tensor that it reads, so a network input in FP32 needs no Cast in front of its Q.

Source: NVIDIA TensorRT Developer Guide, "Strongly typed networks"; IEEE 754, binary16.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import ModelProto, TensorProto

from repq.errors import GraphError
from repq.graph.anchors import anchors_of
from repq.graph.integers import WEIGHTED_OPS, quantizers
from repq.graph.metadata import Precision, update_metadata
from repq.graph.surgeon import (
    add_node,
    array,
    element_type,
    export_graph,
    import_graph,
    is_constant,
    title,
)
from repq.onnx_file import with_shapes

LARGEST_FP16 = 65504.0
SMALLEST_FP16_SCALE = 2.0**-14

_FLOAT, _HALF = TensorProto.FLOAT, TensorProto.FLOAT16
_OWN_TYPE = frozenset({"Cast", "Constant", "ConstantOfShape", "EyeLike", "RandomNormal", "RandomUniform", "Range"})
_FLOAT32_SLOTS = {"Resize": (1, 2), "Upsample": (1,)}
_Q_DQ = ("QuantizeLinear", "DequantizeLinear")
_INTEGERS = frozenset({TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64})
_ARITHMETIC = frozenset({"Add", "Div", "Mul", "Sub"})


@dataclass(frozen=True)
class Fp16Report:
    """What was typed how: nodes in FP32 by name, casts, and the scales that were raised to be normal in FP16."""

    fp32_nodes: tuple[str, ...]
    casts: int
    raised_scales: tuple[str, ...]


def to_fp16(
    model: ModelProto,
    *,
    keep_fp32: Collection[str] = (),
    float32_io: bool = True,
    fp32_decode: bool = True,
) -> tuple[ModelProto, Fp16Report]:
    """Return a float or Q/DQ graph whose float tensors are FP16, and a report.

    Args:
        model: a graph in FP32. With Q/DQ it needs opset 19 or newer.
        keep_fp32: nodes that stay FP32, by node name (a ``LayerId`` for a layer) or by the name of an output tensor.
        float32_io: inputs and outputs of the network stay FP32; False: they are FP16.
        fp32_decode: whether the decoding of the boxes stays FP32.

    Raises:
        GraphError: an opset below 19 with Q/DQ, an unknown name in ``keep_fp32``, or a graph that holds FP16 already.
    """
    graph = import_graph(model, shapes=True)
    report = type_as_fp16(graph, keep_fp32=keep_fp32, float32_io=float32_io, fp32_decode=fp32_decode)
    half = export_graph(graph)
    return with_shapes(half, strict=True), report


def type_as_fp16(
    graph: gs.Graph, *, keep_fp32: Collection[str] = (), float32_io: bool = True, fp32_decode: bool = True
) -> Fp16Report:
    """``to_fp16`` of a graph that was imported with shapes, in place."""
    _check(graph, keep_fp32)
    raised = _round_scales(graph)
    typing = _Typing(graph, _FLOAT if float32_io else _HALF)
    typing.assign({*keep_fp32, *_numbers_of_places(graph), *(decoding(graph) if fp32_decode else ())})
    report = Fp16Report(typing.fp32_nodes(), typing.rewrite(), raised)
    for tensor in graph.tensors().values():
        if isinstance(tensor, gs.Variable) and not any(tensor is end for end in (*graph.inputs, *graph.outputs)):
            tensor.dtype = tensor.shape = None
    names: dict[str, Precision] = {"float32": "float16", "int8": "int8_float16"}
    update_metadata(graph, lambda metadata: {"precision": names.get(metadata.precision, metadata.precision)})
    return report


def nodes_beyond_fp16(model: ModelProto, maxima: Mapping[str, float], *, margin: float = 0.5) -> tuple[str, ...]:
    """Names of the nodes to keep in FP32: those that write or read a tensor larger than ``margin * 65504``.

    Args:
        maxima: largest magnitude of each tensor on the calibration images, by anchor (``repq.graph.anchors``) or, of
            this very graph, by tensor name.
        margin: share of the FP16 range that may be used; other images have larger values.

    Raises:
        GraphError: a tensor that is too large is not in the graph, so the maxima are of another one.
    """
    return nodes_beyond(import_graph(model), maxima, margin=margin)


def nodes_beyond(graph: gs.Graph, maxima: Mapping[str, float], *, margin: float = 0.5) -> tuple[str, ...]:
    """``nodes_beyond_fp16`` of an imported graph."""
    anchors = anchors_of(graph)
    beyond = {name for name, value in maxima.items() if not value <= margin * LARGEST_FP16}
    large = {name for name in graph.tensors() if name in beyond or anchors.get(name) in beyond}
    if missing := sorted(beyond - large - {anchors.get(name, "") for name in large}):
        raise GraphError(
            "tensors that FP16 cannot hold are not in the graph: the maxima were measured on another one",
            found=", ".join(missing[:20]),
            fix="quantize again with this version of repq and torch (`repq ptq`)",
        )

    def touches(tensors: Collection[gs.Tensor]) -> bool:
        return any(tensor.name in large for tensor in tensors)

    return tuple(
        title(node) for node in graph.nodes if node.op not in _Q_DQ and (touches(node.outputs) or touches(node.inputs))
    )


def decoding(graph: gs.Graph) -> tuple[str, ...]:
    """First outputs of the nodes that decode boxes.

    They are no ancestors of any layer, and follow from the first arithmetic with a constant that is no scalar: the
    anchor grid, the strides or the bins of the distance distribution.
    """
    before_a_layer: set[str] = set()
    for node in reversed(graph.nodes):
        if node.op in WEIGHTED_OPS or any(tensor.name in before_a_layer for tensor in node.outputs):
            before_a_layer.update(tensor.name for tensor in node.inputs)
    found: dict[str, None] = {}
    for node in graph.nodes:
        if node.op in WEIGHTED_OPS or any(tensor.name in before_a_layer for tensor in node.outputs):
            continue
        constants = [tensor for tensor in node.inputs if is_constant(tensor)]
        starts = node.op in _ARITHMETIC and any(element_type(t) == _FLOAT and t.values.size > 1 for t in constants)
        if starts or any(tensor.name in found for tensor in node.inputs):
            found.update(dict.fromkeys(tensor.name for tensor in node.outputs))
    return tuple(found)


def _numbers_of_places(graph: gs.Graph) -> tuple[str, ...]:
    """First outputs of the nodes that compute what becomes an integer or the factor of a Resize, back to a layer."""
    read: set[str] = set()
    found: list[str] = []
    for node in reversed(graph.nodes):
        tensors = [node.inputs[slot] for slot in _FLOAT32_SLOTS.get(node.op, ()) if slot < len(node.inputs)]
        if node.op == "Cast" and node.attrs["to"] in _INTEGERS:
            tensors = node.inputs
        elif node.op not in (*WEIGHTED_OPS, *_Q_DQ) and any(tensor.name in read for tensor in node.outputs):
            found.append(node.outputs[0].name)
            tensors = node.inputs
        read.update(tensor.name for tensor in tensors if element_type(tensor) == _FLOAT)
    return tuple(found)


def _check(graph: gs.Graph, keep_fp32: Collection[str]) -> None:
    if quantizers(graph) and graph.opset < 19:
        raise GraphError("FP16 scales need opset 19", found=f"opset {graph.opset}", fix="export with opset 19 or newer")
    known = {name for node in graph.nodes for name in (node.name, *(tensor.name for tensor in node.outputs))}
    if unknown := [name for name in keep_fp32 if name not in known]:
        raise GraphError(
            "some nodes that should stay FP32 are not in the graph",
            found=", ".join(unknown[:20]),
            fix="give node names or output tensors of this very graph",
        )
    ends = [*graph.inputs, *(tensor for tensor in graph.tensors().values() if is_constant(tensor))]
    if any(element_type(tensor) == _HALF for tensor in ends):
        raise GraphError("the graph holds FP16 already", fix="start from the FP32 graph")


def _round_scales(graph: gs.Graph) -> tuple[str, ...]:
    """Round all scales of Q and DQ to normal FP16 numbers, still typed FP32, and requantize weights; in place."""
    raised: dict[str, None] = {}
    before = {node.inputs[1].name: array(node, 1) for node in quantizers(graph)}  # several nodes may share one
    for node in quantizers(graph):
        scale = before[node.inputs[1].name]
        if scale is None:
            continue
        rounded = np.asarray(np.clip(scale, SMALLEST_FP16_SCALE, LARGEST_FP16), np.float16).astype(np.float32)
        low = scale < SMALLEST_FP16_SCALE
        if low.any():
            raised[node.inputs[1].name] = None
            integers = array(node, 0)
            if integers is not None and node.op == "DequantizeLinear":
                axis = node.attrs.get("axis", 1)
                shape = [-1 if i == axis else 1 for i in range(integers.ndim)] if scale.ndim else []
                ratio = np.where(low, scale / rounded, 1).reshape(shape)
                node.inputs[0].values = np.asarray(np.rint(integers * ratio), integers.dtype)
        node.inputs[1].values = rounded
    return tuple(raised)


class _Typing:
    """The float type of every node and tensor of a graph, and the rewriting that makes the types so."""

    def __init__(self, graph: gs.Graph, io_type: int) -> None:
        self._graph = graph
        self._io_type = io_type
        self._floats = {name for name, tensor in graph.tensors().items() if element_type(tensor) == _FLOAT}
        self._nodes: dict[int, int] = {}
        self._tensors: dict[str, int] = {tensor.name: io_type for tensor in graph.inputs}

    def assign(self, keep_fp32: Collection[str]) -> None:
        """Choose a type for every node, in graph order; a Q follows its input, a DQ its readers."""
        wanted = {id(node): self._wanted(node, keep_fp32) for node in self._graph.nodes}
        for node in self._graph.nodes:
            kind = wanted[id(node)]
            if node.op == "QuantizeLinear":
                kind = self._tensors.get(node.inputs[0].name, _HALF)
            elif node.op == "DequantizeLinear":
                readers = node.outputs[0].outputs
                if readers and all(wanted[id(reader)] == _FLOAT for reader in readers):
                    kind = _FLOAT
            self._nodes[id(node)] = kind
            self._tensors.update((tensor.name, kind) for tensor in node.outputs)

    def fp32_nodes(self) -> tuple[str, ...]:
        """Names of the nodes that compute floats in FP32; Q and DQ do not count."""
        return tuple(
            title(node)
            for node in self._graph.nodes
            if self._nodes[id(node)] == _FLOAT
            and node.op not in _Q_DQ
            and any(tensor.name in self._floats for tensor in node.outputs)
        )

    def rewrite(self) -> int:
        """Retype constants, inputs and outputs and put casts where types meet; return the number of casts."""
        tensors = self._graph.tensors()
        reads: dict[str, dict[int, list[tuple[gs.Node, int]]]] = defaultdict(lambda: defaultdict(list))
        for node in self._graph.nodes:
            for slot, tensor in enumerate(node.inputs):
                if tensor.name in self._floats:
                    kind = self._current(tensor) if node.op in _OWN_TYPE else self._nodes[id(node)]
                    kind = _FLOAT if slot in _FLOAT32_SLOTS.get(node.op, ()) else kind
                    reads[tensor.name][kind].append((node, slot))
        before = len(self._graph.nodes)
        for name, by_type in reads.items():
            (self._retype if is_constant(tensors[name]) else self._cast)(tensors[name], by_type)
        self._retype_io()
        return len(self._graph.nodes) - before

    def _wanted(self, node: gs.Node, keep: Collection[str]) -> int:
        if node.op in _OWN_TYPE or not {node.name, *(tensor.name for tensor in node.outputs)}.isdisjoint(keep):
            return _FLOAT
        if node.op in _FLOAT32_SLOTS:
            return _HALF
        overflow = any(is_constant(tensor) and _overflows(tensor) for tensor in node.inputs)
        return _FLOAT if overflow or _takes_float32_alone(node, self._graph.opset) else _HALF

    def _current(self, tensor: gs.Tensor) -> int:
        return self._tensors.get(tensor.name, _FLOAT)

    def _retype(self, constant: gs.Constant, by_type: dict[int, list[tuple[gs.Node, int]]]) -> None:
        if _HALF not in by_type:
            return
        half = np.asarray(constant.values, np.float16)
        if len(by_type) == 1:
            constant.values = half
            return
        copy = gs.Constant(f"{constant.name}_float16", half)
        for node, slot in by_type[_HALF]:
            node.inputs[slot] = copy

    def _cast(self, tensor: gs.Tensor, by_type: dict[int, list[tuple[gs.Node, int]]]) -> None:
        for kind, readers in by_type.items():
            if kind != self._current(tensor):
                suffix = "float32" if kind == _FLOAT else "float16"
                name = f"{tensor.name}_{suffix}"
                cast = add_node(self._graph, "Cast", f"{tensor.name}/to_{suffix}", [tensor], name, to=kind)
                for node, slot in readers:
                    node.inputs[slot] = cast

    def _retype_io(self) -> None:
        kind = np.dtype(np.float32 if self._io_type == _FLOAT else np.float16)
        for tensor in self._graph.inputs:
            if tensor.name in self._floats:
                tensor.dtype = kind
        for slot, tensor in enumerate(self._graph.outputs):
            if tensor.name in self._floats:
                tensor.dtype = kind
                if self._current(tensor) != self._io_type:
                    outer = gs.Variable(tensor.name, kind, tensor.shape)
                    self._graph.outputs[slot] = outer
                    tensor.name += "_float16" if self._io_type == _FLOAT else "_float32"
                    self._graph.nodes.append(
                        gs.Node("Cast", f"{outer.name}/to_io", {"to": self._io_type}, [tensor], [outer])
                    )


def _takes_float32_alone(node: gs.Node, opset: int) -> bool:
    """Whether ONNX has no FP16 for something that a node reads or writes, as of Celu and NonMaxSuppression."""
    if node.domain or not onnx.defs.has(node.op, opset):
        return False
    schema = onnx.defs.get_schema(node.op, opset)
    types = {entry.type_param_str: entry.allowed_type_strs for entry in schema.type_constraints}
    slots = [*zip(node.inputs, schema.inputs, strict=False), *zip(node.outputs, schema.outputs, strict=False)]
    allowed = [types.get(slot.type_str, [slot.type_str]) for tensor, slot in slots if not tensor.is_empty()]
    return any("tensor(float)" in names and "tensor(float16)" not in names for names in allowed)


def _overflows(constant: gs.Constant) -> bool:
    if element_type(constant) != _FLOAT or not constant.values.size:
        return False
    return bool(np.abs(constant.values).max() > LARGEST_FP16)
