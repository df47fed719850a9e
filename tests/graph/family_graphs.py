"""Every kind of layout of the family with few channels, exported and quantized: what the graph passes must hold for.

The widest ones are those of `few_blocks`, so that tests that take these share what torch exports of them.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import cycle

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from torch import nn

from repq.export import export_float
from repq.graph import insert_qdq, propagate_qdq
from repq.layers import LayerId, QuantPlan
from repq.model import Detector, build, get_spec, layer_ids
from repq.quant import calibrate, insert_quantizers, scale_table
from repq.recipe import CalibrationConfig, PtqConfig

SIZE = (64, 128)
FAMILY = {
    "n_v2": ("yolov6n_v2", 3, 1.0),
    "n, one class, odd widths": ("yolov6n", 1, 0.3),
    "m (CSP)": ("yolov6m", 2, 1 / 6),
    "l (CSP, SiLU)": ("yolov6l", 2, 1 / 8),
    "s6 (four levels)": ("yolov6s6", 2, 1 / 4),
    "s_mbla (SiLU)": ("yolov6s_mbla", 2, 1 / 4),
    "lite_s": ("yolov6lite_s", 3, 1.0),
}
OTHERS = {
    "s": ("yolov6s", 2, 1 / 4),
    "s_v2": ("yolov6s_v2", 2, 1 / 4),
    "m_v2 (CSP)": ("yolov6m_v2", 2, 1 / 6),
    "l_v2 (CSP)": ("yolov6l_v2", 2, 1 / 8),
    "s_qa": ("yolov6s_qa", 2, 1 / 4),
}
"""Alike in their graphs to some above; the builder sees them all."""
FEW = {"rep": ((1, 1, 2, 1), (1,)), "lite": ((1, 2, 1, 1), ())}
"""How often a stage repeats its block, in the backbone and in the neck, as in `few_blocks`."""


@cache
def detector(label: str) -> Detector:
    """A fused detector whose activations keep their size from layer to layer, and whose branches differ in size."""
    name, classes, width = (FAMILY | OTHERS)[label]
    full = get_spec(name, classes)
    fields = ("backbone_channels", "top_down_channels", "bottom_up_channels")
    channels = {f: tuple(max(6, round(c * width)) for c in getattr(full, f)) for f in fields}
    backbone, neck = FEW.get(full.stage, ((2,), (2,)))  # other stages halve the number
    repeats = {
        "backbone_repeats": tuple(map(min, full.backbone_repeats, cycle(backbone))),
        "neck_repeats": tuple(map(min, full.neck_repeats, cycle(neck))),
    }
    spec = replace(full, **channels, **repeats)
    torch.manual_seed(0)
    model = build(spec, deploy=True).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            inputs = module.weight[0].numel() if isinstance(module, nn.Conv2d) else module.in_channels
            nn.init.normal_(module.weight, 0, (2 / inputs) ** 0.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return model


@cache
def float_graph(label: str) -> ModelProto:
    return export_float(detector(label), SIZE)


@cache
def quantized_graph(label: str, scheme: str = "symmetric", keep_float: tuple[str, ...] = ()) -> ModelProto:
    """As training leaves it: every layer has an input scale of its own, also where several read one tensor."""
    model = detector(label)
    config = PtqConfig(scheme=scheme, keep_float=keep_float, calibration=CalibrationConfig(method="max"))
    plan = QuantPlan.keeping_float(layer_ids(model), keep_float)
    quantized = insert_quantizers(model, plan, config).eval()
    calibrate(quantized, [torch.from_numpy(images())], config.calibration)
    factors = np.random.default_rng(2).uniform(1, 1.2, len(plan.int8)).astype(np.float32)
    table = {
        layer: replace(scales, input=replace(scales.input, scale=scales.input.scale * factor))
        for (layer, scales), factor in zip(scale_table(quantized).items(), factors, strict=True)
    }
    graph = propagate_qdq(insert_qdq(float_graph(label), table))
    return onnx.shape_inference.infer_shapes(graph)


def images() -> NDArray[np.float32]:
    return np.random.default_rng(1).uniform(0, 1, (1, 3, *SIZE)).astype(np.float32)


def layers(label: str) -> tuple[LayerId, ...]:
    return layer_ids(detector(label))
