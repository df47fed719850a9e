"""What the stages measure, as plain typed values: the payload of artifacts, of ``--json`` and of the report.

Every model is frozen, forbids unknown keys and reads back from its own JSON.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Result(BaseModel):
    # Infinities (the SNR of equal outputs) become strings, since JSON has none and null would not read back.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    def values(self) -> dict[str, Any]:
        """The result as plain JSON values."""
        plain: dict[str, Any] = json.loads(self.model_dump_json())
        return plain


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


class Similarity(Result):
    """A quantized tensor against its float original: an SNR of infinity says that they are equal."""

    mse: float
    snr_db: float
    cosine: float


class LayerSensitivity(Result):
    """What quantizing this layer alone costs; None: not measured.

    ``local`` is at the layer's own output, ``neck`` and ``head`` at the model's; AP is a fraction in 0..1.
    """

    layer: str
    macs: int  # multiply-adds for one image
    local: Similarity | None = None
    neck: Similarity | None = None
    head: Similarity | None = None
    ap_only_int8: float | None = None  # AP with this layer in INT8 and all others in float
    ap_only_float: float | None = None  # AP with this layer in float and all others in INT8


class Sensitivity(Result):
    """A layer-wise measurement and what it was made of. ``seconds`` and ``correlations`` go by measure."""

    model: str
    scheme: str
    layers: tuple[LayerSensitivity, ...]
    images: dict[str, str]  # of the similarities: name to SHA-256
    ap_images: dict[str, str] = {}
    ap_float: float | None = None  # AP of the float model on ap_images
    ap_int8: float | None = None  # AP with every layer in INT8
    seconds: dict[str, float] = {}
    correlations: dict[str, dict[str, float | None]] = {}  # Spearman's; None: a measure that does not vary
    settings: dict[str, Any] = {}
    notes: tuple[str, ...] = ()


class PlanTrial(Result):
    """One float set that the search tried. ``bound`` is the drop that the search compared with its budget."""

    float_layers: int
    drop: float
    bound: float
    fits: bool
    step: Literal["bisection", "greedy"]


class PlanReport(Result):
    """A plan, how it was found, and how sure the drop in AP is (paired bootstrap over images)."""

    measure: str
    float_layers: tuple[str, ...]
    int8_macs_share: float
    max_drop: float | None = None
    drop: float | None = None
    drop_interval: Range | None = None  # 95 %
    images: int = 0
    trials: tuple[PlanTrial, ...] = ()


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


class Availability(Result):
    """Whether a runtime and one of its devices can be used here, and if not, why and how to get it."""

    runtime: str  # torch, onnxruntime, openvino, tensorrt
    device: str
    usable: bool
    version: str | None
    detail: str  # what was found, or what is missing
    fix: str | None = None


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


Variant = Literal["fp32", "fp16", "int8"]
"""What a model was built as. What its layers really ran in is in ``EngineDescription.layers``."""


class BenchRow(Result):
    """Latency of one model at one setting; milliseconds for a whole batch."""

    model: str
    engine: str
    variant: Variant
    precision: str  # what its layers really ran in
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
