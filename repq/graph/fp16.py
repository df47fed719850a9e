r"""Float tensors in FP16, as types in the graph: what a strongly typed TensorRT network runs.

Before::

    images (FP32) -> Q -> DQ (FP32) -> Conv (FP32 bias) -> Softmax -> ... -> boxes and scores (FP32)

After::

    images (FP32) -> Q -> DQ (FP16) -> Conv (FP16 bias) -> Softmax (FP16) -> Cast -> ... -> boxes and scores (FP32)

A DequantizeLinear's output has the type of its scale (ONNX, opset 19), so scales become FP16; layers that stay float
get FP16 weights. A float graph without any Q/DQ becomes the pure FP16 graph.

Three things need care:

- *Scales.* FP16 is normal from 2^-14 on; below, it loses digits and may be flushed to zero. Scales are raised to that
  value, and the integers of a weight whose scale was raised are computed anew, ``q' = round(q s / s')``.
- *Boxes.* FP16 has 11 binary digits: from 1024 pixels on it counts in whole pixels, from 512 on in halves, and width
  and height are differences of such numbers. So the decoding of boxes, from the point where distances meet the anchor
  grid (or DFL probabilities their bins) to the output, stays FP32. It is a few element-wise operations on some thousand
  boxes; class scores join it at the very end.
- *Overflow.* What exceeds 65504 becomes infinite. The caller measures (``nodes_beyond_fp16``) and names the nodes that
  stay FP32; a node whose constants overflow stays FP32 by itself.

A Q has the type of the tensor that it reads, so a network input in FP32 needs no Cast in front of its Q.

Source: NVIDIA TensorRT Developer Guide, "Strongly typed networks"; IEEE 754, binary16.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from dataclasses import replace as with_changes

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from repq.errors import GraphError
from repq.graph.index import GraphIndex, replace, sort_nodes
from repq.graph.int8_flow import WEIGHTED_OPS
from repq.graph.metadata import Precision, read_metadata, write_metadata

LARGEST_FP16 = 65504.0
SMALLEST_FP16_SCALE = 2.0**-14

_FLOAT, _HALF = TensorProto.FLOAT, TensorProto.FLOAT16
_OWN_TYPE = frozenset({"Cast", "Constant", "ConstantOfShape", "EyeLike", "RandomNormal", "RandomUniform", "Range"})
_FLOAT32_SLOTS = {"Resize": (1, 2), "Upsample": (1,)}
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
    """Return a copy of a float or Q/DQ graph whose float tensors are FP16, and a report.

    Args:
        model: a graph in FP32. With Q/DQ it needs opset 19 or newer.
        keep_fp32: nodes that stay FP32, by node name (a ``LayerId`` for a layer) or by the name of an output tensor.
        float32_io: inputs and outputs of the network stay FP32; False: they are FP16.
        fp32_decode: whether the decoding of the boxes stays FP32.

    Raises:
        GraphError: an opset below 19 with Q/DQ, an unknown name in ``keep_fp32``, or a graph that holds FP16 already.
    """
    _check(model, keep_fp32)
    result = ModelProto()
    result.CopyFrom(model)
    raised = _round_scales(result)
    typing = _Typing(result, float32_io)
    typing.assign(keep_fp32, fp32_decode)
    fp32_nodes = typing.fp32_nodes()
    casts = typing.rewrite()
    sort_nodes(result.graph)
    del result.graph.value_info[:]
    result = onnx.shape_inference.infer_shapes(result, check_type=True, strict_mode=True, data_prop=True)
    if metadata := read_metadata(result):
        precision: Precision = "float16" if metadata.precision == "float32" else "int8_float16"
        write_metadata(result, with_changes(metadata, precision=precision))
    return result, Fp16Report(fp32_nodes, casts, raised)


def nodes_beyond_fp16(model: ModelProto, maxima: Mapping[str, float], *, margin: float = 0.5) -> tuple[str, ...]:
    """Names of the nodes to keep in FP32: those that write or read a tensor larger than ``margin * 65504``.

    Args:
        maxima: largest magnitude of each tensor on the calibration images, by tensor name.
        margin: share of the FP16 range that may be used; other images have larger values.

    Raises:
        GraphError: a tensor that is too large is not in the graph, so the maxima are of another one.
    """
    beyond = {name for name, value in maxima.items() if not value <= margin * LARGEST_FP16}
    present = {name for node in model.graph.node for name in (*node.input, *node.output)}
    if missing := sorted(beyond - present):
        raise GraphError(
            "tensors that FP16 cannot hold are not in the graph: the maxima were measured on another one",
            found=", ".join(missing[:20]),
            fix="quantize again with this version of repq and torch (`repq ptq`)",
        )
    return tuple(
        node.name or node.output[0]
        for node in model.graph.node
        if beyond.intersection(node.output) or (beyond.intersection(node.input) and node.op_type != "QuantizeLinear")
    )


def decode_nodes(model: ModelProto) -> tuple[str, ...]:
    """First outputs of the nodes that decode boxes.

    They are no ancestors of any layer, and follow from the first arithmetic with a constant that is no scalar: the
    anchor grid, the strides or the bins of the distance distribution.
    """
    index = GraphIndex.of(model.graph)
    before_a_layer: set[str] = set()
    for node in reversed(model.graph.node):
        if node.op_type in WEIGHTED_OPS or before_a_layer.intersection(node.output):
            before_a_layer.update(node.input)
    found: list[str] = []
    decoded: set[str] = set()
    for node in model.graph.node:
        if before_a_layer.intersection(node.output) or node.op_type in WEIGHTED_OPS:
            continue
        constants = [array for array in map(index.array, node.input) if array is not None]
        starts = node.op_type in _ARITHMETIC and any(a.dtype == np.float32 and a.size > 1 for a in constants)
        if starts or decoded.intersection(node.input):
            decoded.update(node.output)
            found.append(node.output[0])
    return tuple(found)


def _check(model: ModelProto, keep_fp32: Collection[str]) -> None:
    version = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    kinds = {node.op_type for node in model.graph.node}
    if kinds & {"QuantizeLinear", "DequantizeLinear"} and version < 19:
        raise GraphError("FP16 scales need opset 19", found=f"opset {version}", fix="export with opset 19 or newer")
    known = {name for node in model.graph.node for name in (node.name, *node.output)}
    if unknown := [name for name in keep_fp32 if name not in known]:
        raise GraphError(
            "some nodes that should stay FP32 are not in the graph",
            found=", ".join(unknown[:20]),
            fix="give node names or output tensors of this very graph",
        )
    entries = (*model.graph.initializer, *(entry.type.tensor_type for entry in model.graph.input))
    types = [getattr(entry, "data_type", None) or getattr(entry, "elem_type", None) for entry in entries]
    if _HALF in types:
        raise GraphError("the graph holds FP16 already", fix="start from the FP32 graph")


def _round_scales(model: ModelProto) -> tuple[str, ...]:
    """Round all scales of Q and DQ to normal FP16 numbers, still typed FP32, and requantize weights; in place."""
    index = GraphIndex.of(model.graph)
    raised = []
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or (scale := index.array(node.input[1])) is None:
            continue
        rounded = np.clip(scale, SMALLEST_FP16_SCALE, LARGEST_FP16).astype(np.float16).astype(np.float32)
        low = scale < SMALLEST_FP16_SCALE
        if low.any():
            raised.append(node.input[1])
            integers = index.array(node.input[0])
            if integers is not None and node.op_type == "DequantizeLinear":
                axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
                shape = [-1 if i == axis else 1 for i in range(integers.ndim)] if scale.ndim else []
                ratio = np.where(low, scale / rounded, 1).reshape(shape)
                again = np.rint(integers * ratio).astype(integers.dtype)
                index.initializers[node.input[0]].CopyFrom(numpy_helper.from_array(again, node.input[0]))
        index.initializers[node.input[1]].CopyFrom(numpy_helper.from_array(rounded, node.input[1]))
    return tuple(dict.fromkeys(raised))


@dataclass
class _Typing:
    """The float type of every node and tensor of a graph, and the rewriting that makes the types so."""

    model: ModelProto
    float32_io: bool
    nodes: list[int] = field(default_factory=list)
    tensors: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.index = GraphIndex.of(self.model.graph)
        self.floats = _float_tensors(self.model)
        self.io_type = _FLOAT if self.float32_io else _HALF

    def assign(self, keep_fp32: Collection[str], fp32_decode: bool) -> None:
        """Choose a type for every node, in graph order; a Q follows its input, a DQ its readers."""
        keep = set(keep_fp32) | (set(decode_nodes(self.model)) if fp32_decode else set())
        graph = self.model.graph
        wanted = {node.output[0]: self._wanted(node, keep) for node in graph.node}
        for entry in graph.input:
            self.tensors[entry.name] = self.io_type
        for node in graph.node:
            kind = wanted[node.output[0]]
            if node.op_type == "QuantizeLinear":
                kind = self.tensors.get(node.input[0], _HALF)
            elif node.op_type == "DequantizeLinear":
                readers = [use.node for use in self.index.uses_of(node.output[0])]
                if readers and all(wanted[reader.output[0]] == _FLOAT for reader in readers):
                    kind = _FLOAT
            self.nodes.append(kind)
            self.tensors.update(dict.fromkeys(node.output, kind))

    def rewrite(self) -> int:
        """Retype initializers, inputs and outputs and put casts where types meet; return the number of casts."""
        graph = self.model.graph
        reads: dict[str, dict[int, list[tuple[NodeProto, int]]]] = defaultdict(lambda: defaultdict(list))
        for node, kind in zip(graph.node, self.nodes, strict=True):
            for slot, name in enumerate(node.input):
                if name in self.floats:
                    fixed = slot in _FLOAT32_SLOTS.get(node.op_type, ()) or node.op_type in _OWN_TYPE
                    reads[name][self._current(name) if fixed else kind].append((node, slot))
        casts: list[NodeProto] = []
        for name, by_type in reads.items():
            if name in self.index.initializers:
                self._retype_initializer(name, by_type)
            else:
                casts += self._cast(name, by_type)
        casts += self._retype_io()
        graph.node.extend(casts)
        return len(casts)

    def fp32_nodes(self) -> tuple[str, ...]:
        """Names of the nodes that compute floats in FP32; Q and DQ do not count."""
        return tuple(
            node.name or node.output[0]
            for node, kind in zip(self.model.graph.node, self.nodes, strict=True)
            if kind == _FLOAT
            and self.floats.intersection(node.output)
            and node.op_type not in ("QuantizeLinear", "DequantizeLinear")
        )

    def _wanted(self, node: NodeProto, keep: set[str]) -> int:
        own = node.op_type in _OWN_TYPE
        constants = [] if node.op_type in _FLOAT32_SLOTS else [self.index.array(name) for name in node.input]
        overflow = any(array is not None and _overflows(array) for array in constants)
        return _FLOAT if own or overflow or keep.intersection((node.name, *node.output)) else _HALF

    def _current(self, name: str) -> int:
        return self.tensors.get(name, _FLOAT)

    def _retype_initializer(self, name: str, by_type: dict[int, list[tuple[NodeProto, int]]]) -> None:
        if _HALF not in by_type:
            return
        half = numpy_helper.from_array(numpy_helper.to_array(self.index.initializers[name]).astype(np.float16), name)
        if len(by_type) == 1:
            self.index.initializers[name].CopyFrom(half)
            return
        half.name = f"{name}_float16"
        self.model.graph.initializer.append(half)
        for node, slot in by_type[_HALF]:
            node.input[slot] = half.name

    def _cast(self, name: str, by_type: dict[int, list[tuple[NodeProto, int]]]) -> list[NodeProto]:
        casts = []
        for kind, readers in by_type.items():
            if kind != self._current(name):
                suffix = "float32" if kind == _FLOAT else "float16"
                casts.append(helper.make_node("Cast", [name], [f"{name}_{suffix}"], f"{name}/to_{suffix}", to=kind))
                for node, slot in readers:
                    node.input[slot] = f"{name}_{suffix}"
        return casts

    def _retype_io(self) -> list[NodeProto]:
        graph, casts = self.model.graph, []
        for entry in graph.input:
            if entry.name in self.floats:
                entry.type.tensor_type.elem_type = self.io_type
        for entry in graph.output:
            name = entry.name
            if name not in self.floats:
                continue
            entry.type.tensor_type.elem_type = self.io_type
            if self._current(name) != self.io_type:
                inner = f"{name}_{'float16' if self.io_type == _FLOAT else 'float32'}"
                for node in graph.node:
                    replace(node.output, [inner if output == name else output for output in node.output])
                    replace(node.input, [inner if used == name else used for used in node.input])
                casts.append(helper.make_node("Cast", [inner], [name], f"{name}/to_io", to=self.io_type))
        return casts


def _float_tensors(model: ModelProto) -> set[str]:
    """Names of all FP32 tensors of the graph."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    entries = (*inferred.input, *inferred.output, *inferred.value_info)
    found = {entry.name for entry in entries if entry.type.tensor_type.elem_type == _FLOAT}
    return found | {tensor.name for tensor in inferred.initializer if tensor.data_type == _FLOAT}


def _overflows(array: NDArray[np.generic]) -> bool:
    return bool(array.dtype == np.float32 and array.size and np.abs(array).max() > LARGEST_FP16)
