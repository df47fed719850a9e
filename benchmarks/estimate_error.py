"""Fit the factors of `repq estimate` to published figures, and say how far it is off.

Published: YOLOv6 report (arXiv 2209.02976v1), 640x640, images per second at batch 1 and 32: Table 18 (T4, TensorRT
8.2, FP16, YOLOv6-N, S, M, L), Table 17 (T4, YOLOv6-S in INT8), Table 19 (V100, FP16). The factors are fitted to Table
18 alone, by least squares of log ratios. Each of its models is also estimated with factors fitted without it, which is
what an error on a new model looks like; Table 17 shows it for another precision, Table 19 for another device.

    python benchmarks/estimate_error.py [--out results.json]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from onnx import ModelProto

from repq.estimate import DEVICES, Device, Efficiency, estimate
from repq.export import export_float, export_quantized
from repq.graph import merge_scales, quantize_residuals, to_fp16
from repq.layers import QuantPlan
from repq.model import build, layer_ids
from repq.quant import calibrate, insert_quantizers
from repq.recipe import CalibrationConfig, PtqConfig
from repq.results import Estimate

BATCHES = (1, 32)
MODELS = ("yolov6n_v2", "yolov6s_v2", "yolov6m_v2", "yolov6l_v2")
PUBLISHED = {
    "t4": dict(zip(MODELS, ((810, 1323), (362, 522), (180, 241), (105, 131)), strict=True)),
    "v100": dict(zip(MODELS, ((752, 2031), (507, 1546), (287, 750), (175, 416)), strict=True)),
}
INT8_ON_T4 = (596, 869)
SIZE = (640, 640)


def float_graph(name: str) -> ModelProto:
    torch.manual_seed(0)
    return to_fp16(export_float(build(name, 80, deploy=True).eval(), SIZE))[0]


def int8_graph(name: str) -> ModelProto:
    """All layers quantized, scales merged, the rest FP16: what the report's full QAT deploys. Scales do not matter."""
    torch.manual_seed(0)
    model = build(name, 80, deploy=True).eval()
    config = PtqConfig(calibration=CalibrationConfig(method="max"))
    quantized = insert_quantizers(model, QuantPlan(layer_ids(model)), config)
    calibrate(quantized, [np.random.default_rng(0).random((1, 3, 128, 128), dtype=np.float32)], config.calibration)
    graph, _ = quantize_residuals(export_quantized(quantized, SIZE))
    return to_fp16(merge_scales(graph)[0])[0]


class Limits:
    """The arithmetic and the memory time of every kernel at full efficiency, in microseconds."""

    def __init__(self, graph: ModelProto, device: Device) -> None:
        full = Efficiency(1, 1, 0, "")
        rows: list[Estimate] = [estimate(graph, device, batch=batch, efficiency=full) for batch in BATCHES]
        self.compute = [np.array([kernel.compute_us for kernel in row.kernels]) for row in rows]
        self.memory = [np.array([kernel.memory_us for kernel in row.kernels]) for row in rows]

    def images_per_s(self, compute: float, memory: float, launch_us: float) -> list[float]:
        return [
            1e6 * batch / float(np.maximum(c / compute, m / memory).sum() + launch_us * len(c))
            for batch, c, m in zip(BATCHES, self.compute, self.memory, strict=True)
        ]


def fit(limits: dict[str, Limits], published: dict[str, tuple[int, ...]]) -> tuple[float, float, float]:
    """Compute share, memory share and microseconds per kernel of the least mean squared log ratio."""

    def error(factors: Sequence[float]) -> float:
        found = [limits[name].images_per_s(*factors) for name in published]
        return float(np.square(np.log(np.array(found) / np.array(list(published.values())))).mean())

    grid = [(c, m, t) for c in np.arange(0.2, 1, 0.05) for m in np.arange(0.2, 1.01, 0.1) for t in np.arange(0, 12, 1)]
    best = min(grid, key=error)
    for step in (0.02, 0.005):
        near = np.array([-2, -1, 0, 1, 2]) * step
        grid = [
            (best[0] + c, min(1.0, best[1] + m), max(0.0, best[2] + 20 * t)) for c in near for m in near for t in near
        ]
        best = min(grid, key=error)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    graphs = {name: float_graph(name) for name in MODELS}
    rows = []
    t4 = {name: Limits(graph, DEVICES["t4"]) for name, graph in graphs.items()}
    factors = fit(t4, PUBLISHED["t4"])
    print(f"compute {factors[0]:.3f}, memory {factors[1]:.3f}, launch {factors[2]:.2f} us")
    for name, measured in PUBLISHED["t4"].items():
        others = fit(t4, {other: value for other, value in PUBLISHED["t4"].items() if other != name})
        own, left_out = t4[name].images_per_s(*factors), t4[name].images_per_s(*others)
        rows += [("t4", name, "fp16", *row) for row in zip(BATCHES, measured, own, left_out, strict=True)]
    found = Limits(int8_graph("yolov6s_v2"), DEVICES["t4"]).images_per_s(*factors)
    rows += [("t4", "yolov6s_v2", "int8", *row, row[-1]) for row in zip(BATCHES, INT8_ON_T4, found, strict=True)]
    for name, measured in PUBLISHED["v100"].items():
        found = Limits(graphs[name], DEVICES["v100"]).images_per_s(*factors)
        rows += [("v100", name, "fp16", *row, row[-1]) for row in zip(BATCHES, measured, found, strict=True)]
    for key, name, precision, batch, measured, found, left_out in rows:
        errors = f"({found / measured - 1:+.0%}); fitted without it {left_out:6.0f} ({left_out / measured - 1:+.0%})"
        print(f"{key:5} {name:11} {precision} batch {batch:2}: published {measured:5}, estimated {found:6.0f} {errors}")
    if arguments.out:
        fields = ("device", "model", "precision", "batch", "published", "estimated", "fitted_without_it")
        arguments.out.write_text(json.dumps([dict(zip(fields, row, strict=True)) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
