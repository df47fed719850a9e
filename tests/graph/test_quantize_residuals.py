from __future__ import annotations

import numpy as np
import pytest
from graph_views import residual_operands
from onnx import ModelProto
from small_graphs import graph, initializers, int8, kinds, normal, run, table

from repq.graph import insert_qdq, quantize_residuals

WEIGHTS = {f"{name}__weight": normal(seed, 4, 4, 1, 1) for seed, name in enumerate("abc")}
BLOCK = """g (float[1,4,8,8] x) => (float[1,4,8,8] y) {
    p = Relu(x)
    q = Conv(p, a__weight)
    r = Relu(q)
    m = Mul(alpha, p)
    sum = Add(r, m)
    y = Conv(sum, b__weight)
}"""


def block(**scales: float) -> ModelProto:
    constants = {name: WEIGHTS[name] for name in ("a__weight", "b__weight")}
    model = graph(BLOCK, alpha=np.array([0.8], np.float32), **constants)
    return insert_qdq(model, table(WEIGHTS, **{name: int8(scale) for name, scale in scales.items()}))


def test_both_inputs_read_int8_and_the_branch_borrows_the_larger_scale() -> None:
    before = block(a=0.02, b=0.05)
    assert residual_operands(before) == ("r",)
    after, report = quantize_residuals(before)
    assert set(report.quantized) == {"r", "p"}
    assert report.left_float == ()
    by_output = {node.output[0]: node for node in after.graph.node}
    branch, shortcut = by_output["sum"].input[0], by_output["m"].input[1]
    assert by_output[branch].op_type == by_output[shortcut].op_type == "DequantizeLinear"
    assert initializers(after)[by_output[branch].input[1]] == np.float32(0.05), "that of the sum"
    assert initializers(after)[by_output[shortcut].input[1]] == np.float32(0.02), "the one that layer a reads"
    x = normal(5, 1, 4, 8, 8)
    # r and p move by at most half a step each, layer b sums four such values with weights up to 2.5
    np.testing.assert_allclose(run(after, x=x)[0], run(before, x=x)[0], atol=4 * 2.5 * 2 * 0.05)


def test_a_measured_scale_wins() -> None:
    after, _ = quantize_residuals(block(a=0.02, b=0.05), {"r": int8(0.031)})
    branch = next(node for node in after.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "r")
    assert initializers(after)[branch.input[1]] == np.float32(0.031)


def test_twice_is_once() -> None:
    after, _ = quantize_residuals(block(a=0.02, b=0.05))
    again, report = quantize_residuals(after)
    assert again.SerializeToString(deterministic=True) == after.SerializeToString(deterministic=True)
    assert report.quantized == ()


def test_a_float_branch_stays_float_with_a_reason() -> None:
    before = block(b=0.05)
    after, report = quantize_residuals(before)
    assert kinds(after) == kinds(before)
    assert report.quantized == ()
    assert report.left_float == (), "no operand is quantized: the add is float throughout"


def test_an_add_with_a_float_layer_on_one_side_is_reported() -> None:
    model = graph(
        """g (float[1,4,8,8] x) => (float[1,4,8,8] sum, float[1,4,8,8] y) {
            o = Conv(x, a__weight)
            p = Relu(o)
            q = Conv(p, b__weight)
            sum = Add(q, p)
            y = Conv(p, c__weight)
        }""",
        **WEIGHTS,
    )
    after, report = quantize_residuals(insert_qdq(model, table(WEIGHTS, a=int8(0.02), c=int8(0.03))))
    assert report.quantized == ("p",)
    assert report.left_float == (("q", "the layer that computes it runs in float"),)
    assert "q" in next(node for node in after.graph.node if node.op_type == "Add").input


@pytest.mark.parametrize("body", ["y = Add(x, grid)", "s = Relu(x)\n y = Add(s, x)"], ids=["constant", "float"])
def test_other_adds_are_left_alone(body: str) -> None:
    constants = {"grid": normal(0, 1, 4, 8, 8)} if "grid" in body else {}
    model = graph(f"g (float[1,4,8,8] x) => (float[1,4,8,8] y) {{ {body} }}", **constants)
    after, report = quantize_residuals(model)
    assert kinds(after) == kinds(model)
    assert report.quantized == report.left_float == ()
