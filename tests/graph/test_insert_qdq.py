from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper
from small_graphs import graph, initializers, int8, kinds, normal, run, table, two_convs, uint8

from repq.errors import GraphError
from repq.graph import insert_qdq
from repq.layers import LayerId
from repq.scales import LayerScales, TensorScale


def test_before_and_after() -> None:
    model, weights = two_convs()
    result = insert_qdq(model, table(weights, second=int8(0.02)))
    assert sorted(kinds(result)) == ["Conv", "Conv", "DequantizeLinear", "DequantizeLinear", "QuantizeLinear", "Relu"]
    by_output = {node.output[0]: node for node in result.graph.node}
    activation, weight = (by_output[name] for name in by_output["y"].input)
    assert by_output[activation.input[0]].input[0] == "b", "between the activation and its reader"
    assert weight.input[0] == "second.weight"
    assert initializers(result)["first.weight"].dtype == np.float32, "layers out of the table stay float"


def test_the_input_is_untouched_and_the_result_repeats() -> None:
    model, weights = two_convs()
    before = model.SerializeToString(deterministic=True)
    scales = table(weights, first=int8(0.02), second=int8(0.03))
    once, again = insert_qdq(model, scales), insert_qdq(model, scales)
    assert model.SerializeToString(deterministic=True) == before
    assert once.SerializeToString(deterministic=True) == again.SerializeToString(deterministic=True)


def test_twice_is_once() -> None:
    model, weights = two_convs()
    scales = table(weights, first=int8(0.02), second=int8(0.03))
    once = insert_qdq(model, scales)
    assert insert_qdq(once, scales).SerializeToString(deterministic=True) == once.SerializeToString(deterministic=True)


def test_other_scales_on_a_quantized_layer_are_refused() -> None:
    model, weights = two_convs()
    once = insert_qdq(model, table(weights, first=int8(0.02)))
    wider = {name: 2 * value for name, value in weights.items()}
    with pytest.raises(GraphError, match="first is quantized already"):
        insert_qdq(once, table(wider, first=int8(0.02)))


@pytest.mark.parametrize("scale", [int8(0.021), uint8(0.017, 90)], ids=["int8", "uint8"])
def test_it_computes_what_fake_quantization_computes(scale: TensorScale) -> None:
    """The reference runs the float graph on values that were rounded beforehand: equal bit by bit."""
    model, weights = two_convs()
    x = normal(9, 1, 3, 8, 8)
    scales = table(weights, first=scale)
    steps = np.rint(x / scale.scale) + scale.zero_point
    rounded = (np.clip(steps, scale.q_min, scale.q_max) - np.float32(scale.zero_point)) * scale.scale
    weight_scale = scales[LayerId("first")].weight.scale.reshape(-1, 1, 1, 1)
    reference = ModelProto()
    reference.CopyFrom(model)
    first = next(t for t in reference.graph.initializer if t.name == "first.weight")
    fake = np.clip(np.rint(weights["first__weight"] / weight_scale), -128, 127) * weight_scale
    first.CopyFrom(numpy_helper.from_array(fake.astype(np.float32), first.name))
    np.testing.assert_array_equal(
        run(insert_qdq(model, scales), x=x)[0], run(reference, x=rounded.astype(np.float32))[0]
    )


def test_weights_are_stored_in_a_byte_each_with_explicit_zero_points() -> None:
    weight = normal(0, 64, 64, 3, 3)
    model = graph("g (float[1,64,8,8] x) => (float[1,64,6,6] y) { y = Conv(x, a__weight) }", a__weight=weight)
    result = insert_qdq(model, table({"a__weight": weight}, a=uint8(0.1, 7)))
    values = initializers(result)
    assert values["a.weight"].dtype == np.int8
    assert len(result.SerializeToString()) < len(model.SerializeToString()) / 3.8
    assert values["a.weight_zero_point"].dtype == np.int8
    assert values["a.weight_zero_point"].shape == (64,)
    assert values["a.input_zero_point"] == np.uint8(7)


TWO_READERS = """g (float[1,3,4,4] x) => (float[1,2,4,4] y, float[1,2,4,4] z) {
    y = Conv(x, a__weight)
    z = Conv(x, b__weight)
}"""


@pytest.mark.parametrize(("scales", "pairs"), [((0.1, 0.1), 1), ((0.1, 0.2), 2)], ids=["one scale", "two scales"])
def test_readers_share_a_pair_if_they_share_a_scale(scales: tuple[float, float], pairs: int) -> None:
    weights = {"a__weight": normal(0, 2, 3, 1, 1), "b__weight": normal(1, 2, 3, 1, 1)}
    result = insert_qdq(graph(TWO_READERS, **weights), table(weights, a=int8(scales[0]), b=int8(scales[1])))
    assert kinds(result).count("QuantizeLinear") == pairs


@pytest.mark.parametrize("axis", [None, 1])
def test_transposed_convolutions(axis: int | None) -> None:
    weight = normal(0, 3, 2, 2, 2)
    model = graph(
        "g (float[1,3,4,4] x) => (float[1,2,8,8] y) { y = ConvTranspose<strides=[2,2]>(x, a__weight) }",
        a__weight=weight,
    )
    shape = () if axis is None else (2,)
    scale = TensorScale(np.full(shape, 0.03, np.float32), np.zeros(shape, np.int8), "int8", axis)
    x = normal(1, 1, 3, 4, 4)
    result = insert_qdq(model, {LayerId("a"): LayerScales(int8(0.03), scale)})
    # three products of values up to 3, each factor off by at most half a step of 0.03
    np.testing.assert_allclose(run(result, x=x)[0], run(model, x=x)[0], atol=0.3)


def test_unknown_layers_and_misfits_are_refused() -> None:
    model, weights = two_convs()
    with pytest.raises(GraphError, match="third"):
        insert_qdq(model, table({"third__weight": weights["first__weight"]}, third=int8(0.1)))
    with pytest.raises(GraphError, match="do not fit"):
        insert_qdq(model, table({"second__weight": weights["first__weight"]}, second=int8(0.1)))


def test_a_weight_with_another_reader_is_not_edited() -> None:
    model = graph(
        """g (float[1,3,1,1] x) => (float[1,3,1,1] y, float[3,3,1,1] w) {
            y = Conv(x, a__weight)
            w = Neg(a__weight)
        }""",
        a__weight=normal(0, 3, 3, 1, 1),
    )
    with pytest.raises(GraphError, match="read by other nodes"):
        insert_qdq(model, table({"a__weight": normal(0, 3, 3, 1, 1)}, a=int8(0.1)))
