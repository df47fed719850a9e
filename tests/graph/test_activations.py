"""The activations behind layers, in graphs of every family."""

from __future__ import annotations

import re

import pytest
import torch
from family_graphs import float_graph, layers
from few_blocks import few_blocks

from repq.export import export_float, export_quantized
from repq.graph import smooth_activations
from repq.model import Detector, build, layer_ids
from repq.quant import quantize
from repq.recipe import PtqConfig

SIZE = (64, 64)


@pytest.fixture(scope="module")
def yolox() -> Detector:
    torch.manual_seed(0)
    return build(few_blocks("yolox_nano", 3), deploy=True).eval()


def test_yolox_has_it_behind_every_layer_but_the_predictions(yolox: Detector) -> None:
    wanted = {layer: "SiLU" for layer in layer_ids(yolox) if "_preds." not in layer}
    assert smooth_activations(export_float(yolox, SIZE)) == wanted


def test_lite_models_have_two_kinds() -> None:
    wanted = {
        layer: "HardSigmoid" if ".se." in layer else "Hardswish"
        for layer in layers("lite_s")
        if not re.search(r"conv_dw_[12]\.block|se\.conv1|_preds\.", layer)
    }
    assert set(wanted.values()) == {"HardSigmoid", "Hardswish"}
    assert smooth_activations(float_graph("lite_s")) == wanted


def test_yolov6_has_it_in_the_head_alone() -> None:
    """ReLU, behind all its other layers, is none."""
    found = smooth_activations(float_graph("n_v2"))
    assert found and all(layer.startswith("detect.") and name == "SiLU" for layer, name in found.items())


def test_a_quantized_graph_says_the_same(yolox: Detector) -> None:
    int8 = quantize(yolox, [torch.rand(1, 3, *SIZE) * 255], PtqConfig(auto=False)).model
    assert smooth_activations(export_quantized(int8, SIZE)) == smooth_activations(export_float(yolox, SIZE)) != {}
