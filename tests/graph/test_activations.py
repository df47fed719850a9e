"""The activations behind layers, in graphs of every family."""

from __future__ import annotations

import pytest
import torch
from few_blocks import few_blocks

from repq.export import export_float, export_quantized
from repq.graph import smooth_activations
from repq.model import build, layer_ids
from repq.quant import quantize
from repq.recipe import PtqConfig
from repq.reparam import fuse

SIZE = (64, 64)
PREDICTIONS = ("head.cls_preds.", "head.reg_preds.", "head.obj_preds.")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("yolox_nano", "SiLU"), ("yolox_nano_hardswish", "Hardswish"), ("yolox_nano_relu", ""),
    ],
)  # fmt: skip
def test_it_is_known_of_every_layer(name: str, expected: str) -> None:
    torch.manual_seed(0)
    model = fuse(build(few_blocks(name, 2)).eval())
    wanted = {layer: expected for layer in layer_ids(model) if expected and not layer.startswith(PREDICTIONS)}
    assert smooth_activations(export_float(model, SIZE)) == wanted


def test_yolov6_has_it_in_the_head_alone() -> None:
    model = fuse(build(few_blocks("yolov6n_v2", 2)).eval())
    found = smooth_activations(export_float(model, SIZE))
    assert found and all(layer.startswith("detect.") and name == "SiLU" for layer, name in found.items())


def test_a_quantized_graph_says_the_same() -> None:
    torch.manual_seed(0)
    model = fuse(build(few_blocks("yolox_nano", 2)).eval())
    int8 = quantize(model, [torch.rand(1, 3, *SIZE) * 255], PtqConfig(auto=False)).model
    assert smooth_activations(export_quantized(int8, SIZE)) == smooth_activations(export_float(model, SIZE)) != {}
