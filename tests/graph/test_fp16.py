from __future__ import annotations

import numpy as np
import onnx
import onnx.reference
import pytest
from graph_views import decode_nodes
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto
from small_graphs import graph, initializers, int8, kinds, normal, run, table, two_convs

from repq.errors import GraphError
from repq.graph import insert_qdq, nodes_beyond_fp16, to_fp16
from repq.graph.surgeon import import_graph
from repq.onnx_file import with_shapes

X = normal(9, 1, 3, 8, 8)


def types(model: ModelProto) -> dict[str, int]:
    entries = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    return {entry.name: entry.type.tensor_type.elem_type for entry in entries}


def test_a_float_graph_becomes_fp16_with_casts_at_its_ends() -> None:
    model, weights = two_convs()
    before = model.SerializeToString(deterministic=True)
    half, report = to_fp16(model)
    assert model.SerializeToString(deterministic=True) == before
    assert kinds(half) == ["Cast", "Conv", "Relu", "Conv", "Cast"]
    assert report.casts == 2
    assert report.fp32_nodes == ()
    assert all(value.dtype == np.float16 for value in initializers(half).values())
    # sums of 27 and 4 products of size 1, each factor rounded to 2^-11
    np.testing.assert_allclose(run(half, x=X)[0], run(model, x=X)[0], rtol=0, atol=60 * 2**-11)
    assert weights["first__weight"].dtype == np.float32


def test_fp16_inputs_and_outputs_need_no_cast() -> None:
    model, _ = two_convs()
    half, report = to_fp16(model, float32_io=False)
    assert "Cast" not in kinds(half)
    assert report.casts == 0
    assert {types(half)[name] for name in "xy"} == {TensorProto.FLOAT16}
    assert run(half, x=X.astype(np.float16))[0].dtype == np.float16


def test_the_quantizer_of_a_float32_input_stays_float32() -> None:
    model, weights = two_convs()
    quantized = insert_qdq(model, table(weights, first=int8(0.02), second=int8(0.03)))
    half, _ = to_fp16(quantized)
    quantizers = {node.input[0]: node for node in half.graph.node if node.op_type == "QuantizeLinear"}
    values = initializers(half)
    assert values[quantizers["x"].input[1]].dtype == np.float32
    assert values[quantizers["b"].input[1]].dtype == np.float16
    for node in half.graph.node:
        if node.op_type == "DequantizeLinear":
            assert values[node.input[1]].dtype == np.float16
    first = next(node for node in half.graph.node if node.op_type == "DequantizeLinear" and "first.input" in node.name)
    assert values[quantizers["x"].input[1]] == values[first.input[1]].astype(np.float32), "one scale, two types"
    assert kinds(half).count("Cast") == 1
    np.testing.assert_allclose(run(half, x=X)[0], run(quantized, x=X)[0], rtol=0, atol=0.3)


def test_tiny_scales_are_raised_and_weights_requantized() -> None:
    weight = normal(0, 2, 3, 1, 1) * np.array([1e-4, 1.0], np.float32).reshape(2, 1, 1, 1)
    model = graph("g (float[1,3,8,8] x) => (float[1,2,8,8] y) { y = Conv(x, a__weight) }", a__weight=weight)
    quantized = insert_qdq(model, table({"a__weight": weight}, a=int8(1e-5)))
    half, report = to_fp16(quantized)
    assert set(report.raised_scales) == {"a.input_scale", "a.weight_scale"}
    values = initializers(half)
    assert values["a.weight_scale"].min() == np.float16(2**-14)
    stored = values["a.weight"] * values["a.weight_scale"].astype(np.float32).reshape(2, 1, 1, 1)
    # the raised channel is rounded to multiples of 2^-14, the other one keeps its integers
    np.testing.assert_allclose(stored[0], weight[0], rtol=0, atol=2**-15 + 1e-6)
    np.testing.assert_array_equal(values["a.weight"][1], initializers(quantized)["a.weight"][1])


def test_named_nodes_stay_float32() -> None:
    model, _ = two_convs()
    model.graph.node[2].name = "second"
    half, report = to_fp16(model, keep_fp32=["second"])
    assert report.fp32_nodes == ("second",)
    values = initializers(half)
    assert values["second.weight"].dtype == np.float32
    assert values["first.weight"].dtype == np.float16
    assert kinds(half) == ["Cast", "Conv", "Relu", "Cast", "Conv"]
    with pytest.raises(GraphError, match="third"):
        to_fp16(model, keep_fp32=["third"])


def test_constants_that_overflow_keep_their_node_in_float32() -> None:
    model = graph("g (float[1,3,8,8] x) => (float[1,3,8,8] y) { y = Mul(x, big) }", big=np.full(1, 1e6, np.float32))
    half, report = to_fp16(model)
    assert report.fp32_nodes == ("Mul_y",)
    np.testing.assert_array_equal(run(half, x=X)[0], run(model, x=X)[0])


def test_overflowing_tensors_name_their_writer_and_readers() -> None:
    model, _ = two_convs()
    first, relu, second = (node.name for node in model.graph.node)
    assert nodes_beyond_fp16(model, {"a": 1e5, "b": 10, "y": 1}) == (first, relu)
    assert nodes_beyond_fp16(model, {"a": 40_000, "b": 10}) == (first, relu)
    assert nodes_beyond_fp16(model, {"a": 40_000}, margin=1.0) == ()
    assert nodes_beyond_fp16(model, {"y": float("nan")}) == (second,)


def test_a_tensor_that_overflows_is_finite_once_its_nodes_are_kept() -> None:
    model = graph(
        """g (float[1,3,8,8] x) => (float[1,3,8,8] y) {
            a = Mul(x, up)
            b = Mul(a, up)
            c = Mul(b, down)
            y = Mul(c, down)
        }""",
        up=np.array([300], np.float32),
        down=np.array([1 / 300], np.float32),
    )
    with np.errstate(over="ignore"):
        plain = compute(to_fp16(model)[0])
    assert not np.isfinite(plain).all()
    maxima = {name: float(np.abs(X).max() * factor) for name, factor in {"a": 300, "b": 9e4, "c": 300}.items()}
    kept = nodes_beyond_fp16(model, maxima)
    np.testing.assert_allclose(compute(to_fp16(model, keep_fp32=kept)[0]), X, rtol=3e-3, atol=1e-3)


def compute(model: ModelProto) -> NDArray:
    """Node by node in numpy: ONNX Runtime's CPU kernels compute FP16 in FP32 and hide an overflow."""
    return onnx.reference.ReferenceEvaluator(model).run(None, {"x": X})[0]


DECODE = """g (float[1,3,8,8] x) => (float[1,2,64] y) {
    a = Conv(x, a__weight)
    r = Reshape(a, shape)
    p = Softmax<axis=1>(r)
    s = Add(p, grid)
    h = Mul(s, half)
    y = Sub(h, s)
}"""


def decoding() -> ModelProto:
    grid = np.random.default_rng(0).uniform(0, 1280, (1, 2, 64)).astype(np.float32)
    weight, half = normal(0, 2, 3, 1, 1), np.array(0.5, np.float32)
    return graph(DECODE, a__weight=weight, grid=grid, half=half, shape=np.array([1, 2, 64]))


def test_boxes_are_decoded_in_float32() -> None:
    """A grid of up to 1280 pixels: FP16 counts in whole pixels there, the FP32 tail is exact to the distances."""
    model = decoding()
    assert decode_nodes(model) == ("s", "h", "y")
    reference = run(model, x=X)[0]
    safe, coarse = (run(to_fp16(model, fp32_decode=tail)[0], x=X)[0] for tail in (True, False))
    assert np.abs(safe - reference).max() < 0.01
    assert np.abs(coarse - reference).max() > 0.2


def test_shared_constants_are_copied_where_types_differ() -> None:
    model = graph(
        "g (float[1,3,8,8] x) => (float[1,3,8,8] y) { a = Mul(x, k)\n y = Mul(a, k) }", k=np.array([2], np.float32)
    )
    half, _ = to_fp16(model, keep_fp32=["a"])
    assert {value.dtype.name for value in initializers(half).values()} == {"float32", "float16"}
    np.testing.assert_allclose(run(half, x=X)[0], 4 * X, rtol=2**-10)


def test_resize_keeps_its_float32_scales() -> None:
    model = graph(
        'g (float[1,3,8,8] x) => (float[1,3,16,16] y) { y = Resize<mode="nearest">(x, , sizes) }',
        sizes=np.array([1, 1, 2, 2], np.float32),
    )
    half, _ = to_fp16(model)
    onnx.checker.check_model(half, full_check=True)
    assert initializers(half)["sizes"].dtype == np.float32
    np.testing.assert_allclose(run(half, x=X)[0], run(model, x=X)[0], rtol=2**-10)


COMPUTED_SCALES = """g (float[1,3,8,8] x, int64[4] size) => (float[1,c,h,w] y) {
    shape = Shape(x)
    before = Cast<to=1>(shape)
    after = Cast<to=1>(size)
    factor = Div(after, before)
    y = Resize<mode="nearest">(x, , factor)
}"""
PICKED = """g (float[1,3,8,8] x, int64[1,4] place) => (float[1,4] y) {
    a = Sigmoid(x)
    row = Flatten(a)
    p = Cast<to=1>(place)
    half = Mul(p, k)
    down = Floor(half)
    index = Cast<to=7>(down)
    y = GatherElements<axis=1>(row, index)
}"""


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(8, 600), min_size=2, max_size=2))
def test_factors_of_a_resize_are_computed_in_float32(sides: list[int]) -> None:
    model, size = graph(COMPUTED_SCALES), np.array([1, 3, *sides])
    half, _ = to_fp16(model)
    assert run(half, x=X, size=size)[0].shape == run(model, x=X, size=size)[0].shape


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(2048, 100_000), min_size=4, max_size=4), st.sampled_from([0.5, 0.25, 1 / 81]))
def test_integers_are_computed_in_float32(places: list[int], factor: float) -> None:
    """Such as the anchor that one of all scores belongs to: FP16 has no odd numbers beyond 2048, and none at 65520."""
    places = [int(place * 191 / 100_000 / factor) for place in places]
    model, place = graph(PICKED, k=np.float32(factor)), np.array([places])
    found, wanted = (run(one, x=X, place=place)[0] for one in (to_fp16(model)[0], model))
    np.testing.assert_allclose(found, wanted, rtol=2**-10)


@pytest.mark.parametrize("reader", ["Relu(n)", "Resize(n, , twice)", "Transpose<perm=[0, 1, 2, 3]>(n)", "Conv(n, w)"])
def test_shapes_are_known_behind_a_group_normalization(reader: str) -> None:
    """Which onnx does not infer by itself."""
    text = f"g (float[1,4,8,8] x) => (float y) {{ n = GroupNormalization<num_groups=2>(x, s, b)\n m = {reader}\n"
    weight, twice = normal(0, 4, 4, 1, 1), np.ones(4, np.float32)
    model = graph(f"{text} t = Mul(m, x)\n y = ReduceSum<keepdims=0>(t) }}", opset=21, w=weight, twice=twice,
                  s=normal(1, 4), b=normal(2, 4))  # fmt: skip
    tensors = import_graph(model, shapes=True).tensors()
    assert all(tuple(tensors[name].shape) == (1, 4, 8, 8) for name in "nmt")
    with_shapes(model, strict=True)
    half, x = to_fp16(model)[0], normal(3, 1, 4, 8, 8)
    np.testing.assert_allclose(run(half, x=x)[0], run(model, x=x)[0], rtol=0.05, atol=0.5)


def test_old_opsets_and_typed_graphs_are_refused() -> None:
    model, weights = two_convs()
    quantized = insert_qdq(model, table(weights, first=int8(0.02)))
    quantized.opset_import[0].version = 17
    with pytest.raises(GraphError, match="opset 19"):
        to_fp16(quantized)
    half, _ = to_fp16(model)
    with pytest.raises(GraphError, match="FP16 already"):
        to_fp16(half)


@pytest.mark.parametrize("body", [
    "a = Celu(x)\n y = Mul(a, half)",
    "s = Sigmoid(x)\n n = NonMaxSuppression(b, s, k, half, half)\n r = Cast<to=1>(n)\n y = ReduceSum<keepdims=0>(r)",
])  # fmt: skip
def test_what_onnx_has_in_float32_alone_stays_float32(body: str) -> None:
    boxes = np.array([[[0, 0, 2, 2], [4, 4, 6, 6]]], np.float32)
    shape = "float y" if "Sum" in body else "float[1,1,2] y"
    model = graph(f"g (float[1,1,2] x) => ({shape}) {{ {body} }}", half=np.float32(0.5), b=boxes, k=np.int64(2))
    half, _ = to_fp16(model)
    x = np.array([[[0.25, 1]]], np.float32)
    np.testing.assert_allclose(run(half, x=x)[0], run(model, x=x)[0], rtol=1e-3)


def test_weights_that_share_a_scale_are_all_requantized() -> None:
    text = """g (float[1,2,4,4] x) => (float[1,2,4,4] y) {
        d = DequantizeLinear(v, s, z)
        a = Conv(x, d)
        e = DequantizeLinear(w, s, z)
        y = Conv(a, e)
    }"""
    integers = np.full((2, 2, 1, 1), 100, np.int8)
    model = graph(text, v=integers, w=integers, s=np.float32(2e-5), z=np.int8(0))
    x = np.full((1, 2, 4, 4), 1000, np.float32)
    np.testing.assert_allclose(run(to_fp16(model)[0], x=x)[0], run(model, x=x)[0], rtol=0.05)
