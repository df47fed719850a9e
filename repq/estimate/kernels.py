"""The kernels that TensorRT is expected to run for a graph, and the work of each.

- A convolution takes in the activation behind it and, of a residual addition, the other operand.
- Element-wise operators that follow one another are one kernel.
- Operators that only rename values (Reshape, Split, Concat …) are none: layers write to where they are read.
- Q and DQ are none either, but for the extra kernels that ``repq.graph.extra_kernels`` predicts; a tensor between two
  INT8 kernels has a byte per value.
- Everything else reads its inputs once and writes its outputs once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Literal

import onnx
from onnx import ModelProto, NodeProto, TensorProto

from repq.errors import GraphError
from repq.graph import predict_extra_kernels
from repq.graph.extra_kernels import ELEMENTWISE, writes_integers
from repq.graph.index import GraphIndex
from repq.graph.int8_flow import WEIGHTED_OPS, has_int8_weight, is_int8_layer

Precision = Literal["int8", "float16", "float32"]
Shape = tuple[int, ...]

_RENAMES = frozenset(
    {"Concat", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Unsqueeze", "Expand"}
)
_CHANGES_TYPE = frozenset({"QuantizeLinear", "DequantizeLinear", "Cast"})
_SHAPE_WORK = frozenset({"Shape", "ConstantOfShape", "Range", "Constant"})
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
    nodes: list[NodeProto] = field(default_factory=list, repr=False)


@dataclass(frozen=True)
class Work:
    """The kernels of a graph, the extra ones among them at the end, and what could not be counted."""

    kernels: tuple[Kernel, ...]
    extra: tuple[Kernel, ...]
    notes: tuple[str, ...]


def kernels_of(model: ModelProto) -> Work:
    """Count the work of a graph for one image.

    Raises:
        GraphError: shapes other than the batch size are not known.
    """
    single = _for_one_image(model)
    graph = _Shapes.of(single)
    kernels, unknown = [], []
    for kernel in _fuse(graph):
        if graph.knows(kernel):
            _count(kernel, graph)
            kernels.append(kernel)
        else:
            unknown.append(kernel.kind)
    predicted = predict_extra_kernels(single)
    extra = [Kernel(found.tensor, found.kind, graph.float_type(found.tensor)) for found in predicted]
    for kernel in extra:
        kernel.activation_bytes = _conversion(kernel.name, graph)
    notes = [f"left out, its size is known to the run alone: {', '.join(sorted(set(unknown)))}"] if unknown else []
    return Work(tuple(kernels), tuple(extra), tuple(notes))


@dataclass(frozen=True)
class _Shapes:
    """A graph with the shape and type of every tensor."""

    model: ModelProto
    index: GraphIndex
    shapes: dict[str, Shape]
    types: dict[str, int]

    @classmethod
    def of(cls, model: ModelProto) -> _Shapes:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        shapes: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in inferred.initializer}
        types = {tensor.name: tensor.data_type for tensor in inferred.initializer}
        for entry in (*inferred.input, *inferred.value_info, *inferred.output):
            dims = entry.type.tensor_type.shape.dim
            types[entry.name] = entry.type.tensor_type.elem_type
            if all(dim.HasField("dim_value") for dim in dims):
                shapes[entry.name] = tuple(dim.dim_value for dim in dims)
        return cls(model, GraphIndex.of(model.graph), shapes, types)

    def size(self, tensor: str) -> int:
        return prod(self.shapes[tensor])

    def knows(self, kernel: Kernel) -> bool:
        """Whether every size that a kernel depends on is known.

        Raises:
            GraphError: it is not, of a convolution.
        """
        names = [name for node in kernel.nodes for name in (*node.input, *node.output) if name]
        unknown = [name for name in names if name not in self.shapes]
        if unknown and kernel.kind in ("Conv", "ConvTranspose"):
            raise GraphError(
                f"the work of {kernel.name} is not known",
                found=f"{unknown[0]!r} has a size that only the run knows",
                fix="estimate a graph of one image size: export with --imgsz",
            )
        return not unknown

    def float_type(self, tensor: str) -> Precision:
        return "float16" if self.types.get(tensor) == TensorProto.FLOAT16 else "float32"

    def computed(self, tensor: str) -> bool:
        return bool(tensor) and tensor not in self.index.initializers


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
    del single.graph.value_info[:]
    for output in single.graph.output:
        output.type.tensor_type.ClearField("shape")
    return single


def _fuse(graph: _Shapes) -> list[Kernel]:
    kernels: list[Kernel] = []
    owner: dict[str, Kernel] = {}
    for node in graph.model.graph.node:
        if node.op_type in _RENAMES | _CHANGES_TYPE | _SHAPE_WORK or not any(map(graph.computed, node.input)):
            continue
        kernel = _open_kernel(node, owner, graph) if node.op_type in ELEMENTWISE else None
        if kernel is None:
            kernel = Kernel(node.name or node.output[0], _kind(node), _precision(node, graph))
            kernels.append(kernel)
        kernel.nodes.append(node)
        owner.update(dict.fromkeys(node.output, kernel))
    return kernels


def _open_kernel(node: NodeProto, owner: dict[str, Kernel], graph: _Shapes) -> Kernel | None:
    """The kernel that takes ``node`` in: the latest that computes an input of the output's size and is not closed."""
    size = _elements(node.output[0], graph)
    found = [
        owner[source]
        for name in node.input
        for source in _sources(name, graph)
        if source in owner and _elements(source, graph) == size
    ]
    open_ones = [kernel for kernel in found if kernel.kind in WEIGHTED_OPS or kernel.kind == "pointwise"]
    return open_ones[-1] if open_ones else None


def _elements(tensor: str, graph: _Shapes) -> int | None:
    return graph.size(tensor) if tensor in graph.shapes else None


def _kind(node: NodeProto) -> str:
    return "pointwise" if node.op_type in ELEMENTWISE else node.op_type


def _precision(node: NodeProto, graph: _Shapes) -> Precision:
    if node.op_type in WEIGHTED_OPS and is_int8_layer(node, graph.index):
        return "int8"
    return graph.float_type(node.output[0])


def _sources(tensor: str, graph: _Shapes) -> list[str]:
    """The tensors that kernels write and that ``tensor`` is made of."""
    producer = graph.index.producers.get(tensor)
    if producer is None or producer.op_type not in _RENAMES | _CHANGES_TYPE:
        return [tensor]
    values = producer.input if producer.op_type == "Concat" else producer.input[:1]
    return [source for name in values for source in _sources(name, graph)]


def _count(kernel: Kernel, graph: _Shapes) -> None:
    own = {name for node in kernel.nodes for name in node.output}
    reads: dict[str, int] = {}
    for node in kernel.nodes:
        for slot, name in enumerate(node.input):
            if not name:
                continue
            weight = _weight_bytes(node, slot, name, graph)
            if weight is not None:
                kernel.weight_bytes += weight
            elif graph.computed(name) and not own.intersection(_sources(name, graph)):
                reads[name] = graph.size(name) * _read_bytes(name, graph)
        if node.op_type in WEIGHTED_OPS:
            _count_product(kernel, node, graph)
        else:
            kernel.vector_flops += sum(graph.size(name) for name in node.output if name)
    written = sum(
        graph.size(name) * _written_bytes(name, node, graph)
        for node in kernel.nodes
        for name in node.output
        if name and _leaves(name, kernel, graph)
    )
    kernel.activation_bytes = sum(reads.values()) + written


def _weight_bytes(node: NodeProto, slot: int, name: str, graph: _Shapes) -> int | None:
    """Bytes of a constant that a kernel reads; None: the tensor is computed."""
    if name in graph.index.initializers:
        return graph.size(name) * _BYTES[graph.float_type(name)]
    if slot == 1 and node.op_type in WEIGHTED_OPS and has_int8_weight(node, graph.index):
        return graph.size(name)
    return None


def _count_product(kernel: Kernel, node: NodeProto, graph: _Shapes) -> None:
    out, weight, data = (graph.shapes[name] for name in (node.output[0], node.input[1], node.input[0]))
    if node.op_type in ("Conv", "ConvTranspose"):
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        if node.op_type == "Conv":
            rows, columns, depth = prod(out[2:]), weight[0] // groups, prod(weight[1:])
        else:
            rows, columns, depth = prod(data[2:]), weight[1] * prod(weight[2:]), weight[0] // groups
        kernel.groups = groups
    else:
        rows, columns, depth = prod(out[:-1]), out[-1], weight[-2] if len(weight) > 1 else weight[0]
    kernel.gemm = (rows, columns, depth)
    kernel.flops += 2 * rows * columns * depth * kernel.groups


def _read_bytes(tensor: str, graph: _Shapes) -> int:
    """Bytes per value as the tensor lies in memory: one if it comes out of a DQ."""
    producer = graph.index.producers.get(tensor)
    while producer is not None and producer.op_type in _RENAMES:
        producer = graph.index.producers.get(producer.input[0])
    if producer is not None and producer.op_type == "DequantizeLinear":
        return 1
    kind = graph.types.get(tensor)
    return 1 if kind in (TensorProto.UINT8, TensorProto.INT8) else _BYTES[graph.float_type(tensor)]


def _written_bytes(tensor: str, node: NodeProto, graph: _Shapes) -> int:
    readers = _final_readers(tensor, graph)
    quantized = bool(readers) and all(kind == "QuantizeLinear" for kind in readers)
    if quantized and (writes_integers(node, graph.index) or node.op_type not in WEIGHTED_OPS):
        return 1
    return _BYTES[graph.float_type(tensor)]


def _leaves(tensor: str, kernel: Kernel, graph: _Shapes) -> bool:
    """Whether a tensor is read outside its kernel."""
    inside = {id(node) for node in kernel.nodes}
    outside = any(id(use.node) not in inside for use in graph.index.uses_of(tensor))
    return tensor in graph.index.outputs or outside


def _final_readers(tensor: str, graph: _Shapes) -> list[str]:
    found: list[str] = ["output"] if tensor in graph.index.outputs else []
    for use in graph.index.uses_of(tensor):
        if use.node.op_type in _RENAMES | {"Cast"}:
            found += [kind for name in use.node.output for kind in _final_readers(name, graph)]
        else:
            found.append(use.node.op_type)
    return found


def _conversion(tensor: str, graph: _Shapes) -> int:
    """An extra kernel reads the tensor in float and writes bytes, or the other way round."""
    return graph.size(tensor) * (_BYTES[graph.float_type(tensor)] + 1)
