"""Made-up results of realistic shape and size, for the tests of the report alone. No figure here was measured."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from repq.report import ReportSummary
from repq.report.boxes import Found, compared, draw_panels
from repq.results import (
    Accuracy,
    Agreement,
    BenchReport,
    BenchRow,
    BlockFusion,
    CheckReport,
    ClassAccuracy,
    DrawnImage,
    EngineDescription,
    Environment,
    EpochRow,
    FusionReport,
    LayerPrecision,
    LayerQuantization,
    Pictures,
    PtqReport,
    PtqTrial,
    QatReport,
    ScaleChange,
    TrainReport,
    Variant,
)

CREATED = "2026-01-31"
HOSTILE = "<b>cat</b> | `dog` & *fox*"
LAYERS = tuple(
    [f"backbone.ERBlock_{stage}.{block}.rbr_reparam" for stage in range(2, 6) for block in range(11)]
    + [f"neck.Rep_p{stage}.block.{block}.rbr_reparam" for stage in (4, 3, 5, 6) for block in range(4)]
    + [f"detect.{part}.{scale}.conv" for part in ("stems", "cls_preds", "reg_preds", "reg_convs") for scale in range(3)]
)
STRAYED = LAYERS[3]  # planned in INT8, run in float32 by OpenVINO
CLASSES = (HOSTILE, *(f"class {index}" for index in range(1, 80)))

ENVIRONMENT = Environment(
    cpu="Imaginary Processor 9000 @ 2.60GHz",
    cores=2,
    cpu_features=("avx2", "avx512_vnni"),
    memory_gib=15.6,
    load_average=0.31,
    os="Linux 6.1",
    python="3.11.9",
    libraries={"torch": "2.13.0", "onnx": "1.20.0", "onnxruntime": "1.31.0", "openvino": "2026.4.1", "numpy": "2.4.6"},
)


def make_accuracy(ap: float, seed: int = 0, classes: tuple[str, ...] = CLASSES) -> Accuracy:
    rng = np.random.default_rng(seed)
    rows = []
    for index, name in enumerate(classes):
        value = None if index % 9 == 8 else float(np.clip(ap + rng.normal(0, 0.2), 0, 1))
        ap50 = None if value is None else min(1.0, value * 1.4)
        rows.append(ClassAccuracy(name=name, objects=0 if value is None else 3 + 7 * index, ap=value, ap50=ap50))
    return Accuracy(
        ap=ap,
        ap50=ap * 1.43,
        ap75=ap * 1.07,
        ap_small=ap * 0.41,
        ap_medium=ap * 1.1,
        ap_large=None,
        per_class=tuple(rows),
        images=128,
        objects=929,
        detections=24310 + seed,
    )


def nudged(accuracy: Accuracy, ap: float, seed: int) -> Accuracy:
    """The accuracy of the same model a little worse."""
    rng = np.random.default_rng(seed)
    drop = accuracy.ap - ap
    rows = []
    for row in accuracy.per_class:
        values = [
            None if v is None else float(np.clip(v - drop + rng.normal(0, 0.02), 0, 1)) for v in (row.ap, row.ap50)
        ]
        rows.append(row.model_copy(update={"ap": values[0], "ap50": values[1]}))
    update = {"ap": ap, "ap50": accuracy.ap50 - drop, "ap75": accuracy.ap75 - drop, "per_class": tuple(rows)}
    return accuracy.model_copy(update=update)


def make_ptq() -> PtqReport:
    rng = np.random.default_rng(1)
    rows = []
    for index, layer in enumerate(LAYERS):
        kept = index in (0, 20, 21)
        weight, activation = float(np.exp(rng.normal(-0.5, 0.9))), float(np.exp(rng.normal(1.6, 0.8)))
        rows.append(
            LayerQuantization(
                layer=layer,
                precision="float" if kept else "int8",
                macs=int(10 ** rng.uniform(6, 8.2)),
                weight_range=(-weight, weight * 0.9),
                weight_channel_ratio=float(np.exp(rng.normal(2, 0.6))),
                activation_range=(0.0, activation),
                activation_scale=None if kept else activation / 127,
                activation_zero_point=None if kept else 0,
                weight_snr_db=None if kept else float(rng.normal(38, 4)),
                activation_snr_db=None if kept else float(rng.normal(29, 6)),
            )
        )
    full = make_accuracy(0.3044)
    return PtqReport(
        model="yolov6lite_s",
        method="mse",
        scheme="symmetric",
        images=128,
        layers=tuple(rows),
        int8_macs_share=0.9214,
        accuracy_float=full,
        accuracy_quantized=nudged(full, 0.2987, 5),
        trials=(
            PtqTrial(name="mse", head_snr_db=8.2, gain_db=None, kept=True, ap_train=0.2188, seconds=14.2),
            PtqTrial(name="+ equalize", head_snr_db=8.1, gain_db=-0.1, kept=False, seconds=22.3),
            PtqTrial(name="+ outputs=mean", head_snr_db=21.6, gain_db=13.4, kept=True, ap_train=0.288, seconds=15.2),
        ),
        extra_macs_share=0.03,
    )


def make_engine(engine: str, variant: Variant, size: int, strayed: tuple[str, ...] = ()) -> EngineDescription:
    kept = {LAYERS[0], LAYERS[20], LAYERS[21], *strayed}
    layers = tuple(
        LayerPrecision(
            layer=layer,
            precision="int8" if variant == "int8" and layer not in kept else "float32",
            kernel="brgconv_avx512" if engine == "openvino" else "",
        )
        for layer in LAYERS
    )
    return EngineDescription(
        engine=engine,
        version="2026.4.1" if engine == "openvino" else "1.31.0",
        device="CPU",
        input_name="images",
        input_shape=(1, 3, 320, 320),
        output_names=("detections",),
        size_bytes=size,
        layers=layers,
        extra_nodes={"quantize": 12, "reorder": 5} if variant == "int8" else {},
    )


def make_bench() -> BenchReport:
    rng = np.random.default_rng(2)
    medians = {
        ("onnxruntime", "float32"): 69.1,
        ("onnxruntime", "int8"): 42.3,
        ("openvino", "float32"): 88.4,
        ("openvino", "int8"): 35.9,
    }
    rows = []
    for scope, extra in (("infer", 0.0), ("end_to_end", 11.7)):
        for batch in (1, 8):
            for (engine, precision), base in medians.items():
                median = (base + extra) * batch
                samples = tuple(float(v) for v in np.sort(median * (1 + np.abs(rng.normal(0, 0.03, 50)))))
                rows.append(
                    BenchRow(
                        model="yolov6n",
                        engine=engine,
                        variant=precision,
                        precision=precision,
                        batch=batch,
                        threads=2,
                        scope=scope,
                        latency_ms_median=median,
                        latency_ms_p95=samples[-3],
                        images_per_s=1000 * batch / median,
                        runs=50,
                        size_bytes=18_900_000 if precision == "float32" else 5_020_000,
                        speedup=(69.1 + extra) * batch / median,
                        samples_ms=samples,
                    )
                )
    return BenchReport(rows=tuple(rows), environment=ENVIRONMENT, imgsz=(320, 320), rounds=5)


def make_fusion(error: float = 3.2e-6) -> FusionReport:
    rng = np.random.default_rng(3)
    blocks = []
    for layer in LAYERS:
        before, after = float(np.exp(rng.normal(-1, 0.3))), float(np.exp(rng.normal(0.3, 0.8)))
        blocks.append(
            BlockFusion(
                block=layer.rpartition(".")[0],
                kind="RepVGGBlock",
                layer=layer,
                max_abs_error=error * 4.7,
                max_rel_error=error * float(rng.uniform(0.1, 1)),
                weight_range_before=(-before, before),
                weight_range_after=(-after, after * 1.1),
            )
        )
    return FusionReport(
        model="yolov6lite_s", blocks=tuple(blocks), max_abs_error=0.00113, max_rel_error=error, images=8, tolerance=1e-3
    )


def make_training() -> TrainReport:
    epochs = tuple(
        EpochRow(
            epoch=epoch,
            learning_rate=0.01 * (1 - epoch / 42),
            losses={"class": 1.9 / (1 + epoch / 6), "iou": 1.1 / (1 + epoch / 9), "total": 3.4 / (1 + epoch / 7)},
            ap=0.6 * (1 - np.exp(-epoch / 12)) if epoch % 5 == 0 else None,
            ap50=0.82 * (1 - np.exp(-epoch / 10)) if epoch % 5 == 0 else None,
            seconds=2.9,
        )
        for epoch in range(1, 41)
    )
    return TrainReport(
        model="yolov6n_v2",
        epochs=epochs,
        images=240,
        images_per_s=81.7,
        best_epoch=40,
        accuracy=make_accuracy(0.58, 4, ("disc", "square", "star")),
        parameters=4_301_234,
    )


@cache
def make_drawn() -> tuple[DrawnImage, ...]:
    rng = np.random.default_rng(6)
    pairs = []
    for number in range(3):
        ramp = np.linspace(40, 200, 480)[None, :, None] + np.linspace(-30, 30, 360)[:, None, None]
        image = np.clip(ramp + rng.normal(0, 4, (360, 480, 3)), 0, 255).astype(np.uint8)
        corners = rng.uniform((10, 10), (300, 200), (4, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(60, 140, (4, 2))], axis=1)
        rows = np.concatenate([boxes, rng.uniform(0.2, 0.95, (4, 1)), rng.integers(0, 80, (4, 1))], axis=1)
        moved = rows + np.array([3, -2, 4, 1, -0.03, 0])
        truth = Found("ground truth", np.column_stack([rows[:, :4], np.full(4, np.nan), rows[:, 5]]))
        shown = (truth, *compared(("FP32", rows), ("INT8", moved)))
        pairs.append(draw_panels(f"{number:012d}.jpg", image, shown, CLASSES))
    return tuple(pairs)


def make_qat(ptq: PtqReport) -> QatReport:
    rng = np.random.default_rng(12)
    int8 = [row.layer for row in ptq.layers if row.precision == "int8"]
    names = ("distill_features", "distill_class", "distill_box")
    epochs = [
        EpochRow(epoch=number, learning_rate=0.001 / number, losses=dict.fromkeys(names, 3 / number), seconds=12.5)
        for number in range(1, 21)
    ]
    return QatReport(
        model=ptq.model,
        scheme=ptq.scheme,
        scales="learned",
        epochs=tuple(epochs),
        images=128,
        images_per_s=10.2,
        int8_layers=tuple(int8),
        float_layers=tuple(row.layer for row in ptq.layers if row.precision == "float"),
        changes=tuple(
            ScaleChange(
                layer=layer,
                input_before=0.02,
                input_after=0.02 * rng.uniform(0.7, 1.2),
                weight_ratio=rng.uniform(0.9, 1),
            )
            for layer in int8
        ),
        accuracy_float=ptq.accuracy_float,
        accuracy_calibrated=ptq.accuracy_quantized,
        accuracy_trained=nudged(ptq.accuracy_float, 0.3012, 9),
    )


def make_results() -> dict[str, Any]:
    """By stage, as a run gives them."""
    return dict(_results())


@cache
def _results() -> dict[str, Any]:
    ptq = make_ptq()
    full = ptq.accuracy_float
    quantized = {"onnxruntime": nudged(full, 0.2991, 6), "openvino": nudged(full, 0.2842, 7)}
    accuracies = {"torch-float32": full, "torch-int8": ptq.accuracy_quantized}
    for engine, accuracy in quantized.items():
        accuracies |= {f"{engine}-float32": nudged(full, 0.3043, 8), f"{engine}-int8": accuracy}
    check = CheckReport(
        reference=ptq.accuracy_quantized,
        engines=tuple(
            Agreement(
                model=f"{engine}-int8",
                engine=engine,
                variant="int8",
                precision="int8 in 69 of 72 layers",
                size_bytes=5_020_000,
                snr_db={"boxes": 41.27, "scores": 36.64},
                max_abs_error={"boxes": 3.118, "scores": 0.0421},
                accuracy=accuracy,
                ap_gap=accuracy.ap - 0.2987,
                int8_layers=69,
                float_layers=3,
            )
            for engine, accuracy in quantized.items()
        ),
        images=128,
        max_drop=0.005,
        min_snr_db=None,
        passed=False,
    )
    return {
        "train": make_training(),
        "fuse": make_fusion(),
        "ptq": ptq,
        "qat": make_qat(ptq),
        "eval": accuracies,
        "build": {
            "onnxruntime-float32": make_engine("onnxruntime", "float32", 18_912_345),
            "openvino-float32": make_engine("openvino", "float32", 18_823_456),
            "onnxruntime-int8": make_engine("onnxruntime", "int8", 5_023_456),
            "openvino-int8": make_engine("openvino", "int8", 4_934_567, strayed=(STRAYED, *LAYERS[30:37])),
        },
        "check": check,
        "bench": make_bench(),
        "sizes": {"checkpoint": 18_654_321, "float ONNX": 18_712_345, "INT8 ONNX": 18_998_765},
        "pictures": Pictures(engine="openvino", confidence=0.3, images=make_drawn(), looked_at=9),
    }


MANIFESTS = (
    {
        "stage": "ptq",
        "key": "9f2c4e11aa07",
        "config": {"scheme": "symmetric", "note": HOSTILE},
        "inputs": {"fuse": "5d41402abc4b2a76b9719d911017c592"},
        "versions": {"torch": "2.13.0"},
        "seed": 0,
        "created": "2026-01-31T10:00:00+00:00",
        "seconds": 41.3,
        "files": {"ptq.json": "aa11"},
    },
    {"stage": "bench", "key": "0c1d2e3f4a5b", "config": {"rounds": 5}, "seed": 0},
)


def make_summary(**changes: Any) -> ReportSummary:
    """A whole run, with some results exchanged."""
    return ReportSummary(
        title="quickstart: yolov6lite_s in INT8",
        created=CREATED,
        environment=ENVIRONMENT,
        recipe="quickstart",
        model="yolov6lite_s",
        data="coco128 (val)",
        imgsz=(320, 320),
        results=make_results() | changes,
        manifests=MANIFESTS,
    )


def part(**results: Any) -> ReportSummary:
    """The least summary that holds some results."""
    return ReportSummary(title="t", created=CREATED, environment=ENVIRONMENT, results=results)
