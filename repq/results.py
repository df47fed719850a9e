"""What the stages measure, as plain typed values: the payload of artifacts, of ``--json`` and of the report.

Every model is frozen, forbids unknown keys and reads back from its own JSON.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Result(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


Range = tuple[float, float]


# --- models and fusion -----------------------------------------------------------------------------------------------


class BlockFusion(Result):
    """One block before and after fusing. Errors compare the block's output on the same real input."""

    block: str
    kind: str
    layer: str
    max_abs_error: float
    max_rel_error: float  # max_abs_error over the output's range (max - min)
    weight_range_before: Range  # over all branch kernels, before batch norm is folded in
    weight_range_after: Range


class FusionReport(Result):
    """The proof of one fused model. ``max_*`` are of the whole model's detections."""

    model: str
    blocks: tuple[BlockFusion, ...]
    max_abs_error: float
    max_rel_error: float
    images: int
    tolerance: float


# --- accuracy --------------------------------------------------------------------------------------------------------


class ClassAccuracy(Result):
    name: str
    objects: int
    ap: float | None  # None: no object of the class in the data
    ap50: float | None


class Accuracy(Result):
    """COCO metrics, fractions in 0..1; None where the data has no object of that size."""

    ap: float
    ap50: float
    ap75: float
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    per_class: tuple[ClassAccuracy, ...]
    images: int
    objects: int
    detections: int


# --- quantization ----------------------------------------------------------------------------------------------------


class LayerQuantization(Result):
    """What calibration saw of one layer and what it decided."""

    layer: str
    precision: Literal["int8", "float"]
    macs: int  # multiply-adds for one image
    weight_range: Range
    weight_channel_ratio: float  # largest over smallest non-zero per-output-channel |weight| maximum
    activation_range: Range
    activation_scale: float | None
    activation_zero_point: int | None
    weight_snr_db: float | None
    activation_snr_db: float | None


class PtqReport(Result):
    model: str
    method: str
    scheme: str
    images: int
    layers: tuple[LayerQuantization, ...]
    int8_macs_share: float
    accuracy_float: Accuracy
    accuracy_quantized: Accuracy


# --- engines ---------------------------------------------------------------------------------------------------------


class LayerPrecision(Result):
    """The precision that the runtime really used for one layer."""

    layer: str
    precision: str  # int8, float32, float16, bfloat16 …
    kernel: str = ""


class EngineDescription(Result):
    engine: str
    version: str
    device: str
    input_name: str
    input_shape: tuple[int | str, ...]
    output_names: tuple[str, ...]
    size_bytes: int
    layers: tuple[LayerPrecision, ...]
    extra_nodes: dict[str, int] = {}  # quantize, dequantize, reorder … that remain in the executed graph

    def precision_counts(self) -> dict[str, int]:
        """Number of layers per precision."""
        counts: dict[str, int] = {}
        for layer in self.layers:
            counts[layer.precision] = counts.get(layer.precision, 0) + 1
        return counts


class Agreement(Result):
    """One engine against torch's fake quantization on the same images. SNR is 20 log10(|reference| / |difference|)."""

    engine: str
    snr_db: dict[str, float]  # per output: boxes, scores
    max_abs_error: dict[str, float]
    accuracy: Accuracy
    ap_gap: float  # engine AP minus reference AP
    int8_layers: int
    float_layers: int


class CheckReport(Result):
    reference: Accuracy
    engines: tuple[Agreement, ...]
    images: int
    max_ap_gap: float
    min_snr_db: float | None
    passed: bool


# --- timing ----------------------------------------------------------------------------------------------------------


class Environment(Result):
    cpu: str
    cores: int
    cpu_features: tuple[str, ...]  # those that matter for INT8 and FP16: avx2, avx512_vnni, amx_int8 …
    memory_gib: float
    load_average: float
    os: str
    python: str
    libraries: dict[str, str]
    gpu: str | None = None


class BenchRow(Result):
    """Latency of one model at one setting; milliseconds for a whole batch."""

    model: str
    engine: str
    precision: str
    batch: int
    threads: int
    scope: Literal["infer", "end_to_end"]  # end_to_end adds pre- and post-processing
    latency_ms_median: float
    latency_ms_p95: float
    images_per_s: float
    runs: int
    size_bytes: int
    speedup: float | None = None  # median of the first model at the same setting over this median
    samples_ms: tuple[float, ...] = ()


class BenchReport(Result):
    rows: tuple[BenchRow, ...]
    environment: Environment
    imgsz: tuple[int, int]
    rounds: int


# --- training --------------------------------------------------------------------------------------------------------


class EpochRow(Result):
    epoch: int
    learning_rate: float
    losses: dict[str, float]  # class, iou, dfl, total: means over the epoch
    ap: float | None = None
    ap50: float | None = None
    seconds: float = 0.0


class TrainReport(Result):
    model: str
    epochs: tuple[EpochRow, ...]
    images: int
    images_per_s: float
    best_epoch: int
    accuracy: Accuracy  # of the EMA weights that were kept
    parameters: int
