"""Every graph here ends in Q/DQ of one tensor; the pass either moves the pair up or leaves the graph as it is."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto
from small_graphs import graph, kinds, normal, run

from repq.graph import propagate_qdq

CONSTANTS = {
    "s": np.float32(0.03),
    "z": np.int8(0),
    "s2": np.float32(0.05),
    "zu": np.uint8(117),
    "shape": np.array([1, 4, 64]),
    "one": np.array([1]),
    "three": np.array([3]),
    "sizes": np.array([1, 1, 2, 2], np.float32),
    "halves": np.array([2, 2]),
    "fixed": np.ones((1, 4, 8, 8), np.float32),
}

PASSING = {
    "Concat": ("c = Concat<axis=1>(r, x)", "[1,8,8,8]", 2),
    "MaxPool": ("c = MaxPool<kernel_shape=[5,5], pads=[2,2,2,2]>(r)", "[1,4,8,8]", 1),
    "Reshape": ("c = Reshape(r, shape)", "[1,4,64]", 1),
    "Transpose": ("c = Transpose<perm=[0,2,3,1]>(r)", "[1,8,8,4]", 1),
    "Slice": ("c = Slice(r, one, three, one)", "[1,2,8,8]", 1),
    "Resize": ('c = Resize<mode="nearest">(r, , sizes)', "[1,4,16,16]", 1),
}
STOPPING = {
    "AveragePool": ("c = AveragePool<kernel_shape=[2,2], strides=[2,2]>(r)", "[1,4,4,4]"),
    "GlobalAveragePool": ("c = GlobalAveragePool(r)", "[1,4,1,1]"),
    "linear Resize": ('c = Resize<mode="linear">(r, , sizes)', "[1,4,16,16]"),
    "Relu": ("c = Relu(r)", "[1,4,8,8]"),
    "Add": ("c = Add(r, x)", "[1,4,8,8]"),
    "Concat with a constant": ("c = Concat<axis=1>(r, fixed)", "[1,8,8,8]"),
}


def quantized(body: str, shape: str, zero_point: str = "z", outputs: str = "") -> ModelProto:
    text = f"""g (float[1,4,8,8] x) => (float{shape} y{outputs}) {{
        r = Relu(x)
        {body}
        q = QuantizeLinear(c, s, {zero_point})
        d = DequantizeLinear(q, s, {zero_point})
        y = Neg(d)
    }}"""
    return graph(text, **{name: value for name, value in CONSTANTS.items() if name in text.split("=>")[1]})


def assert_equal_outputs(before: ModelProto, after: ModelProto) -> None:
    x = 2 * normal(5, 1, 4, 8, 8)
    for one, other in zip(run(before, x=x), run(after, x=x), strict=True):
        np.testing.assert_array_equal(one, other)


def readers_of_pairs(model: ModelProto) -> set[str]:
    results = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    return {node.op_type for node in model.graph.node if results.intersection(node.input)}


def fixed_point(model: ModelProto) -> ModelProto:
    result = propagate_qdq(model)
    assert propagate_qdq(result).SerializeToString(deterministic=True) == result.SerializeToString(deterministic=True)
    return result


@pytest.mark.parametrize("zero_point", ["z", "zu"], ids=["int8", "uint8"])
@pytest.mark.parametrize("name", PASSING)
def test_it_moves_through(name: str, zero_point: str) -> None:
    body, shape, pairs = PASSING[name]
    before = quantized(body, shape, zero_point)
    untouched = before.SerializeToString(deterministic=True)
    after = fixed_point(before)
    assert before.SerializeToString(deterministic=True) == untouched
    assert readers_of_pairs(after) == {name}
    assert kinds(after).count("QuantizeLinear") == kinds(after).count("DequantizeLinear") == pairs
    assert_equal_outputs(before, after)


@pytest.mark.parametrize("name", STOPPING)
def test_it_stops_at(name: str) -> None:
    before = quantized(*STOPPING[name])
    after = fixed_point(before)
    assert [node.SerializeToString() for node in after.graph.node] == [n.SerializeToString() for n in before.graph.node]


@pytest.mark.parametrize(
    ("extra", "outputs"),
    [
        ("", ", float[1,8,8,8] c"),
        ("k = Abs(c)", ", float[1,8,8,8] k"),
        ("q2 = QuantizeLinear(c, s2, z)\n k = DequantizeLinear(q2, s2, z)", ", float[1,8,8,8] k"),
    ],
    ids=["graph output", "float reader", "another scale"],
)
def test_it_stays_where_somebody_else_reads_the_tensor(extra: str, outputs: str) -> None:
    before = quantized(f"c = Concat<axis=1>(r, x)\n {extra}", "[1,8,8,8]", outputs=outputs)
    after = fixed_point(before)
    assert "Concat" not in readers_of_pairs(after)
    assert_equal_outputs(before, after)


def test_per_channel_pairs_stay() -> None:
    before = graph(
        """g (float[1,4,8,8] x) => (float[1,4,8,8] y) {
            r = Relu(x)
            c = MaxPool<kernel_shape=[1,1]>(r)
            q = QuantizeLinear<axis=1>(c, s, z)
            y = DequantizeLinear<axis=1>(q, s, z)
        }""",
        s=np.full(4, 0.1, np.float32),
        z=np.zeros(4, np.int8),
    )
    assert kinds(fixed_point(before)) == kinds(before)


def test_split_moves_only_if_all_parts_agree() -> None:
    text = """g (float[1,4,8,8] x) => (float[1,2,8,8] y, float[1,2,8,8] k) {{
        r = Relu(x)
        a, b = Split<axis=1, num_outputs=2>(r)
        qa = QuantizeLinear(a, s, z)
        y = DequantizeLinear(qa, s, z)
        qb = QuantizeLinear(b, {scale}, z)
        db = DequantizeLinear(qb, {scale}, z)
        k = Neg(db)
    }}"""
    text = text.replace("y = DequantizeLinear(qa, s, z)", "da = DequantizeLinear(qa, s, z)\n y = Neg(da)")
    constants = {name: CONSTANTS[name] for name in ("s", "s2", "z")}
    agreeing, differing = (graph(text.format(scale=scale), **constants) for scale in ("s", "s2"))
    moved, kept = fixed_point(agreeing), fixed_point(differing)
    assert readers_of_pairs(moved) == {"Split"}
    assert kinds(moved).count("QuantizeLinear") == 1
    assert kinds(kept).count("QuantizeLinear") == 2
    assert_equal_outputs(agreeing, moved)
    assert_equal_outputs(differing, kept)


def test_a_chain_of_pools_needs_one_pair() -> None:
    """SPPF: three chained pools and the tensor itself, concatenated."""
    pool = "MaxPool<kernel_shape=[5,5], pads=[2,2,2,2]>"
    before = quantized(
        f"p1 = {pool}(r)\n p2 = {pool}(p1)\n p3 = {pool}(p2)\n c = Concat<axis=1>(r, p1, p2, p3)", "[1,16,8,8]"
    )
    after = fixed_point(before)
    assert kinds(after) == [
        "Relu",
        "QuantizeLinear",
        "DequantizeLinear",
        "MaxPool",
        "MaxPool",
        "MaxPool",
        "Concat",
        "Neg",
    ]
    assert_equal_outputs(before, after)


def test_equal_pairs_on_one_tensor_become_one() -> None:
    before = graph(
        """g (float[1,4,8,8] x) => (float[1,4,8,8] y) {
            q = QuantizeLinear(x, s, z)
            d = DequantizeLinear(q, s, z)
            q2 = QuantizeLinear(x, t, z)
            d2 = DequantizeLinear(q2, t, z)
            q3 = QuantizeLinear(d2, s, z)
            d3 = DequantizeLinear(q3, s, z)
            a = Add(d, d2)
            y = Add(a, d3)
        }""",
        s=np.float32(0.03),
        t=np.float32(0.03),
        z=np.int8(0),
    )
    after = fixed_point(before)
    assert kinds(after) == ["QuantizeLinear", "DequantizeLinear", "Add", "Add"]
    assert_equal_outputs(before, after)
