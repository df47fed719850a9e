"""Tensors keep their anchors from export to export, and the FP16 guard follows them."""

from __future__ import annotations

import numpy as np
import pytest
from family_graphs import SIZE, detector, float_graph, images, quantized_graph
from onnx import ModelProto
from small_graphs import int8, run, table, two_convs

from repq.export import export_float
from repq.graph import anchor_maxima, insert_qdq, nodes_beyond_fp16, tensor_maxima, to_fp16
from repq.graph.anchors import anchors_of
from repq.graph.surgeon import import_graph
from repq.layers import LayerId
from repq.recipe import ExportConfig
from repq.scales import LayerScales, TensorScale


def guarded(model: ModelProto, maxima: dict[str, float]) -> set[str]:
    """What stays in FP32, by anchor of the first output."""
    graph = import_graph(model)
    anchors, named = anchors_of(graph), {node.name or node.outputs[0].name: node for node in graph.nodes}
    return {anchors[named[name].outputs[0].name] for name in nodes_beyond_fp16(model, maxima)}


@pytest.mark.parametrize(("label", "batch"), [("n_v2", None), ("m (CSP)", 2), ("s_mbla (SiLU)", None), ("lite_s", 2)])
def test_another_export_of_the_model_guards_the_same_nodes(label: str, batch: int | None) -> None:
    fixed = float_graph(label)
    other = export_float(detector(label), SIZE, ExportConfig(batch=batch, opset=21))
    measured = tensor_maxima(fixed, [images()])
    maxima = anchor_maxima(fixed, measured)
    assert set(anchors_of(import_graph(fixed))) >= set(measured), "every measured tensor has an anchor"
    others = [other, quantized_graph(label)]
    for model in others:
        assert set(maxima) <= set(anchors_of(import_graph(model)).values())
    rng = np.random.default_rng(0)
    for share in (0.02, 0.2, 1):
        loud = {anchor: 1e5 if rng.random() < share else 1.0 for anchor in maxima}
        wanted = guarded(fixed, loud)
        assert wanted
        for model in others:
            # a dynamic batch adds a Slice that only a shape is taken from
            assert guarded(model, loud) & set(maxima) == wanted


def test_a_split_layer_is_guarded_whole() -> None:
    model, weights = two_convs()
    scales = table(weights, first=int8(0.02), second=int8(0.03))
    scale = scales[LayerId("second")]
    fine = TensorScale(scale.weight.scale / 254, scale.weight.zero_point, "int8", 0)
    scales[LayerId("second")] = LayerScales(scale.input, scale.weight, fine)
    split = insert_qdq(model, scales)
    for node in model.graph.node[2:]:
        node.name = "second"
    loud = anchor_maxima(model, {"a": 1.0, "b": 1.0, "y": 1e5})
    kept = nodes_beyond_fp16(split, loud)
    assert {"second.fine", "second.fine/Add"} < set(kept)
    half, _ = to_fp16(split, keep_fp32=kept)
    types = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    writers = [node for node in half.graph.node if node.op_type == "Conv" and node.output[0].startswith("y_")]
    dequantized = {node.output[0]: node.input[1] for node in half.graph.node if node.op_type == "DequantizeLinear"}
    assert len(writers) == 2
    assert all(types[dequantized[node.input[1]]] == 1 for node in writers), "both convolutions compute in FP32"
    x = np.random.default_rng(0).normal(0, 1, (1, 3, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(run(half, x=x)[0], run(split, x=x)[0], atol=0.5)


def test_maxima_by_tensor_name_serve_the_graph_that_they_are_of() -> None:
    model, _ = two_convs()
    by_name = {"a": 1e5, "b": 1.0, "y": 1.0}
    assert nodes_beyond_fp16(model, by_name) == nodes_beyond_fp16(model, anchor_maxima(model, by_name))
