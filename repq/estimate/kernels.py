"""The kernels that TensorRT is expected to run for a graph, and the work of each.

- A convolution takes in the activation behind it and, of a residual addition, the other operand.
- Element-wise operators that follow one another are one kernel.
- Operators that only rename values (Reshape, Split, Concat …) are none: layers write to where they are read.
- Q and DQ are none either, but for the extra kernels that ``repq.graph.extra_kernels`` predicts; a tensor between two
  INT8 kernels has a byte per value.
- Everything else reads its inputs once and writes its outputs once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Literal

import onnx_graphsurgeon as gs
from onnx import ModelProto, TensorProto

from repq.errors import GraphError
from repq.graph.extra_kernels import ELEMENTWISE, extra_kernels, writes_integers
from repq.graph.integer_concat import restore_pairs
from repq.graph.integers import VIEWS, WEIGHTED_OPS, has_int8_weight, is_int8_layer, is_integer_operator, values_of
from repq.graph.surgeon import element_type, import_graph, is_constant, is_output, producer, title
from repq.layers import CONVOLUTIONS

Precision = Literal["int8", "float16", "float32"]

_RENAMES = VIEWS | {"Expand", "Gather"}
_CHANGES_TYPE = frozenset({"QuantizeLinear", "DequantizeLinear", "Cast"})
_SHAPE_WORK = frozenset({"Shape", "ConstantOfShape", "Range"})
_BYTES: dict[Precision, int] = {"int8": 1, "float16": 2, "float32": 4}


@dataclass
class Kernel:
    """One kernel and its work for one image.

    Attributes:
        gemm: rows, columns and depth of the product that a convolution is, per group; None: it is none.
        flops: multiplications and additions of the product; vector_flops: of the element-wise operators with it.
        activation_bytes: read and written for every image; weight_bytes: read once a batch.
    """

    name: str
    kind: str
    precision: Precision
    flops: int = 0
    vector_flops: int = 0
    gemm: tuple[int, int, int] | None = None
    groups: int = 1
    activation_bytes: int = 0
    weight_bytes: int = 0
    nodes: list[gs.Node] = field(default_factory=list, repr=False)


@dataclass(frozen=True)
class Work:
    """The kernels of a graph, the extra ones among them at the end, and what could not be counted."""

    kernels: tuple[Kernel, ...]
    extra: tuple[Kernel, ...]
    notes: tuple[str, ...]


def kernels_of(model: ModelProto) -> Work:
    """Count the work of a graph for one image.

    Raises:
        GraphError: shapes other than the batch size are not known, or it is a graph of integer operators.
    """
    graph = import_graph(_for_one_image(model), shapes=True)
    if found := sorted({node.op for node in graph.nodes if is_integer_operator(node)}):
        raise GraphError(
            "the work of integer operators is not known", found=", ".join(found),
            fix="estimate the Q/DQ graph: export without --for, or for another runtime than ONNX Runtime",
        )  # fmt: skip
    restore_pairs(graph)
    kernels, unknown = [], []
    foreign = sorted({f"{node.domain}.{node.op}" for node in graph.nodes if node.domain not in (None, "", "ai.onnx")})
    for kernel in _fuse(graph):
        if _is_known(kernel, foreign):
            _count(kernel, graph)
            kernels.append(kernel)
        else:
            unknown.append(kernel.kind)
    tensors, extra = graph.tensors(), []
    for entry in extra_kernels(graph):
        tensor = tensors[entry.tensor]
        if not _has_size(tensor):
            unknown.append(entry.kind)
            continue
        moved = _size(tensor) * (_BYTES[_float_type(tensor)] + 1)  # it reads floats and writes bytes, or vice versa
        extra.append(Kernel(entry.tensor, entry.kind, _float_type(tensor), activation_bytes=moved))
    notes = [f"left out, its size is known to the run alone: {', '.join(sorted(set(unknown)))}"] if unknown else []
    return Work(tuple(kernels), tuple(extra), tuple(notes))


def _for_one_image(model: ModelProto) -> ModelProto:
    """The graph with a batch of one, where the batch is free."""
    single = ModelProto()
    single.CopyFrom(model)
    for entry in single.graph.input:
        dims = entry.type.tensor_type.shape.dim
        if len(dims) and not dims[0].HasField("dim_value"):
            dims[0].dim_value = 1
        elif len(dims) == 4 and dims[0].dim_value > 1:
            raise GraphError(
                "the graph is exported for a batch of its own",
                found=f"batch {dims[0].dim_value}",
                fix="estimate the graph of one image, or of a dynamic batch; --batch says how many run at once",
            )
    for node in single.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            node.domain = ""  # ONNX Runtime's own are those of ONNX, for more types
    del single.graph.value_info[:]
    for output in single.graph.output:
        output.type.tensor_type.ClearField("shape")
    return single


def _has_size(tensor: gs.Tensor) -> bool:
    return tensor.shape is not None and all(isinstance(size, int) for size in tensor.shape)


def _size(tensor: gs.Tensor) -> int:
    return prod(tensor.shape)


def _float_type(tensor: gs.Tensor) -> Precision:
    return "float16" if element_type(tensor) == TensorProto.FLOAT16 else "float32"


def _is_computed(tensor: gs.Tensor) -> bool:
    return not tensor.is_empty() and not is_constant(tensor)


def _is_known(kernel: Kernel, foreign: Sequence[str]) -> bool:
    """Whether every size that a kernel depends on is known; what ``foreign`` operators write has none.

    Raises:
        GraphError: it is not, of a convolution.
    """
    tensors = [tensor for node in kernel.nodes for tensor in node.inputs + node.outputs if not tensor.is_empty()]
    unknown = [tensor.name for tensor in tensors if not _has_size(tensor)]
    if unknown and kernel.kind in CONVOLUTIONS:
        behind = f", behind {', '.join(foreign)}" if foreign else ""
        raise GraphError(
            f"the work of {kernel.name} is not known",
            found=f"{unknown[0]!r} has a size that only the run knows{behind}",
            fix="estimate a graph of ONNX's own operators" if foreign
            else "estimate a graph of one image size: export with --imgsz",
        )  # fmt: skip
    return not unknown


def _fuse(graph: gs.Graph) -> list[Kernel]:
    kernels: list[Kernel] = []
    owner: dict[str, Kernel] = {}
    for node in graph.nodes:
        if node.op in _RENAMES | _CHANGES_TYPE | _SHAPE_WORK or not any(map(_is_computed, node.inputs)):
            continue
        kernel = _open_kernel(node, owner) if node.op in ELEMENTWISE else None
        if kernel is None:
            kind = "pointwise" if node.op in ELEMENTWISE else node.op
            int8 = node.op in WEIGHTED_OPS and is_int8_layer(node)
            kernel = Kernel(title(node), kind, "int8" if int8 else _float_type(node.outputs[0]))
            kernels.append(kernel)
        kernel.nodes.append(node)
        owner.update((tensor.name, kernel) for tensor in node.outputs)
    return kernels


def _open_kernel(node: gs.Node, owner: dict[str, Kernel]) -> Kernel | None:
    """The kernel that takes ``node`` in: the latest that computes an input of the output's size and is not closed."""
    size = _elements(node.outputs[0])
    found = [
        owner[source.name]
        for tensor in node.inputs
        for source in _sources(tensor)
        if source.name in owner and _elements(source) == size
    ]
    open_ones = [kernel for kernel in found if kernel.kind in WEIGHTED_OPS or kernel.kind == "pointwise"]
    return open_ones[-1] if open_ones else None


def _elements(tensor: gs.Tensor) -> int | None:
    return _size(tensor) if _has_size(tensor) else None


def _sources(tensor: gs.Tensor) -> list[gs.Tensor]:
    """The tensors that kernels write and that ``tensor`` is made of."""
    node = producer(tensor)
    if node is None or node.op not in _RENAMES | _CHANGES_TYPE:
        return [tensor]
    return [source for value in values_of(node) for source in _sources(value)]


def _count(kernel: Kernel, graph: gs.Graph) -> None:
    own = {tensor.name for node in kernel.nodes for tensor in node.outputs}
    reads: dict[str, int] = {}
    for node in kernel.nodes:
        for slot, tensor in enumerate(node.inputs):
            if is_constant(tensor):
                kernel.weight_bytes += _size(tensor) * _BYTES[_float_type(tensor)]
            elif slot == 1 and has_int8_weight(node):
                kernel.weight_bytes += _size(tensor)
            elif not tensor.is_empty() and not own.intersection(source.name for source in _sources(tensor)):
                reads[tensor.name] = _size(tensor) * _read_bytes(tensor)
        if node.op in WEIGHTED_OPS:
            _count_product(kernel, node)
        else:
            kernel.vector_flops += sum(_size(tensor) for tensor in node.outputs if not tensor.is_empty())
    inside = {id(node) for node in kernel.nodes}
    written = sum(
        _size(tensor) * _written_bytes(tensor, node, graph)
        for node in kernel.nodes
        for tensor in node.outputs
        if not tensor.is_empty()
        and (is_output(graph, tensor) or any(id(reader) not in inside for reader in tensor.outputs))
    )
    kernel.activation_bytes = sum(reads.values()) + written


def _count_product(kernel: Kernel, node: gs.Node) -> None:
    out, weight, data = (tuple(tensor.shape) for tensor in (node.outputs[0], node.inputs[1], node.inputs[0]))
    if node.op in CONVOLUTIONS:
        groups = node.attrs.get("group", 1)
        if node.op == "Conv":
            rows, columns, depth = prod(out[2:]), weight[0] // groups, prod(weight[1:])
        else:
            rows, columns, depth = prod(data[2:]), weight[1] * prod(weight[2:]), weight[0] // groups
        kernel.groups = groups
    else:
        rows, columns, depth = prod(out[:-1]), out[-1], data[0 if node.attrs.get("transA") else -1]
    kernel.gemm = (rows, columns, depth)
    kernel.flops += 2 * rows * columns * depth * kernel.groups


def _read_bytes(tensor: gs.Tensor) -> int:
    """Bytes per value as the tensor lies in memory: one if it comes out of a DQ."""
    node = producer(tensor)
    while node is not None and node.op in _RENAMES:
        node = producer(node.inputs[0])
    dequantized = node is not None and node.op == "DequantizeLinear"
    if dequantized or element_type(tensor) in (TensorProto.UINT8, TensorProto.INT8):
        return 1
    return _BYTES[_float_type(tensor)]


def _written_bytes(tensor: gs.Tensor, node: gs.Node, graph: gs.Graph) -> int:
    readers = _final_readers(tensor, graph)
    quantized = bool(readers) and all(kind == "QuantizeLinear" for kind in readers)
    if quantized and (writes_integers(node) or node.op not in WEIGHTED_OPS):
        return 1
    return _BYTES[_float_type(tensor)]


def _final_readers(tensor: gs.Tensor, graph: gs.Graph) -> list[str]:
    found: list[str] = ["output"] if is_output(graph, tensor) else []
    for node in tensor.outputs:
        if node.op in _RENAMES | {"Cast"}:
            found += [kind for output in node.outputs for kind in _final_readers(output, graph)]
        else:
            found.append(node.op)
    return found
