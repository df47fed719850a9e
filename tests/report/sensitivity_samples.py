"""A made-up measurement and plan of realistic shape, for the tests of the report alone. No figure here was measured."""

from __future__ import annotations

import math

import numpy as np
from report_samples import CREATED, ENVIRONMENT, LAYERS

from repq.report import ReportSummary
from repq.results import (
    FrontPoint,
    LatencyFront,
    LayerSensitivity,
    PlanReport,
    PlanTrial,
    Sensitivity,
    Similarity,
)

PLACES = ("local", "neck", "head")
KEPT = (LAYERS[1], LAYERS[2], LAYERS[30])


def make_sensitivity() -> Sensitivity:
    rng = np.random.default_rng(0)
    rows = []
    for index, layer in enumerate(LAYERS):
        similar = {}
        for place in PLACES:
            ratio = 10 ** rng.uniform(-5, -1)
            snr = math.inf if place == "neck" and layer.startswith("detect.") else -10 * math.log10(ratio)
            equal = math.isinf(snr)
            similar[place] = Similarity(
                mse=0.0 if equal else 3.7 * ratio, snr_db=snr, cosine=1.0 if equal else 1 - ratio / 2
            )
        ap_only_int8, ap_only_float = 0.3044 - 0.01 * rng.random(), 0.2501 + 0.01 * rng.random()
        rows.append(
            LayerSensitivity(
                layer=layer,
                macs=10_000 * (1 + index),
                **similar,
                ap_only_int8=ap_only_int8,
                ap_only_float=ap_only_float,
                activation="SiLU" if index % 3 == 0 else None,
            )
        )
    measures = [f"{place}.{name}" for place in PLACES for name in ("mse", "snr", "cosine")]
    return Sensitivity(
        model="yolov6s",
        scheme="symmetric",
        layers=tuple(rows),
        images={f"{index}.jpg": "0" * 64 for index in range(16)},
        ap_images={f"{index}.jpg": "0" * 64 for index in range(128)},
        ap_float=0.3044,
        ap_int8=0.2501,
        seconds={"local": 3.25, "end_to_end": 41.5, "ap.only_int8": 1234.5, "ap.only_float": 1301.5},
        correlations={
            one: {other: _correlation(i - j, other) for j, other in enumerate(measures)}
            for i, one in enumerate(measures)
        },
        notes=("backbone.stem: its output was zero on all images; its figures mean nothing",),
    )


def _correlation(distance: int, other: str) -> float | None:
    return None if other == "neck.mse" else round(1 - abs(distance) / 6, 3)


def make_plan(holds: bool = True) -> PlanReport:
    def trial(step: str, count: int, drop: float) -> PlanTrial:
        interval = (drop - 0.004, drop + 0.005)
        return PlanTrial(
            order="local.snr / (1 + cost)", float_layers=count, int8_share=1 - count / 90, drop=drop,
            drop_interval=interval, bound=drop + 0.0021, fits=drop + 0.0021 <= 0.005, step=step,  # type: ignore[arg-type]
        )  # fmt: skip

    trials = (trial("comparison", 9, 0.0043), trial("bisection", 4, 0.0091), trial("greedy", 3, 0.0026))
    points = tuple(
        FrontPoint(
            float_layers=count, int8_macs_share=1 - count / len(LAYERS), drop=drop,
            drop_interval=(drop - 0.004, drop + 0.004), latency_ms=latency,
            latency_ms_range=(latency - 0.11, latency + 0.13), chosen=count == 3,
            efficient=count != 40,
        )
        for count, drop, latency in (
            (0, 0.0543, 4.111), (3, 0.0026, 4.222), (40, 0.0031, 6.333), (len(LAYERS), 0.0, 9.444)
        )
    )  # fmt: skip
    return PlanReport(
        measure="local.snr / (1 + cost)",
        float_layers=KEPT,
        int8_macs_share=0.9612,
        reasons={layer: f"place {index} of {len(LAYERS)} by local.snr" for index, layer in enumerate(KEPT, start=1)},
        max_drop=0.005,
        holds=holds,
        drop=0.0026,
        drop_interval=(-0.0014, 0.0076),
        images=128,
        trials=trials,
        latency=LatencyFront(
            engine="openvino", threads=1, imgsz=(320, 320), layer_ms=dict.fromkeys(LAYERS, 0.0123), points=points
        ),
    )


def make_sensitivity_summary(holds: bool = True) -> ReportSummary:
    return ReportSummary(
        title="yolov6s: what quantizing each layer costs",
        created=CREATED,
        environment=ENVIRONMENT,
        results={"sensitivity": make_sensitivity(), "plan": make_plan(holds)},
    )
