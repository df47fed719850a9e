r"""One scale for all tensors of a group (``repq.graph.grouping``), so that no kernel has to rescale between them.

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
import onnx_graphsurgeon as gs
from onnx import ModelProto

from repq.graph.extra_kernels import count_qdq
from repq.graph.grouping import joined_tensors
from repq.graph.integers import Parameters, activation_quantizers, parameters_of, quantized_value
from repq.graph.propagation import propagate
from repq.graph.surgeon import export_graph, import_graph
from repq.results import QdqCount


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
    before: QdqCount
    after: QdqCount


def merge_scales(model: ModelProto) -> tuple[ModelProto, MergeReport]:
    """Return a Q/DQ graph in which every group has one scale, and a report. A second run changes nothing.

    Args:
        model: a Q/DQ graph, symmetric or asymmetric.
    """
    graph = import_graph(model)
    groups = merge(graph)
    result = export_graph(graph) if propagate(graph) or groups else model
    return result, MergeReport(groups, count_qdq(model), count_qdq(result))


def merge(graph: gs.Graph) -> tuple[MergedGroup, ...]:
    """Give every group one scale, in place, without moving any pair."""
    return tuple(_merge(graph, nodes) for nodes in unequal_groups(graph))


def unequal_groups(graph: gs.Graph, residual_adds: bool = True) -> list[dict[str, list[gs.Node]]]:
    """Groups that hold several scales: the quantized tensors of each and their Q and DQ nodes, in graph order."""
    sets = joined_tensors(graph, residual_adds=residual_adds)
    members: dict[str, dict[str, list[gs.Node]]] = defaultdict(lambda: defaultdict(list))
    for node in activation_quantizers(graph):
        if parameters_of(node) is not None:
            tensor = quantized_value(node.inputs[0]).name
            members[sets.find(tensor)][tensor].append(node)
    return [group for group in members.values() if len(_parameters(group)) > 1]


def _parameters(group: dict[str, list[gs.Node]]) -> set[Parameters]:
    return {found for nodes in group.values() for node in nodes if (found := parameters_of(node)) is not None}


def _merge(graph: gs.Graph, group: dict[str, list[gs.Node]]) -> MergedGroup:
    several = sorted(_parameters(group), key=lambda parameters: parameters.scale)
    shared = Parameters.covering(several)
    names, stem = graph.tensors(), f"{next(iter(group))}.shared"
    while f"{stem}_zero_point" in names:
        stem += "_again"
    zero_point = gs.Constant(f"{stem}_zero_point", np.array(shared.zero_point, shared.dtype))
    scales: dict[str, gs.Constant] = {}
    for nodes in group.values():
        for node in nodes:
            kind = str(np.dtype(node.inputs[1].dtype))
            scale = scales.setdefault(kind, gs.Constant(f"{stem}_scale_{kind}", np.array(shared.scale, kind)))
            node.inputs = [node.inputs[0], scale, zero_point]
            if node.op == "QuantizeLinear":
                node.attrs.pop("output_dtype", None)  # the zero point says it
    return MergedGroup(tuple(group), tuple(sorted({p.scale for p in several})), shared.scale)
