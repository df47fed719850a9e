"""Times of layers and of plans, from a real engine of a small model."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from onnx import ModelProto

from repq.bench import layer_milliseconds, time_plans
from repq.bench.plans import plan_engines
from repq.engine.availability import installed
from repq.export import export_float
from repq.layers import LayerId
from repq.model import build, get_spec
from repq.quant import quantize, scale_table
from repq.recipe import BenchConfig, CalibrationConfig, EngineName, PtqConfig
from repq.scales import ScaleTable

SIZE = (64, 64)
TIMING = BenchConfig(threads=(1,), warmup=1, rounds=2, runs_per_round=3)


@pytest.fixture(scope="module")
def model() -> tuple[ModelProto, ScaleTable]:
    torch.manual_seed(0)
    spec = replace(get_spec("yolov6n_v2", 1), backbone_repeats=(1, 1, 1, 1), neck_repeats=(1, 1, 1, 1))
    fused = build(spec, deploy=True).eval()
    config = PtqConfig(calibration=CalibrationConfig(method="max", bins=128))
    quantized = quantize(fused, [torch.rand(2, 3, *SIZE)], config).model
    return export_float(quantized, SIZE), scale_table(quantized)


HAS_NCNN = installed("ncnn") and installed("pnnx")
RUNTIMES = ["openvino", pytest.param("ncnn", marks=pytest.mark.skipif(not HAS_NCNN, reason="needs ncnn and pnnx"))]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_layer_gets_a_time(model: tuple[ModelProto, ScaleTable], runtime: EngineName) -> None:
    graph, scales = model
    found = layer_milliseconds(runtime, graph, scales, SIZE, TIMING)
    assert list(found) == list(scales)
    assert all(map(math.isfinite, found.values()))
    assert any(found.values())


def test_plans_run_with_their_float_layers_and_take_turns(model: tuple[ModelProto, ScaleTable]) -> None:
    graph, scales = model
    kept = list(scales)[1:5]
    plans: list[tuple[LayerId, ...]] = [tuple(scales), tuple(layer for layer in scales if layer not in kept), ()]
    with plan_engines("openvino", graph, scales, plans, TIMING) as engines:
        for built, plan in zip(engines, plans, strict=True):
            assert {row.layer for row in built.describe().layers if row.precision == "int8"} == set(plan)
    samples = time_plans("openvino", graph, scales, plans, SIZE, TIMING)
    assert [len(times) for times in samples] == [6, 6, 6]
    assert all(time > 0 for times in samples for time in times)
