"""What passes see in a model, for tests that give and want models, not imported graphs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

from onnx import ModelProto

from repq.graph import run_passes
from repq.graph.extra_kernels import ExtraKernel, extra_kernels
from repq.graph.fp16 import decoding
from repq.graph.grouping import joined_tensors
from repq.graph.integer_concat import restore_pairs
from repq.graph.integers import activation_pairs, quantized_value
from repq.graph.passes import PassContext
from repq.graph.residuals import float_operands
from repq.graph.surgeon import import_graph
from repq.layers import LayerId
from repq.recipe import ExportConfig, NmsConfig, PreprocessConfig


def for_serving(model: ModelProto, preprocess: PreprocessConfig, nms: NmsConfig | None) -> ModelProto:
    """The model with this work inside."""
    return run_passes(model, PassContext(ExportConfig(preprocess=preprocess, nms=nms)))[0]


def predict_extra_kernels(model: ModelProto) -> tuple[ExtraKernel, ...]:
    graph = import_graph(model)
    restore_pairs(graph)
    return extra_kernels(graph)


def decode_nodes(model: ModelProto) -> tuple[str, ...]:
    return decoding(import_graph(model))


def residual_operands(model: ModelProto) -> tuple[str, ...]:
    """Tensors that ``quantize_residuals`` would give a borrowed scale."""
    graph = import_graph(model)
    pairs = {pair.source.name for pair in activation_pairs(graph)}
    return tuple(name for name in float_operands(graph) if name not in pairs)


def scale_groups(
    model: ModelProto, int8_layers: Collection[LayerId] | None = None, *, residual_adds: bool = True
) -> tuple[tuple[str, ...], ...]:
    """The groups of two or more tensors that must share a scale, in graph order, without the outputs of Q and DQ."""
    graph = import_graph(model)
    outputs = [tensor for node in graph.nodes for tensor in node.outputs if quantized_value(tensor) is tensor]
    sets = joined_tensors(graph, int8_layers, residual_adds=residual_adds)
    members: dict[str, list[str]] = defaultdict(list)
    for tensor in (*graph.inputs, *outputs):
        members[sets.find(tensor.name)].append(tensor.name)
    return tuple(tuple(group) for group in members.values() if len(group) > 1)
