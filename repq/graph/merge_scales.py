r"""One scale for all tensors of a group (``repq.graph.scale_groups``), so that no kernel has to rescale between them.

Before::

    a -> Q(0.02) -> DQ(0.02) -> Concat -> Conv          a -> Q(0.07) -> DQ(0.07) -> Conv
    b -> Q(0.05) -> DQ(0.05) -/

After::

    a -> Q(0.07) -> DQ(0.07) -> Concat -> Conv
    b -> Q(0.07) -> DQ(0.07) -/
    (the same pair of a) -----> Conv

Symmetric scales become the largest of the group, asymmetric ones cover the union of the ranges: nothing that was inside
a range is cut off, and tensors with smaller values are rounded more coarsely. Equal pairs on one tensor then become one
and move up through the operators that copy values (``propagate_qdq``).

Source: the YOLOv6 team's article on quantized deployment (Meituan, 2022), on equal scales for diverging branches;
NVIDIA TensorRT Developer Guide, "Working with Quantized Types".
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, numpy_helper

from repq.graph.extra_kernels import QdqCounts, count_qdq
from repq.graph.index import GraphIndex
from repq.graph.int8_flow import Parameters, parameters_of
from repq.graph.propagate_qdq import propagate_qdq
from repq.graph.scale_groups import joined_tensors, quantized_value


@dataclass(frozen=True)
class MergedGroup:
    """Tensors that had unequal scales and now share ``scale``; ``before`` lists the different ones, smallest first."""

    tensors: tuple[str, ...]
    before: tuple[float, ...]
    scale: float


@dataclass(frozen=True)
class MergeReport:
    """What merging changed: the groups, and the counts of Q, DQ and predicted extra kernels."""

    groups: tuple[MergedGroup, ...]
    before: QdqCounts
    after: QdqCounts


def merge_scales(model: ModelProto, *, residual_adds: bool = True) -> tuple[ModelProto, MergeReport]:
    """Return a copy of a Q/DQ graph in which every group has one scale, and a report. A second run changes nothing.

    Args:
        model: a Q/DQ graph, symmetric or asymmetric.
        residual_adds: whether the two inputs of a residual add share a scale.
    """
    result = ModelProto()
    result.CopyFrom(model)
    groups = tuple(_merge(result.graph, nodes) for nodes in unequal_groups(result, residual_adds))
    result = propagate_qdq(result)
    return result, MergeReport(groups, count_qdq(model), count_qdq(result))


def unequal_groups(model: ModelProto, residual_adds: bool = True) -> list[dict[str, list[NodeProto]]]:
    """Groups that hold several scales: the quantized tensors of each and their Q and DQ nodes, in graph order."""
    index = GraphIndex.of(model.graph)
    sets = joined_tensors(model, index, residual_adds=residual_adds)
    members: dict[str, dict[str, list[NodeProto]]] = defaultdict(lambda: defaultdict(list))
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and parameters_of(node, index) is not None:
            tensor = quantized_value(node.input[0], index)
            if tensor not in index.initializers:
                members[sets.find(tensor)][tensor].append(node)
    return [group for group in members.values() if len(_parameters(group, index)) > 1]


def _parameters(group: dict[str, list[NodeProto]], index: GraphIndex) -> set[Parameters]:
    found = {parameters_of(node, index) for nodes in group.values() for node in nodes}
    return {parameters for parameters in found if parameters is not None}


def _merge(graph: GraphProto, group: dict[str, list[NodeProto]]) -> MergedGroup:
    index = GraphIndex.of(graph)
    several = sorted(_parameters(group, index), key=lambda parameters: parameters.scale)
    shared = Parameters.covering(several)
    nodes = [node for nodes in group.values() for node in nodes]
    types = {numpy_helper.to_array(index.initializers[node.input[1]]).dtype for node in nodes}
    stem = f"{next(iter(group))}.shared"
    while f"{stem}_zero_point" in index.initializers:
        stem += "_again"
    graph.initializer.append(numpy_helper.from_array(np.array(shared.zero_point, shared.dtype), f"{stem}_zero_point"))
    for dtype in sorted(types, key=str):
        graph.initializer.append(numpy_helper.from_array(np.array(shared.scale, dtype), f"{stem}_scale_{dtype}"))
    for node in nodes:
        dtype = numpy_helper.to_array(index.initializers[node.input[1]]).dtype
        del node.input[1:]
        node.input.extend([f"{stem}_scale_{dtype}", f"{stem}_zero_point"])
    return MergedGroup(tuple(group), tuple(sorted({p.scale for p in several})), shared.scale)
