"""The exported form of symmetric graphs: integers meet in a Concat, and every runtime computes the same."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from family_graphs import images, quantized_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto
from small_graphs import graph, int8, kinds, normal, run, table, uint8

from repq.engine.openvino import executed_layers, executed_nodes
from repq.graph import concat_integers, count_qdq, insert_qdq, lint, lowering_openvino, propagate_qdq, to_fp16
from repq.graph.integer_concat import regroup, restore_pairs, signed_concats
from repq.graph.surgeon import export_graph, import_graph
from repq.layers import LayerId

openvino = pytest.importorskip("openvino")
PARTS = {
    "relu": "Relu(x)",
    "signed": "Neg(x)",
    "pool": "MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(x)",
    "input": "Identity(x)",
}
X = normal(9, 1, 4, 8, 8)


def joined(parts: list[str], *, after: str = "Identity", symmetric: bool = True) -> ModelProto:
    """A convolution that reads a Concat of ``parts`` through ``after``, quantized."""
    lines = [f"p{number} = {PARTS[part]}" for number, part in enumerate(parts)]
    names = ", ".join(f"p{number}" for number in range(len(parts)))
    body = "\n".join([*lines, f"c = Concat<axis=1>({names})", f"t = {after}(c)", "y = Conv(t, c__weight)"])
    weights = {"c__weight": normal(1, 5, 4 * len(parts), 1, 1)}
    model = graph(f"g (float[1,4,8,8] x) => (float[1,5,8,8] y) {{ {body} }}", **weights)
    # 7 bits: x86 kernels without dot products add pairs of products in 16 bits, where 8 bits would saturate
    seven_bits = {name: 2 * values for name, values in weights.items()}
    return propagate_qdq(insert_qdq(model, table(seven_bits, c=int8(0.02) if symmetric else uint8(0.02, 128))))


def in_openvino(model: ModelProto, x: NDArray[np.float32]) -> NDArray[np.float32]:
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    return np.array(next(iter(compiled([x]).values())))


def snr_db(expected: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    return float(20 * np.log10(np.linalg.norm(expected) / max(np.linalg.norm(found - expected), 1e-12)))


@settings(deadline=None, max_examples=20)
@given(
    parts=st.lists(st.sampled_from(sorted(PARTS)), min_size=2, max_size=4),
    after=st.sampled_from(["Identity", "MaxPool<kernel_shape=[1,1]>", "Transpose<perm=[0,1,3,2]>"]),
    symmetric=st.booleans(),
)
def test_plain_openvino_computes_the_exported_form(parts: list[str], after: str, symmetric: bool) -> None:
    before = joined(parts, after=after, symmetric=symmetric)
    after_pass = concat_integers(before)
    expected = run(before, x=X)[0]
    np.testing.assert_array_equal(run(after_pass, x=X)[0], expected)
    assert concat_integers(after_pass) is after_pass
    assert snr_db(expected, in_openvino(after_pass, X)) > 30  # it gives 10 dB where it sums wrongly


def shuffled(parts: list[str], *, symmetric: bool, axis: int = 2) -> ModelProto:
    """A convolution that reads the channels of ``parts`` in turn: one of the first part, one of the second …"""
    lines = [f"p{number} = {PARTS[part]} u{number} = Unsqueeze(p{number}, axis)" for number, part in enumerate(parts)]
    names = ", ".join(f"u{number}" for number in range(len(parts)))
    body = "\n".join([*lines, f"c = Concat<axis={axis}>({names})", "t = Reshape(c, shape)", "y = Conv(t, c__weight)"])
    channels = 4 * len(parts)
    weights = {"c__weight": normal(1, 5, channels, 1, 1)}
    constants = {"axis": np.array([axis % 5]), "shape": np.array([0, channels, 8, 8], np.int64)}
    model = graph(f"g (float[1,4,8,8] x) => (float[1,5,8,8] y) {{ {body} }}", **weights, **constants)
    seven_bits = {name: 2 * values for name, values in weights.items()}
    return propagate_qdq(insert_qdq(model, table(seven_bits, c=int8(0.02) if symmetric else uint8(0.02, 128))))


@settings(deadline=None, max_examples=20)
@given(
    parts=st.lists(st.sampled_from(sorted(PARTS)), min_size=2, max_size=4),
    symmetric=st.booleans(),
    axis=st.sampled_from([1, 2, -3]),
)
def test_openvino_runs_what_reads_a_channel_shuffle_in_int8(parts: list[str], symmetric: bool, axis: int) -> None:
    before = shuffled(parts, symmetric=symmetric, axis=axis)
    after = lowering_openvino.lower(before)
    expected = run(before, x=X)[0]
    np.testing.assert_array_equal(run(after, x=X)[0], expected)
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(after.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    [layer] = executed_layers(executed_nodes(compiled), [LayerId("y")])
    assert layer.precision == "int8"
    assert snr_db(expected, np.array(next(iter(compiled([X]).values())))) > 30
    again = lowering_openvino.lower(after)
    assert sorted(n.SerializeToString() for n in again.graph.node) == sorted(
        n.SerializeToString() for n in after.graph.node
    )


def test_pairs_stay_before_a_shuffle_that_somebody_else_reads() -> None:
    before = shuffled(["relu", "pool"], symmetric=False)
    before.graph.node.append(onnx.helper.make_node("Identity", ["c"], ["z"]))
    before.graph.output.append(onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [1, 4, 2, 8, 8]))
    assert not regroup(import_graph(before))


def test_asymmetric_graphs_stay_as_they_are() -> None:
    model = joined(["relu", "signed"], symmetric=False)
    assert concat_integers(model) is model


def test_before_and_after() -> None:
    found = kinds(concat_integers(joined(["relu", "signed"])))
    assert found.count("QuantizeLinear") == 2
    assert found.count("DequantizeLinear") == 2, "one behind the Concat, one of the weight"
    assert lint(joined(["relu", "signed"])).findings[-1].rule == "signed-concat"
    assert "signed-concat" not in {
        finding.rule for finding in lint(concat_integers(joined(["relu", "signed"]))).findings
    }


@pytest.mark.parametrize("label", ["n_v2", "lite_s"])
def test_the_way_back_gives_the_same_pairs(label: str) -> None:
    before = quantized_graph(label)
    exported = concat_integers(before)
    graph = import_graph(exported)
    assert restore_pairs(graph)
    restored = export_graph(graph)
    assert sorted(kinds(restored)) == sorted(kinds(before))
    assert count_qdq(exported) == count_qdq(before)
    x = images()
    expected = run(before, images=x)[0]
    for model in (exported, restored):
        np.testing.assert_array_equal(run(model, images=x)[0], expected)


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
def test_a_lite_model_in_plain_openvino(scheme: str) -> None:
    exported = concat_integers(quantized_graph("lite_s", scheme))
    x = images()
    assert snr_db(run(exported, images=x)[0][..., :4], in_openvino(exported, x)[..., :4]) > 30


def test_openvino_gets_no_signed_concat_with_fp16_scales_either() -> None:
    half, _ = to_fp16(joined(["relu", "signed"]))
    for graph_in_either_form in (half, concat_integers(half)):
        lowered = lowering_openvino.lower(graph_in_either_form)
        assert not signed_concats(import_graph(lowered))
        np.testing.assert_array_equal(run(lowered, x=X)[0], run(half, x=X)[0])
        assert lowering_openvino.lower(lowered) is lowered


def test_fp16_graphs_have_the_form_too() -> None:
    half, _ = to_fp16(joined(["relu", "pool"]))
    exported = concat_integers(half)
    assert exported is not half
    np.testing.assert_array_equal(run(exported, x=X)[0], run(half, x=X)[0])
