"""Union-find on small graphs: what must share a scale, and what must not."""

from __future__ import annotations

import numpy as np
import pytest
from graph_views import scale_groups
from hypothesis import given
from hypothesis import strategies as st
from small_graphs import graph, normal

from repq.graph import layer_groups
from repq.graph.grouping import UnionFind
from repq.graph.integers import Parameters
from repq.layers import LayerId

CONSTANTS = {
    "a__weight": normal(0, 4, 4, 1, 1),
    "b__weight": normal(1, 4, 4, 1, 1),
    "c__weight": normal(2, 4, 8, 1, 1),
    "alpha": np.array([0.7], np.float32),
    "gains": normal(3, 1, 4, 1, 1),
    "sizes": np.array([1, 1, 2, 2], np.float32),
    "shape": np.array([1, 4, 64]),
}


def groups(body: str, out: str = "[1,4,8,8]", **options: object) -> set[frozenset[str]]:
    text = f"g (float[1,4,8,8] x) => (float{out} y) {{\n{body}\n}}"
    model = graph(text, **{name: value for name, value in CONSTANTS.items() if name in body})
    return {frozenset(group) for group in scale_groups(model, **options)}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("r = Relu(x)\n t = Concat<axis=1>(r, x)\n y = Conv(t, c__weight)", {"r", "x", "t"}),
        ("r = Relu(x)\n t = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(r)\n y = Conv(t, a__weight)", {"r", "t"}),
        ("r = Relu(x)\n u, v = Split<axis=1, num_outputs=2>(r)\n t = Concat<axis=1>(v, u)\n y = Conv(t, a__weight)",
         {"r", "u", "v", "t"}),
        ("p = Conv(x, a__weight)\n y = Add(p, x)", {"p", "x"}),
        ("p = Conv(x, a__weight)\n m = Mul(alpha, x)\n y = Add(p, m)", {"p", "x"}),
    ],
    ids=["Concat", "MaxPool", "Split and Concat", "residual", "scaled residual"],
)  # fmt: skip
def test_joined(body: str, expected: set[str]) -> None:
    assert groups(body) == {frozenset(expected)}


@pytest.mark.parametrize(
    "body",
    [
        "r = Relu(x)\n y = Conv(r, a__weight)",
        "t = AveragePool<kernel_shape=[1,1]>(x)\n y = Conv(t, a__weight)",
        "p = Conv(x, a__weight)\n y = MaxPool<kernel_shape=[1,1]>(p)",
        "p = Conv(x, a__weight)\n q = Relu(p)\n y = Add(q, gains)",
        "r = Relu(x)\n s = Sigmoid(r)\n t = Mul(r, s)\n y = Conv(t, a__weight)",
    ],
    ids=["activation", "average", "nothing reads the pool in INT8", "constant", "SiLU"],
)
def test_not_joined(body: str) -> None:
    assert groups(body) == set()


def test_nearest_resize_joins_and_linear_does_not() -> None:
    body = 'r = Relu(x)\n t = Resize<mode="{}">(r, , sizes)\n y = Conv(t, a__weight)'
    assert groups(body.format("nearest"), "[1,4,16,16]") == {frozenset({"r", "t"})}
    assert groups(body.format("linear"), "[1,4,16,16]") == set()


def test_residual_adds_can_be_left_out() -> None:
    assert groups("p = Conv(x, a__weight)\n y = Add(p, x)", residual_adds=False) == set()


def test_only_the_layers_to_be_quantized_count() -> None:
    body = "r = Relu(x)\n t = Concat<axis=1>(r, x)\n p = Conv(t, c__weight)\n y = Conv(p, a__weight)"
    assert groups(body, int8_layers=[LayerId("a")]) == set()
    assert groups(body, int8_layers=[LayerId("c")]) == {frozenset({"r", "x", "t"})}


def test_layers_that_read_one_group() -> None:
    body = """p = Conv(x, a__weight)
    r = Relu(p)
    q = Conv(r, b__weight)
    t = Concat<axis=1>(r, q)
    y = Conv(t, c__weight)"""
    model = graph(
        f"g (float[1,4,8,8] x) => (float[1,4,8,8] y) {{\n{body}\n}}",
        **{name: CONSTANTS[name] for name in ("a__weight", "b__weight", "c__weight")},
    )
    assert layer_groups(model) == (("b", "c"),)
    assert layer_groups(model, [LayerId("a"), LayerId("c")]) == ()


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=4), max_size=8))
def test_union_find_against_repeated_joining(joins: list[list[str]]) -> None:
    sets = UnionFind()
    plain: list[set[str]] = [{name} for name in "abcdefgh"]
    for names in joins:
        sets.join(names)
        touched = [part for part in plain if part.intersection(names)]
        plain = [part for part in plain if part not in touched] + [set().union(*touched)]
    for part in plain:
        assert len({sets.find(name) for name in part}) == 1
    assert len({sets.find(name) for name in "abcdefgh"}) == len(plain)


@given(
    st.lists(
        st.tuples(st.floats(1e-4, 10), st.sampled_from([("int8", 0), ("uint8", 0), ("uint8", 100), ("uint8", 255)])),
        min_size=1,
        max_size=5,
    )
)
def test_merged_parameters_cover_all_ranges(parts: list[tuple[float, tuple[str, int]]]) -> None:
    several = [Parameters(float(np.float32(scale)), zero_point, dtype) for scale, (dtype, zero_point) in parts]
    merged = Parameters.covering(several)
    low, high = merged.range
    # the zero point is rounded to a whole step, so either end may miss by half a step
    assert low <= min(p.range[0] for p in several) + 0.51 * merged.scale
    assert high >= max(p.range[1] for p in several) - 0.51 * merged.scale
    if all(p.zero_point == 0 and p.dtype == "int8" for p in several):
        assert merged.scale == max(p.scale for p in several)
        assert merged.zero_point == 0
