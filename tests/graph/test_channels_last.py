"""Maps that are laid flat and taken apart as they lie in memory: the same values, and what a run no longer does."""

from __future__ import annotations

import numpy as np
import pytest
from family_graphs import float_graph, images, quantized_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto
from small_graphs import graph, kinds, normal, run

from repq.engine.openvino import executed_nodes
from repq.graph import lowering_openvino
from repq.graph.channels_last import channels_last

openvino = pytest.importorskip("openvino")
X = normal(9, 2, 4, 8, 6)


def executed(model: ModelProto, x: NDArray[np.float32]) -> tuple[NDArray[np.float32], list[str]]:
    """The first output in OpenVINO, and the kinds of nodes that took time: what lies as it is wanted takes none."""
    core = openvino.Core()
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "PERF_COUNT": True}
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", options)
    result = np.array(next(iter(compiled([x]).values())))
    nodes = executed_nodes(compiled)
    return result, [node["layerType"] for node in nodes if node["execTimeMcs"].isdecimal()]


def check(before: ModelProto, after: ModelProto, x: NDArray[np.float32] = X) -> None:
    """Bit by bit in a runtime that runs the graph as it is written; to the order of sums in OpenVINO."""
    for wanted, found in zip(run(before, x=x), run(after, x=x), strict=True):
        np.testing.assert_array_equal(found, wanted)
    np.testing.assert_allclose(executed(after, x)[0], executed(before, x)[0], rtol=1e-5, atol=1e-6)
    assert channels_last(after) is after


def head(strides: list[int], classes: int, activation: str, *, batch: int | str = 2, more: str = "") -> ModelProto:
    """Rows (B, N, classes) of one convolution for each stride."""
    maps = range(len(strides))
    lines = [
        f"k{i} = Conv<strides=[{strides[i]},{strides[i]}]>(x, w{i}) a{i} = {activation}(k{i}) f{i} = Reshape(a{i}, s)"
        for i in maps
    ]
    joined = f"c = Concat<axis=2>({', '.join(f'f{i}' for i in maps)})" if len(strides) > 1 else ""
    end = f"y = Transpose<perm=[0,2,1]>({'c' if joined else 'f0'})"
    outputs = f"float[{batch},n,{classes}] y" + (f", float[{batch},{classes},n] {more}" if more else "")
    text = f"g (float[{batch},4,8,6] x) => ({outputs}) {{ {' '.join([*lines, joined, end])} }}"
    weights = {f"w{i}": normal(i, classes, 4, 1, 1) for i in maps}
    return graph(text, s=np.array([0, classes, -1], np.int64), **weights)


@settings(deadline=None, max_examples=15)
@given(
    strides=st.lists(st.integers(1, 3), min_size=1, max_size=3), classes=st.integers(1, 20),
    activation=st.sampled_from(["Sigmoid", "HardSwish", "Relu"]), batch=st.sampled_from([2, "batch"]),
)  # fmt: skip
def test_rows_of_a_head(strides: list[int], classes: int, activation: str, batch: int | str) -> None:
    before = head(strides, classes, activation, batch=batch)
    after = channels_last(before)
    assert kinds(after).count("Transpose") == len(strides)
    check(before, after)


def test_rows_are_turned_no_more() -> None:
    before = head([1, 2], 80, "Sigmoid", batch=1)
    x = normal(3, 1, 4, 8, 6)
    assert "Transpose" in executed(before, x)[1]
    assert "Transpose" not in executed(channels_last(before), x)[1]


@pytest.mark.parametrize("more", ["f0", "c"])
def test_what_somebody_else_reads_stays(more: str) -> None:
    before = head([1, 1] if more == "c" else [1], 5, "Relu", more=more)
    assert channels_last(before) is before


def test_rows_of_what_no_convolution_wrote_stay() -> None:
    text = "g (float[2,4,8,6] x) => (float[2,48,4] y) { f = Reshape(x, flat) y = Transpose<perm=[0,2,1]>(f) }"
    before = graph(text, flat=np.array([0, 4, -1], np.int64))
    assert channels_last(before) is before


@settings(deadline=None, max_examples=15)
@given(sizes=st.lists(st.integers(1, 4), min_size=2, max_size=3), same=st.booleans(), axis=st.sampled_from([1, 3]))
def test_a_split_of_what_was_joined_goes_if_it_parts_the_same(sizes: list[int], same: bool, axis: int) -> None:
    parts = range(len(sizes))
    shapes = [[2, size, 3, 4] if axis == 1 else [2, 3, 4, size] for size in sizes]
    wanted = sizes if same else [sum(sizes) - 1, 1]
    ends = [[2, size, 3, 4] if axis == 1 else [2, 3, 4, size] for size in wanted]
    inputs, outputs = (
        ", ".join(f"float[{','.join(map(str, shape))}] {name}{i}" for i, shape in enumerate(found))
        for name, found in (("x", shapes), ("y", ends))
    )
    names = range(len(wanted))
    text = f"""g ({inputs}) => ({outputs}) {{
        c = Concat<axis={axis}>({", ".join(f"x{i}" for i in parts)})
        {", ".join(f"s{i}" for i in names)} = Split<axis={axis - 4}>(c, sizes)
        {" ".join(f"y{i} = Neg(s{i})" for i in names)} }}"""
    before = graph(text, sizes=np.array(wanted, np.int64))
    after = channels_last(before)
    assert ("Split" in kinds(after)) == (wanted != sizes)
    feeds = {f"x{i}": normal(i, *shapes[i]) for i in parts}
    for expected, found in zip(run(before, **feeds), run(after, **feeds), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert channels_last(after) is after


READERS = {
    "Reshape(l, flat)": "{a},48",
    "Unsqueeze(l, axes)": "{a},1,8,6",
    "Flatten<axis=2>(l)": "",
    "Sigmoid(l)": "{a},8,6",
}


def halves(sizes: tuple[int, int], reader: str, before: str = "HardSwish") -> ModelProto:
    """A Split of a convolution's channels, one part of which ``reader`` reads."""
    a, b = sizes
    shape = f"2,{READERS[reader].format(a=a)}" if READERS[reader] else f"{2 * a},48"
    text = f"""g (float[2,4,8,6] x) => (float[{shape}] y, float[2,{b},8,6] z) {{
        k = Conv(x, w) r = {before}(k) l, m = Split<axis=1>(r, sizes) y = {reader} z = Relu(m) }}"""
    constants = {"sizes": np.array(sizes, np.int64), "flat": np.array([0, a, -1], np.int64), "axes": np.array([2])}
    used = {name: values for name, values in constants.items() if name == "sizes" or name in reader}
    return graph(text, w=normal(1, a + b, 4, 1, 1), **used)


@settings(deadline=None, max_examples=15)
@given(
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    reader=st.sampled_from([reader for reader in READERS if reader != "Sigmoid(l)"]),
    activation=st.sampled_from(["HardSwish", "Relu", "Sigmoid"]),
)  # fmt: skip
def test_channels_are_gathered_if_a_part_is_reshaped(sizes: tuple[int, int], reader: str, activation: str) -> None:
    before = halves(sizes, reader, activation)
    after = channels_last(before)
    assert "Split" not in kinds(after) and kinds(after).count("Gather") == 2
    check(before, after)


def test_channels_of_parts_that_stay_maps_are_split() -> None:
    before = halves((3, 5), "Sigmoid(l)")
    assert channels_last(before) is before


@pytest.mark.parametrize("label", ["n_v2", "s_mbla (SiLU)", "s6 (four levels)", "lite_s"])
@pytest.mark.parametrize("scheme", [None, "symmetric", "asymmetric"])
def test_whole_models(label: str, scheme: str | None) -> None:
    before = float_graph(label) if scheme is None else quantized_graph(label, scheme)
    after = channels_last(before) if scheme is None else lowering_openvino.lower(before)
    x = images()
    np.testing.assert_array_equal(run(after, images=x)[0], run(before, images=x)[0])
    assert channels_last(after) is after
    assert kinds(after).count("Split") < kinds(before).count("Split")
    assert not any(
        list(node.attribute[0].ints) == [0, 2, 1] for node in after.graph.node if node.op_type == "Transpose"
    )
    again = after if scheme is None else lowering_openvino.lower(after)
    assert sorted(node.SerializeToString() for node in again.graph.node) == sorted(
        node.SerializeToString() for node in after.graph.node
    )
