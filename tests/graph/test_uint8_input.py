"""Bytes in: the same integers, the same sums up to the rounding of a weight divided by 255."""

from __future__ import annotations

import numpy as np
import pytest
from family_graphs import SIZE, float_graph, quantized_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper
from small_graphs import graph, initializers, int8, kinds, normal, run, table, two_convs, uint8

from repq.errors import GraphError
from repq.graph import bgr_input, insert_qdq, to_fp16, uint8_input
from repq.graph.first_layers import byte_scale

HALF_ULP = 2.0**-24  # of float32, relative


def pixels(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(7).integers(0, 256, shape, dtype=np.uint8)


def as_floats(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return images.astype(np.float32) / np.float32(255)


def showing(model: ModelProto, tensor: str, kind: int) -> ModelProto:
    """The same graph with one more output, an image tensor."""
    shown = ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.append(helper.make_tensor_value_info(tensor, kind, [None] * 4))
    return shown


def test_a_float_convolution_differs_by_the_rounding_of_its_weight() -> None:
    """|error| <= (terms + 3) half ulps of the sum of |terms|: one rounding a product, a weight, a pixel and a sum."""
    weight, bias = normal(1, 4, 3, 3, 3), normal(2, 4)
    model = graph(
        "g (float[2,3,9,8] x) => (float[2,4,9,8] y) { y = Conv<pads=[1,1,1,1]>(x, c__weight, b) }",
        c__weight=weight,
        b=bias,
    )
    images = pixels(2, 3, 9, 8)
    absolute = graph(
        "g (float[2,3,9,8] x) => (float[2,4,9,8] y) { y = Conv<pads=[1,1,1,1]>(x, c__weight, b) }",
        c__weight=np.abs(weight),
        b=np.abs(bias),
    )
    (expected,), (found,) = run(model, x=as_floats(images)), run(uint8_input(model), x=images)
    (size,) = run(absolute, x=as_floats(images))
    assert (np.abs(found - expected) <= 2 * (27 + 3) * HALF_ULP * size).all()
    assert kinds(uint8_input(model)) == ["Cast", "Conv"]


@pytest.mark.parametrize("scale", [int8(1 / 127), uint8(1 / 255, 0), uint8(0.0031, 4), int8(0.01)])
def test_no_integer_changes(scale) -> None:
    model, weights = two_convs()
    quantized = insert_qdq(model, table(weights, first=scale))
    folded = uint8_input(quantized)
    images, name = pixels(1, 3, 8, 8), "first.input_quantized"
    kind = TensorProto.INT8 if scale.dtype == "int8" else TensorProto.UINT8
    before = run(showing(quantized, name, kind), x=as_floats(images))
    after = run(showing(folded, name, kind), x=images)
    np.testing.assert_array_equal(after[1], before[1])
    np.testing.assert_array_equal(initializers(folded)["first.weight"], initializers(quantized)["first.weight"])
    np.testing.assert_allclose(after[0], before[0], rtol=0, atol=1e-5 * np.abs(before[0]).max())


@given(st.floats(1e-4, 0.1))
@settings(deadline=None)
def test_every_scale_of_images_has_one_for_bytes(scale: float) -> None:
    """The images of these scales fill 10 to 10,000 steps; pixels on the edge between two integers are the hard ones."""
    own = np.float32(scale)
    widened = byte_scale(own)
    values = np.arange(256, dtype=np.float32)
    np.testing.assert_array_equal(np.rint(values / widened), np.rint(values / np.float32(255) / own))
    assert abs(float(widened) / (255 * float(own)) - 1) < 8 * HALF_ULP


@pytest.mark.parametrize("label", ["n_v2", "lite_s"])
def test_family(label: str) -> None:
    images = pixels(1, 3, *SIZE)
    plain = float_graph(label)
    (expected,), (found,) = run(plain, images=as_floats(images)), run(uint8_input(plain), images=images)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert len(uint8_input(plain).graph.node) == len(plain.graph.node) + 1


def test_fp16_scales_stay_and_everything_behind_is_equal() -> None:
    half, _ = to_fp16(quantized_graph("n_v2"))
    folded = uint8_input(half)
    images = pixels(1, 3, *SIZE)
    first = next(node.output[0] for node in half.graph.node if node.op_type == "DequantizeLinear" and "images" not in
                 node.input and node.input[0] not in initializers(half))  # fmt: skip
    before = run(showing(half, first, TensorProto.FLOAT16), images=as_floats(images))
    after = run(showing(folded, first, TensorProto.FLOAT16), images=images)
    np.testing.assert_array_equal(after[1], before[1])
    np.testing.assert_array_equal(after[0], before[0])


def test_blue_first() -> None:
    images = pixels(1, 3, *SIZE)
    for model in (float_graph("lite_s"), quantized_graph("lite_s")):
        (expected,) = run(uint8_input(model), images=images)
        (found,) = run(uint8_input(bgr_input(model)), images=np.ascontiguousarray(images[:, ::-1]))
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-3 * np.abs(expected).max())
        twice, once = initializers(bgr_input(bgr_input(model))), initializers(model)
        assert all(np.array_equal(twice[name], value) for name, value in once.items())
        assert len(bgr_input(model).graph.node) == len(model.graph.node)


def test_sums_of_integers_do_not_depend_on_the_order_of_colours() -> None:
    """Powers of two as scales make every float sum exact, so nothing may differ."""
    weights = {"c__weight": np.random.default_rng(0).integers(-9, 9, (4, 3, 3, 3)).astype(np.float32)}
    model = graph("g (float[1,3,8,8] x) => (float[1,4,8,8] y) { y = Conv<pads=[1,1,1,1]>(x, c__weight) }", **weights)
    x = pixels(1, 3, 8, 8).astype(np.float32)
    (expected,), (found,) = run(model, x=x), run(bgr_input(model), x=np.ascontiguousarray(x[:, ::-1]))
    np.testing.assert_array_equal(found, expected)


OTHER_READERS = {
    "Relu": "y = Relu(x)",
    "a part and a Conv": "p = Slice(x, zero, four, axis)\n y = Conv(p, w)",
    "two Conv of one weight": "a = Conv(x, w)\n b = Conv(x, w)\n y = Add(a, b)",
    "a Conv and a Mul": "a = Conv(x, w)\n y = Mul(a, x)",
}


def read_by(body: str) -> ModelProto:
    ints = {"zero": np.array([0]), "four": np.array([4]), "axis": np.array([2])}
    rows = 4 if "Slice" in body else 8
    return graph(f"g (float[1,3,8,8] x) => (float[1,3,{rows},8] y) {{ {body} }}", w=normal(1, 3, 3, 1, 1), **ints)


@pytest.mark.parametrize("body", OTHER_READERS.values(), ids=OTHER_READERS)
def test_the_division_stays_where_nothing_folds(body: str) -> None:
    model, images = read_by(body), pixels(1, 3, 8, 8)
    changed = uint8_input(model)
    np.testing.assert_array_equal(run(changed, x=images)[0], run(model, x=as_floats(images))[0])
    assert kinds(changed).count("Div") == 1
    with pytest.raises(GraphError, match="nothing can be folded"):
        bgr_input(model)


def test_who_reads_the_shape_alone_changes_nothing() -> None:
    """As graphs for any number of images do."""
    body = "s = Shape(x)\n c = Conv(x, w)\n y = Reshape(c, s)"
    model, images = read_by(body), pixels(1, 3, 8, 8)
    changed = uint8_input(bgr_input(model))
    assert "Div" not in kinds(changed)
    found, wanted = run(changed, x=images[:, ::-1])[0], run(model, x=as_floats(images))[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_what_is_done_already_is_refused() -> None:
    with pytest.raises(GraphError, match="UINT8"):
        uint8_input(uint8_input(float_graph("n_v2")))
