"""Merging, residual placement, FP16 and lint on every kind of layout of the family."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from family_graphs import FAMILY, float_graph, images, layers, quantized_graph
from graph_views import residual_operands, scale_groups
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from small_graphs import run

from repq.graph import count_qdq, layer_groups, lint, merge_scales, quantize_residuals, read_metadata, to_fp16
from repq.graph.integers import arriving_parameters, parameters_of
from repq.graph.layer_join import layers_of
from repq.graph.scale_merging import MergeReport, unequal_groups
from repq.graph.surgeon import array, import_graph, producer

everyone = pytest.mark.parametrize("label", FAMILY)


def bytes_of(model: ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)


def snr_db(reference: NDArray, other: NDArray) -> float:
    difference = reference.astype(np.float64) - other
    return float(10 * np.log10((reference.astype(np.float64) ** 2).sum() / max((difference**2).sum(), 1e-30)))


@cache
def merging(label: str) -> tuple[ModelProto, MergeReport]:
    """Of the graph as it is, which stays so; no residuals are placed before."""
    before = quantized_graph(label)
    untouched = bytes_of(before)
    merged = merge_scales(before)
    assert bytes_of(before) == untouched
    return merged


@cache
def merged(label: str) -> ModelProto:
    return merge_scales(quantize_residuals(quantized_graph(label))[0])[0]


@everyone
def test_after_merging_no_group_has_two_scales(label: str) -> None:
    model = merged(label)
    graph = import_graph(model)
    assert not unequal_groups(graph)
    tensors = graph.tensors()
    sides = {group: {arriving_parameters(tensors[name]) for name in group} for group in scale_groups(model)}
    assert all(len(found - {None}) <= 1 for found in sides.values())


@everyone
def test_every_layer_keeps_int8_and_no_avoidable_kernel_stays(label: str) -> None:
    before, after = quantized_graph(label), merged(label)
    assert [row.precision for row in lint(after).layers] == ["int8"] * len(layers(label))
    assert count_qdq(after).avoidable == 0 < count_qdq(before).avoidable
    assert count_qdq(after).extra_kernels < count_qdq(before).extra_kernels


@everyone
def test_merging_never_adds_pairs_and_repeats(label: str) -> None:
    after, report = merging(label)
    assert report.after.quantize <= report.before.quantize
    assert report.after.dequantize <= report.before.dequantize
    again, repeated = merge_scales(after)
    assert bytes_of(again) == bytes_of(after)
    assert not repeated.groups
    assert repeated.before == repeated.after


@everyone
def test_the_report_names_all_that_was_unequal(label: str) -> None:
    after, report = merging(label)
    unequal = unequal_groups(import_graph(quantized_graph(label)))
    assert [group.tensors for group in report.groups] == [tuple(group) for group in unequal]
    scales = {parameters_of(node).scale for node in import_graph(after).nodes if node.op == "QuantizeLinear"}  # type: ignore[union-attr]
    assert {np.float32(group.scale) for group in report.groups} <= {np.float32(scale) for scale in scales}


@everyone
def test_placing_and_merging_repeat_together(label: str) -> None:
    after = merged(label)
    placed, report = quantize_residuals(after)
    assert bytes_of(placed) == bytes_of(after)
    assert report.quantized == report.left_float == ()
    assert residual_operands(after) == ()


@everyone
def test_merged_scales_are_the_largest_of_their_group(label: str) -> None:
    _, report = merging(label)
    assert report.groups
    for group in report.groups:
        assert group.scale == max(group.before) > min(group.before)


@everyone
def test_the_merged_graph_runs_and_stays_near(label: str) -> None:
    """Coarser scales cost little on tensors of like size."""
    x = images()
    reference = run(float_graph(label), images=x)[0]
    before, after = run(quantized_graph(label), images=x)[0], run(merged(label), images=x)[0]
    assert np.isfinite(after).all()
    assert snr_db(reference, after) > snr_db(reference, before) - 3


@everyone
def test_layers_of_one_group_read_one_scale(label: str) -> None:
    nodes, groups = layers_of(import_graph(merged(label))), layer_groups(float_graph(label))
    assert groups
    for group in groups:
        assert len({arriving_parameters(nodes[layer].inputs[0]) for layer in group}) == 1


@everyone
def test_float_and_quantized_graph_have_the_same_groups(label: str) -> None:
    models = float_graph(label), quantized_graph(label)
    first, second = ({frozenset(group) for group in scale_groups(model, residual_adds=False)} for model in models)
    assert first == second


@everyone
def test_lint_warns_before_and_passes_after(label: str) -> None:
    assert lint(quantized_graph(label)).exit_code() == 1
    assert lint(merged(label)).at_least("warning") == ()


@everyone
def test_int8_with_fp16_has_no_float32_but_the_decoding(label: str) -> None:
    model, report = to_fp16(merged(label))
    for node in layers_of(import_graph(model)).values():
        for slot, tensor in enumerate(node.inputs[1:], 1):
            source = producer(tensor)
            value = array(node, slot) if source is None else array(source, 1)
            assert value is not None and value.dtype == np.float16
    assert lint(model).at_least("warning") == ()
    assert len(report.fp32_nodes) < 15
    output = run(model, images=images())[0]
    assert output.dtype == np.float32
    assert np.isfinite(output).all()


@everyone
def test_pure_fp16_computes_what_float32_computes(label: str) -> None:
    """FP16 rounds to 2^-11 = -66 dB; some 50 layers in a row leave 40 dB or more."""
    graph = float_graph(label)
    model, _ = to_fp16(graph)
    assert {t.data_type for t in model.graph.initializer if t.name.endswith(".weight")} == {10}
    x = images()
    assert snr_db(run(graph, images=x)[0], run(model, images=x)[0]) > 40
    metadata = read_metadata(model)
    assert metadata is not None and metadata.precision == "float16"
    assert len(model.SerializeToString()) < 0.6 * len(graph.SerializeToString()) + 60_000


@pytest.mark.parametrize("label", ["n, one class, odd widths", "lite_s"])
def test_asymmetric_scales_cover_the_union_of_the_ranges(label: str) -> None:
    before = quantized_graph(label, "asymmetric")
    after, report = merge_scales(before)
    assert not unequal_groups(import_graph(after))
    assert report.groups
    ranges = {p.range for model in (before,) for p in activation_parameters(model)}
    for parameters in activation_parameters(after):
        low, high = parameters.range
        assert low <= 0 <= high
    assert max(high for _, high in ranges) <= max(p.range[1] for p in activation_parameters(after)) * (1 + 1 / 255)
    assert snr_db(run(float_graph(label), images=images())[0], run(after, images=images())[0]) > 25


def activation_parameters(model: ModelProto) -> list:
    return [parameters_of(node) for node in import_graph(model).nodes if node.op == "QuantizeLinear"]


@pytest.mark.parametrize(("label", "last"), [("m (CSP)", "conv2"), ("s_mbla (SiLU)", "conv3")])
def test_float_layers_stay_float_and_their_adds_too(label: str, last: str) -> None:
    keep = ("backbone.ERBlock_3.*", f"*.m.*{last}*")
    before = quantized_graph(label, keep_float=keep)
    placed, report = quantize_residuals(before)
    assert report.left_float
    after, _ = merge_scales(placed)
    assert set(lint(after).layers) == set(lint(before).layers)
    assert count_qdq(after).extra_kernels < count_qdq(before).extra_kernels
    assert lint(after).at_least("warning") == ()
    assert np.isfinite(run(after, images=images())[0]).all()


def test_equal_scales_give_equal_outputs() -> None:
    """All scales of one size: merging only removes and moves pairs, so the output is the same bit by bit."""
    before = ModelProto()
    before.CopyFrom(quantized_graph("s_mbla (SiLU)"))
    for tensor in before.graph.initializer:
        if tensor.name.endswith(".input_scale"):
            tensor.CopyFrom(numpy_helper.from_array(np.array(0.03, np.float32), tensor.name))
    after, report = merge_scales(before)
    assert not report.groups
    np.testing.assert_array_equal(run(before, images=images())[0], run(after, images=images())[0])
