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
    ExportReport,
    FusionReport,
    PlanReport,
    PtqReport,
    QatReport,
    Result,
    Sensitivity,
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


class MachineBench(Result):
    """The timings of one machine; ``name`` is what the tables call it."""

    name: str
    bench: BenchReport

    @property
    def processor(self) -> str:
        """What the models ran on, as far as the environment tells."""
        on_gpu = any(row.device_ms_median is not None or row.gpu is not None for row in self.bench.rows)
        environment = self.bench.environment
        return environment.gpu if on_gpu and environment.gpu else environment.cpu


class ReportSummary(Result):
    """The parts of a report. All but the title, the date and the environment may be absent.

    Attributes:
        created: ISO date of the run, given by the caller, so that equal input gives equal bytes.
        graph: the INT8 file that TensorRT gets.
        accuracies: one per variant and engine; the baseline of an engine is its own FP32, else torch's FP32.
        machines: timings of several machines, set side by side.
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
    sensitivity: Sensitivity | None = None
    plan: PlanReport | None = None
    ptq: PtqReport | None = None
    qat: QatReport | None = None
    graph: ExportReport | None = None
    accuracies: tuple[MeasuredAccuracy, ...] = ()
    engines: tuple[BuiltEngine, ...] = ()
    check: CheckReport | None = None
    bench: BenchReport | None = None
    machines: tuple[MachineBench, ...] = ()
    sizes: tuple[ArtifactSize, ...] = ()
    drawn: tuple[DrawnImage, ...] = ()
    drawn_engine: str | None = None
    drawn_confidence: float | None = None
    manifests: tuple[dict[str, Any], ...] = ()
