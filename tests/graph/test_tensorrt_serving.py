"""The real TensorRT parser and builder take graphs that preprocess and suppress by themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from family_graphs import float_graph, quantized_graph
from graph_views import for_serving
from onnx import ModelProto

from repq.graph import merge_scales, quantize_residuals, to_fp16
from repq.recipe import LetterboxConfig, NmsConfig, PreprocessConfig

trt: Any = pytest.importorskip("tensorrt", reason="TensorRT's Python API, parser and builder are not installed")

pytestmark = pytest.mark.tensorrt


def merged(label: str) -> ModelProto:
    return merge_scales(quantize_residuals(quantized_graph(label))[0])[0]


FORMS: dict[str, Callable[[str], ModelProto]] = {
    "FP32": float_graph,
    "FP16": lambda label: to_fp16(float_graph(label))[0],
    "INT8": merged,
    "INT8+FP16": lambda label: to_fp16(merged(label))[0],
}


def parse(model: ModelProto) -> tuple[Any, Any, list[str]]:
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    parser.parse(model.SerializeToString())
    return builder, network, [str(parser.get_error(i).desc()) for i in range(parser.num_errors)]


SERVING = {
    "bytes": PreprocessConfig(uint8=True, bgr=True),
    "letterbox, half": PreprocessConfig(uint8=True, letterbox=LetterboxConfig(), source=(128, 256)),
    "letterbox, fraction": PreprocessConfig(uint8=True, letterbox=LetterboxConfig(), source=(100, 301)),
    "letterbox, enlarged": PreprocessConfig(uint8=True, letterbox=LetterboxConfig(), source=(40, 50)),
}


@pytest.mark.parametrize("form", ["FP32", "FP16", "INT8", "INT8+FP16"])
@pytest.mark.parametrize("preprocess", SERVING)
def test_graphs_with_preprocessing_build(preprocess: str, form: str) -> None:
    builder, network, errors = parse(for_serving(FORMS[form]("n_v2"), SERVING[preprocess], None))
    assert errors == []
    assert network.get_input(0).dtype == trt.uint8
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    assert plan is not None and plan.nbytes > 0


def test_images_of_any_size_build_with_a_profile() -> None:
    preprocess = PreprocessConfig(uint8=True, letterbox=LetterboxConfig())
    builder, network, errors = parse(for_serving(FORMS["INT8+FP16"]("n_v2"), preprocess, None))
    assert errors == []
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    profile.set_shape("images", (1, 32, 32, 3), (1, 100, 300, 3), (1, 1080, 1920, 3))
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None


@pytest.mark.parametrize("multi_label", [True, False])
@pytest.mark.parametrize("form", ["FP32", "INT8+FP16"])
def test_suppression_becomes_a_layer_of_its_own(form: str, multi_label: bool) -> None:
    """It is parsed, not built: the library that builds without a GPU (TensorRT for RTX) implements no NMS layer."""
    model = for_serving(FORMS[form]("n_v2"), SERVING["bytes"], NmsConfig(multi_label=multi_label))
    _, network, errors = parse(model)
    assert errors == []
    assert trt.LayerType.NMS in {network.get_layer(i).type for i in range(network.num_layers)}
    assert (network.num_outputs, network.get_output(0).name) == (1, "boxes")
