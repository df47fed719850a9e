"""Whatever a detector is made of, and however its file was written: what goes in is what comes out."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto
from random_graphs import random_detector
from test_graph_detector import IMGSZ, noise, run, saved

from repq.api.exporting import write_onnx
from repq.export import export_float, export_quantized
from repq.graph import propagate_qdq
from repq.model import count_macs, load_graph
from repq.prune.channels import FIXED
from repq.prune.cutting import Pruner
from repq.quant import Weights, quantize
from repq.recipe import ExportConfig, GraphConfig, PtqConfig

LAYOUT = GraphConfig(layout="yolov8")
seeds = st.integers(0, 10**6)


def snr(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(10 * np.log10(np.square(wanted).mean() / max(np.square(found - wanted).mean(), 1e-20)))


def nameless(model: ModelProto) -> ModelProto:
    """ONNX Runtime takes no names twice."""
    for node in model.graph.node:
        node.name = ""
    return model


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_torch_computes_what_onnx_runtime_does(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    model = random_detector(seed)
    detector = load_graph(saved(model, tmp_path_factory.mktemp("any")), config=LAYOUT).model
    (wanted,) = run(nameless(model), noise(2))
    with torch.no_grad():
        together = detector.outputs(detector.features(noise(2)))[0].numpy()
        alone = detector.outputs(detector.features(noise(2)[:1]))[0].numpy()
    for found, expected in (
        (together, wanted),
        (alone, wanted[:1]),
        (run(export_float(detector, IMGSZ), noise(2))[0], wanted),
    ):
        assert snr(found, expected) > 80


@settings(max_examples=8, deadline=None)
@given(seeds, st.sampled_from(["symmetric", "asymmetric"]))
def test_graphs_compute_what_the_simulation_does(
    tmp_path_factory: pytest.TempPathFactory, seed: int, scheme: str
) -> None:
    folder = tmp_path_factory.mktemp("any")
    detector = load_graph(saved(random_detector(seed), folder), config=LAYOUT).model
    config = PtqConfig.model_validate({"scheme": scheme})
    quantized = quantize(detector, [noise(2)], config).model
    with torch.no_grad():
        wanted = quantized.outputs(quantized.features(noise(1)))[0].numpy()
        exact = detector.outputs(detector.features(noise(1)))[0].numpy()
    graph, least = export_quantized(quantized, IMGSZ), snr(wanted, exact)
    assert (
        snr(run(graph, noise(1))[0], wanted) > least + 6
    )  # values on the edge of two integers, and what hangs on them
    assert propagate_qdq(graph).graph.node == graph.graph.node
    weights = Weights(quantized, None, config)
    for settings_ in ({"float16": True}, {"form": "onnxruntime"}, {"form": "openvino"}):
        write_onnx(weights, folder / "out.onnx", IMGSZ, ExportConfig.model_validate(settings_))
        assert snr(run(onnx.load(folder / "out.onnx"), noise(1))[0], wanted) > least - 6


@settings(max_examples=10, deadline=None)
@given(seeds, st.floats(0.3, 0.9))
def test_a_smaller_graph_is_a_graph(tmp_path_factory: pytest.TempPathFactory, seed: int, share: float) -> None:
    """`Pruner.cut` compares it with what is left of the whole one."""
    detector = load_graph(saved(random_detector(seed), tmp_path_factory.mktemp("any")), config=LAYOUT).model
    pruner = Pruner(detector)
    kept = np.random.default_rng(seed).uniform(size=pruner.channels.count) < share
    kept[FIXED] = True
    for units in (*pruner.channels.outputs.values(), *pruner.channels.inputs.values()):
        kept[units[0]] |= not kept[units].any()
    smaller = pruner.cut(kept)
    graph = export_float(smaller, IMGSZ)
    onnx.checker.check_model(graph, full_check=True)
    with torch.no_grad():
        wanted = smaller.outputs(smaller.features(noise(2)))[0].numpy()
    assert snr(run(graph, noise(2))[0], wanted) > 80
    assert count_macs(smaller, IMGSZ).keys() == count_macs(detector, IMGSZ).keys()


def test_the_pieces_are_all_drawn() -> None:
    kinds = {node.op_type for seed in range(60) for node in random_detector(seed).graph.node}
    assert kinds >= {"ConvTranspose", "GroupNormalization", "LayerNormalization", "Split", "Gelu", "Resize", "Identity"}
