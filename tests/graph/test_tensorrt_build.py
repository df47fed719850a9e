"""The real TensorRT parser and builder accept what the passes write, in a strongly typed network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from family_graphs import SIZE, detector, float_graph, quantized_graph
from onnx import ModelProto

from repq.export import export_float
from repq.graph import merge_scales, quantize_residuals, to_fp16
from repq.recipe import ExportConfig

trt: Any = pytest.importorskip("tensorrt", reason="TensorRT's Python API, parser and builder are not installed")

pytestmark = pytest.mark.tensorrt


def merged(label: str, keep_float: tuple[str, ...] = ()) -> ModelProto:
    return merge_scales(quantize_residuals(quantized_graph(label, keep_float=keep_float))[0])[0]


FORMS: dict[str, Callable[[str], ModelProto]] = {
    "FP32": float_graph,
    "FP16": lambda label: to_fp16(float_graph(label))[0],
    "FP16 in and out": lambda label: to_fp16(float_graph(label), float32_io=False)[0],
    "INT8": merged,
    "INT8+FP16": lambda label: to_fp16(merged(label))[0],
    "partial INT8+FP16": lambda label: to_fp16(merged(label, ("backbone.*_3.*", "detect.*_preds.*")))[0],
}


def parse(model: ModelProto) -> tuple[Any, Any, list[str]]:
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    parser.parse(model.SerializeToString())
    return builder, network, [parser.get_error(i).desc() for i in range(parser.num_errors)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("label", ["n_v2", "n, odd widths", "m (CSP)", "l (CSP, SiLU)", "s_mbla", "lite_s"])
def test_it_builds(label: str, form: str) -> None:
    builder, network, errors = parse(FORMS[form](label))
    assert errors == []
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    assert plan is not None and plan.nbytes > 0


def test_types_are_those_of_the_graph() -> None:
    _, network, _ = parse(to_fp16(float_graph("n_v2"), float32_io=False)[0])
    assert network.get_input(0).dtype == network.get_output(0).dtype == trt.float16
    _, network, _ = parse(to_fp16(merged("n_v2"))[0])
    assert network.get_input(0).dtype == network.get_output(0).dtype == trt.float32
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    types = {layer.get_output(0).dtype for layer in layers if layer.type == trt.LayerType.CONVOLUTION}
    assert types == {trt.float16}


def test_asymmetric_graphs_are_refused_as_lint_says() -> None:
    _, _, errors = parse(quantized_graph("n, odd widths", "asymmetric"))
    assert any("zero point" in error for error in errors)


def test_a_dynamic_batch_builds_with_a_profile() -> None:
    """The Q/DQ passes do not look at shapes; the types of a free batch axis are inferred as well."""
    model = export_float(detector("s_mbla"), SIZE, ExportConfig(batch=None))
    half, _ = to_fp16(model)
    builder, network, errors = parse(half)
    assert errors == []
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    profile.set_shape("images", (1, 3, *SIZE), (2, 3, *SIZE), (4, 3, *SIZE))
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None
