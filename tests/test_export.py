from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from family_graphs import SIZE, detector, float_graph
from few_blocks import few_blocks
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from torch import nn

from repq.errors import GraphError, RepqError
from repq.export import export_float, export_quantized, load_onnx, save_onnx
from repq.graph import layer_nodes, propagate_qdq, read_metadata
from repq.layers import QuantPlan
from repq.model import Detector, build, layer_ids
from repq.preprocessing import preset
from repq.quant import apply_scales, calibrate, insert_quantizers, scale_table
from repq.recipe import CalibrationConfig, ExportConfig, PtqConfig
from repq.scales import LayerScales
from repq.thresholds import Thresholds


def images(batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def run(model: ModelProto, x: torch.Tensor) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    (output,) = session.run(["detections"], {"images": x.numpy()})
    return output


def compute(model: Detector, x: torch.Tensor) -> NDArray[np.float32]:
    with torch.inference_mode():
        return model(x).numpy()


def of_layers(model: Detector) -> list[nn.Parameter]:
    return [parameter for layer in layer_ids(model) for parameter in model.get_submodule(layer).parameters()]


def dimensions(value: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


@pytest.fixture(scope="module")
def fused() -> Detector:
    return copy.deepcopy(detector("n_v2"))  # tests change it


@pytest.fixture(scope="module")
def exported(fused: Detector) -> ModelProto:
    return export_float(fused, SIZE, names=("a", "b", "c"))


@pytest.fixture(scope="module")
def of_equal_weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelProto, Path]:
    """The graph of a model whose layers of one shape have equal weights, and a cache with nothing else in it."""
    model = copy.deepcopy(detector("n_v2"))
    for parameter in of_layers(model):
        nn.init.ones_(parameter)
    cache = tmp_path_factory.mktemp("other-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPQ_CACHE", str(cache))
        return export_float(model, SIZE), cache


@pytest.fixture
def other_cache(of_equal_weights: tuple[ModelProto, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REPQ_CACHE", str(of_equal_weights[1]))
    return of_equal_weights[1]


@pytest.fixture(scope="module", params=["symmetric", "asymmetric"])
def quantized(fused: Detector, request: pytest.FixtureRequest) -> Detector:
    config = PtqConfig(scheme=request.param, calibration=CalibrationConfig(method="max"))
    plan = QuantPlan.keeping_float(layer_ids(fused), ["detect.*_preds.*"])
    return calibrated(fused, plan, config)


@pytest.fixture(scope="module")
def quantized_graph(quantized: Detector) -> ModelProto:
    return export_quantized(quantized, SIZE)


def calibrated(fused: Detector, plan: QuantPlan, config: PtqConfig) -> Detector:

    model = insert_quantizers(fused, plan, config)
    calibrate(model, [images(4).numpy()], config.calibration)
    return model


@pytest.mark.parametrize("label", ["n, one class, odd widths", "lite_s"])
def test_families_compute_in_onnx_what_they_compute_in_torch(label: str) -> None:
    model, graph = detector(label), float_graph(label)
    expected = compute(model, images())
    # float32 sums in another order: far below one millionth of the largest value per layer, over some hundred layers
    np.testing.assert_allclose(run(graph, images()), expected, atol=1e-4 * np.abs(expected).max())
    assert set(layer_nodes(graph)) == set(layer_ids(model))
    assert not {"Identity", "Constant", "Cast", "Shape", "BatchNormalization"} & {n.op_type for n in graph.graph.node}


def test_inputs_outputs_and_names(exported: ModelProto, fused: Detector) -> None:
    (source,), (result,) = exported.graph.input, exported.graph.output
    points = 64 * 128 * (1 / 64 + 1 / 256 + 1 / 1024)
    assert (source.name, dimensions(source)) == ("images", [1, 3, 64, 128])
    assert (result.name, dimensions(result)) == ("detections", [1, points, 8])
    assert [entry.version for entry in exported.opset_import] == [19]
    for layer, node in layer_nodes(exported, layer_ids(fused)).items():
        assert node.name == layer
        assert list(node.input[1:]) == [f"{layer}.weight", f"{layer}.bias"]


def test_the_same_model_gives_the_same_bytes(
    exported: ModelProto, fused: Detector, other_cache: Path, tmp_path: Path
) -> None:
    again = export_float(fused, SIZE, names=("a", "b", "c"))
    for name, model in (("one", exported), ("two", again)):
        save_onnx(tmp_path / name, model)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert str(Path(__file__).parents[1]).encode() not in (tmp_path / "one").read_bytes(), "no paths of this machine"
    assert load_onnx(tmp_path / "one") == exported


def test_the_file_says_what_it_is(exported: ModelProto, fused: Detector) -> None:
    metadata = read_metadata(exported)
    assert metadata is not None
    assert (metadata.names, metadata.imgsz, metadata.num_classes) == (("a", "b", "c"), SIZE, 3)
    assert (metadata.precision, metadata.int8_layers) == ("float32", ())
    assert json.loads(metadata.spec) == json.loads(fused.spec.to_json())


def test_a_newer_opset_and_a_dynamic_batch(fused: Detector) -> None:
    graph = export_float(fused, SIZE, ExportConfig(opset=21, batch=None))
    assert [entry.version for entry in graph.opset_import] == [21]
    assert dimensions(graph.graph.input[0]) == ["batch", 3, 64, 128]
    assert dimensions(graph.graph.output[0])[0] == "batch"
    for batch in (1, 3):
        expected = compute(fused, images(batch))
        np.testing.assert_allclose(run(graph, images(batch)), expected, atol=1e-4 * np.abs(expected).max())


def test_exporting_is_quiet_and_leaves_the_model_alone(
    fused: Detector, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    before = {name: value.clone() for name, value in fused.state_dict().items()}
    fused.train()
    export_float(fused, SIZE)
    assert fused.training
    fused.eval()
    assert all(torch.equal(before[name], value) for name, value in fused.state_dict().items())
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


def test_the_cache_holds_no_weights(other_cache: Path) -> None:
    """Models of the structure in the cache, one for another use, which finds the cache damaged."""

    def demand_own_weights(share: float, **use: Any) -> None:
        other = build(replace(few_blocks("yolov6n_v2", 3), **use), deploy=True).eval()
        other.load_state_dict(detector("n_v2").state_dict())
        for parameter in of_layers(other):
            parameter.data *= share
        expected = compute(other, images())
        graph = export_float(other, SIZE)
        metadata = read_metadata(graph)
        assert metadata is not None
        assert (metadata.thresholds, metadata.preprocessing) == (other.spec.thresholds, other.spec.preprocessing)
        np.testing.assert_allclose(run(graph, images()), expected, atol=1e-4 * np.abs(expected).max())

    demand_own_weights(0.9)
    (kept,) = (other_cache / "exports").iterdir()
    kept.write_bytes(kept.read_bytes()[:-1])
    demand_own_weights(0.8, thresholds=Thresholds(confidence=0.5), preprocessing=preset("yolox"))


def test_equal_weights_stay_apart(of_equal_weights: tuple[ModelProto, Path]) -> None:
    """The exporter merges equal tensors; two layers with equal weights still need their own."""
    assert set(layer_nodes(of_equal_weights[0])) == set(layer_ids(detector("n_v2")))


def test_refusals(fused: Detector) -> None:
    with pytest.raises(GraphError, match="only a fused model"):
        export_float(build("yolov6n_v2", 3), SIZE)
    with pytest.raises(RepqError, match="32"):
        export_float(fused, (64, 100))
    with pytest.raises(GraphError, match="2 names for 3 classes"):
        export_float(fused, SIZE, names=("a", "b"))


def snr_db(expected: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    return float(20 * np.log10(np.linalg.norm(expected) / np.linalg.norm(found - expected)))


def test_the_quantized_graph_computes_what_fake_quantization_computes(
    quantized: Detector, quantized_graph: ModelProto
) -> None:
    """Both round the same numbers by the same rule, but sum convolutions in another order, in float32.

    A value on the edge between two integers may therefore fall to the other side: one step in one place, which some
    fifty layers of random weights spread. The noise of quantization itself is about 25 dB below the boxes here.
    """
    x = images(1)
    expected, found = compute(quantized, x), run(quantized_graph, x)
    assert snr_db(expected[..., :4], found[..., :4]) > 40
    assert snr_db(expected[..., 5:], found[..., 5:]) > 40
    np.testing.assert_array_equal(found[..., 4], 1)


def test_with_exact_sums_the_quantized_graph_differs_in_nothing(fused: Detector) -> None:
    """Scales that are powers of two and biases on the grid of their products make every float32 sum exact.

    Then order does not matter, and torch and ONNX agree bit by bit up to the head's sigmoids, whose last bits differ.
    A value may still fall to the other side of an edge behind those, in a few of some ten thousand places.
    """
    model = calibrated(fused, QuantPlan(layer_ids(fused)), PtqConfig(calibration=CalibrationConfig(method="max")))
    table = {}
    for layer, scales in scale_table(model).items():
        inputs, weight = (
            replace(scale, scale=np.exp2(np.ceil(np.log2(scale.scale))).astype(np.float32))
            for scale in (scales.input, scales.weight)
        )
        table[layer] = LayerScales(inputs, weight)
        conv = model.get_submodule(layer)
        grid = torch.from_numpy(np.atleast_1d(inputs.scale * weight.scale))
        conv.bias = nn.Parameter(torch.round(conv.bias.detach() / grid) * grid)
    apply_scales(model, table)
    expected, found = compute(model, images(1)), run(export_quantized(model, SIZE), images(1))
    equal = np.isclose(found, expected, rtol=1e-5, atol=1e-5)
    assert equal.mean() > 0.99
    assert snr_db(expected, found) > 60


def test_every_quantized_layer_is_in_the_graph(quantized: Detector, quantized_graph: ModelProto) -> None:
    graph, table = quantized_graph, scale_table(quantized)
    values = {tensor.name: tensor for tensor in graph.graph.initializer}
    for layer in layer_nodes(graph, layer_ids(quantized)):
        weight = numpy_helper.to_array(values[f"{layer}.weight"])
        assert weight.dtype == (np.int8 if layer in table else np.float32)
    metadata = read_metadata(graph)
    assert metadata is not None
    assert metadata.precision == "int8"
    assert set(metadata.int8_layers) == set(table)


def test_the_quantized_graph_suits_tensorrt(quantized_graph: ModelProto) -> None:
    """No pair between a convolution and its activation, none that nothing quantized reads, nothing left to move."""
    graph = quantized_graph
    producers = {name: node for node in graph.graph.node for name in node.output}
    readers = {name: node.op_type for node in graph.graph.node for name in node.input}
    for node in graph.graph.node:
        if node.op_type == "Relu":
            assert producers[node.input[0]].op_type in {"Conv", "ConvTranspose"}
        if node.op_type == "DequantizeLinear":
            assert readers[node.output[0]] in {"Conv", "ConvTranspose", "Concat", "MaxPool"}
    assert [n.name for n in propagate_qdq(graph).graph.node] == [n.name for n in graph.graph.node]


def test_a_model_without_scales_is_refused(fused: Detector) -> None:

    model = insert_quantizers(fused, QuantPlan(layer_ids(fused)), PtqConfig())
    with pytest.raises(RepqError, match="no scales"):
        export_quantized(model, SIZE)
