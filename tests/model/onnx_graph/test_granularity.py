"""One scale for all of a weight: in the simulation, in the graph, and in every engine that runs here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from detectors import SIZE, yolov8
from numpy.typing import NDArray
from onnx import numpy_helper

import repq
from repq.engine import availability
from repq.quant import load_weights, scale_table
from repq.quant.convolution import QuantConv2d, is_depthwise

OPTIONS = {"imgsz": SIZE, "method": "max", "scheme": "symmetric"}


def pictures(count: int = 4) -> list[NDArray[np.uint8]]:
    return list(np.random.default_rng(0).integers(0, 255, (count, SIZE, SIZE, 3), np.uint8))


def network_input() -> NDArray[np.float32]:
    return np.random.default_rng(1).random((1, 3, SIZE, SIZE), np.float32)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, repq.Model]:
    """A float file, quantized with one scale for a weight and with one for each channel; and the first as a graph."""
    folder = tmp_path_factory.mktemp("granularity")
    onnx.save(yolov8(), folder / "float.onnx")
    float_ = repq.load(folder / "float.onnx", engine="torch")
    tensor, channel = (
        float_.quantize(pictures(), weight_granularity=kind, **OPTIONS) for kind in ("tensor", "channel")
    )
    coarse = float_.quantize(pictures(), weight_granularity="tensor", reduce_range=True, **OPTIONS)
    graph = coarse.export(folder / "int8.onnx", imgsz=SIZE)
    return {"float": float_, "tensor": tensor, "channel": channel, "coarse": coarse, "graph": graph}


def weights_of(model: repq.Model) -> dict[str, torch.nn.Module]:
    assert model.weights is not None
    return {name: layer for name, layer in model.weights.model.named_modules() if isinstance(layer, QuantConv2d)}


def test_the_scale_is_that_of_the_largest_weight(models: dict[str, repq.Model], tmp_path: Path) -> None:
    saved = models["tensor"].save(tmp_path / "tensor.safetensors")
    table = scale_table(load_weights(saved).model)
    assert table
    for name, layer in weights_of(models["tensor"]).items():
        scale = table[name].weight
        assert scale.axis is None
        assert scale.scale == np.float32(layer.weight.detach().abs().max()) / np.float32(127)
    by_channel = scale_table(models["channel"].weights.model)
    assert all(by_channel[name].weight.scale.max() == scales.weight.scale for name, scales in table.items())


def test_the_graph_has_one_number_for_each_weight(models: dict[str, repq.Model]) -> None:
    graph = onnx.load(models["graph"].path).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in stored]
    assert len(weights) == len(weights_of(models["tensor"]))
    assert all(stored[node.input[1]].shape == () for node in weights)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "ncnn"])
def test_engines_compute_what_the_simulation_says(models: dict[str, repq.Model], engine: str) -> None:
    if not any(row.usable for row in availability() if row.runtime == engine):
        pytest.skip(f"{engine} is not here")
    built = models["graph"].build(engine)
    x = network_input()
    simulated, plain, found = (np.asarray(model.infer(x)) for model in (models["coarse"], models["float"], built))
    noise = np.linalg.norm(simulated - plain)
    assert np.linalg.norm(found - simulated) < 0.25 * noise


def test_a_scale_per_input_channel_needs_one_per_channel_of_the_weight(models: dict[str, repq.Model]) -> None:
    correct = {"channel_inputs": True}
    found = models["float"].quantize(pictures(), weight_granularity="tensor", correct=correct, **OPTIONS)
    assert any("no depthwise layer" in note for note in found.report.notes)
    depthwise = [name for name, layer in weights_of(found).items() if is_depthwise(layer)]
    assert depthwise
    table = scale_table(found.weights.model)
    assert all(table[name].input.axis is None for name in depthwise)


def test_every_other_correction_keeps_to_one_number(models: dict[str, repq.Model]) -> None:
    correct = {"outputs": "moments", "rounding": "adaptive", "equalize": True, "split_below_db": 60.0}
    found = models["float"].quantize(pictures(), weight_granularity="tensor", correct=correct, **OPTIONS)
    table = scale_table(found.weights.model)
    assert any(scales.fine is not None for scales in table.values())
    for scales in table.values():
        assert {scale.scale.shape for scale in (scales.weight, scales.fine) if scale is not None} == {()}
