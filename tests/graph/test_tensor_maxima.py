"""Maxima on real inputs, and the nodes that they keep in FP32."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto
from onnx.reference import ReferenceEvaluator
from small_graphs import graph, normal, run, two_convs

from repq.errors import GraphError
from repq.graph import GraphMetadata, nodes_beyond_fp16, read_metadata, tensor_maxima, to_fp16, write_metadata


def test_maxima_are_those_of_the_tensors() -> None:
    model, _ = two_convs()
    batches = [normal(seed, 1, 3, 8, 8) for seed in (7, 8)]
    found = tensor_maxima(model, batches, threads=1)
    assert list(found) == ["a", "b", "y"]
    values = [ReferenceEvaluator(with_outputs(model, "a", "b")).run(None, {"x": batch}) for batch in batches]
    for index, name in enumerate(("y", "a", "b")):
        assert found[name] == pytest.approx(max(np.abs(outputs[index]).max() for outputs in values), rel=1e-5)


def with_outputs(model: ModelProto, *names: str) -> ModelProto:
    result = ModelProto()
    result.CopyFrom(model)
    result.graph.output.extend(ValueInfoProto(name=name) for name in names)
    return result


@pytest.mark.parametrize(
    "operator", ["Relu", "Sigmoid", "HardSigmoid", "HardSigmoid<alpha=0.3, beta=0.1>", "HardSwish"]
)
@pytest.mark.parametrize(("low", "high"), [(-9, 12), (-9, 0.5), (-9, -5), (-1, 1), (-1.2, -0.1), (2, 4), (-1e5, 1e5)])
def test_maxima_that_follow_from_those_before_are_those_of_the_tensors(operator: str, low: float, high: float) -> None:
    text = "g (float[1,3,64,64] x) => (float[1,3,64,64] y) { a = Add(x, nothing) b = ACT(a) y = Identity(b) }"
    model = graph(text.replace("ACT", operator.replace("<", " <")), nothing=np.zeros(1, np.float32))
    x = np.linspace(low, high, 3 * 64 * 64, dtype=np.float32).reshape(1, 3, 64, 64)
    found = tensor_maxima(model, [x[:, :, ::-1], x], threads=1)
    wanted = np.abs(ReferenceEvaluator(with_outputs(model, "b")).run(None, {"x": x})[1]).max()
    assert found["b"] == found["y"] == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def test_what_overflows_is_kept_in_fp32_and_named() -> None:
    """The first layer's result is beyond FP16, the second brings it back: only FP16 alone would lose everything."""
    weights = {
        "first__weight": 4e3 * np.abs(normal(1, 4, 3, 3, 3)),
        "second__weight": 1e-4 * np.abs(normal(3, 5, 4, 1, 1)),
    }
    text = """g (float[1,3,8,8] x) => (float[1,5,6,6] y) {
        a = Conv(x, first__weight)
        b = Relu(a)
        y = Conv(b, second__weight)
    }"""
    model = graph(text, **weights)
    for node in model.graph.node:
        node.name = node.output[0]
    x = np.abs(normal(5, 1, 3, 8, 8)) + 1
    maxima = tensor_maxima(model, [x])
    assert maxima["a"] > 65504 > maxima["y"]
    kept = nodes_beyond_fp16(model, maxima)
    assert kept == ("a", "b", "y")
    assert not np.isfinite(in_half(to_fp16(model)[0], x)).all()
    half, report = to_fp16(model, keep_fp32=kept)
    assert set(kept) <= set(report.fp32_nodes)
    np.testing.assert_allclose(in_half(half, x), run(model, x=x)[0], rtol=1e-5)


def in_half(model: ModelProto, x: NDArray) -> NDArray:
    """ONNX's own reference really computes in FP16; ONNX Runtime takes FP32 for it on the CPU."""
    return np.asarray(ReferenceEvaluator(model).run(None, {"x": x})[0])


def test_maxima_of_another_graph_are_refused() -> None:
    model, _ = two_convs()
    with pytest.raises(GraphError, match="another one"):
        nodes_beyond_fp16(model, {"nowhere": 1e9})
    assert nodes_beyond_fp16(model, {"nowhere": 1.0}) == ()


def test_no_images_and_values_that_are_not_finite_are_refused() -> None:
    model = graph("g (float[1,2] x) => (float[1,2] y) { y = Div(x, c) }", c=np.zeros((1, 2), np.float32))
    with pytest.raises(GraphError, match="not finite"):
        tensor_maxima(model, [])
    with pytest.raises(GraphError, match="not finite"):
        tensor_maxima(model, [np.ones((1, 2), np.float32)])


def test_maxima_travel_in_the_metadata() -> None:
    model, _ = two_convs()
    metadata = GraphMetadata("1", "{}", 1, None, (8, 8), maxima={"a": 1.5})
    write_metadata(model, metadata)
    assert read_metadata(model) == metadata
