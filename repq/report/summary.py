"""All that one run measured, as one frozen value: the input of every form of the report."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict

from repq.results import (
    Accuracy,
    BenchReport,
    CheckReport,
    EngineDescription,
    Environment,
    FusionReport,
    PtqReport,
    Result,
    TrainReport,
    Variant,
)

VARIANT_TITLES: dict[Variant, str] = {"fp32": "FP32", "fp16": "FP16", "int8": "INT8"}


class MeasuredAccuracy(Result):
    """The accuracy of one variant in one engine; ``engine`` is ``torch`` for the model itself or its simulation."""

    variant: Variant
    engine: str
    accuracy: Accuracy


class BuiltEngine(Result):
    variant: Variant
    description: EngineDescription


class ArtifactSize(Result):
    """Bytes on disk of one artifact: checkpoint, float ONNX, INT8 ONNX, engine folder …"""

    name: str
    size_bytes: int


class DrawnImage(Result):
    """One image with the boxes of both models, as JPEG bytes. ``matched``: boxes that both models found."""

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    name: str
    float_jpeg: bytes
    quantized_jpeg: bytes
    float_boxes: int
    quantized_boxes: int
    matched: int | None = None


class ReportSummary(Result):
    """The parts of a report. All but the title, the date and the environment may be absent.

    Attributes:
        created: ISO date of the run, given by the caller, so that equal input gives equal bytes.
        accuracies: one per variant and engine; the baseline of an engine is its own FP32, else torch's FP32.
        drawn_engine: the engine whose boxes the pictures show.
        drawn_confidence: lowest score of a box that the pictures show.
        manifests: the manifests of the run's artifacts, as they are on disk.
    """

    title: str
    created: str
    environment: Environment
    recipe: str | None = None
    model: str | None = None
    data: str | None = None
    imgsz: tuple[int, int] | None = None
    training: TrainReport | None = None
    fusion: FusionReport | None = None
    ptq: PtqReport | None = None
    accuracies: tuple[MeasuredAccuracy, ...] = ()
    engines: tuple[BuiltEngine, ...] = ()
    check: CheckReport | None = None
    bench: BenchReport | None = None
    sizes: tuple[ArtifactSize, ...] = ()
    drawn: tuple[DrawnImage, ...] = ()
    drawn_engine: str | None = None
    drawn_confidence: float | None = None
    manifests: tuple[dict[str, Any], ...] = ()
