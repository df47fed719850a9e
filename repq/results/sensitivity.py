"""What quantizing each layer alone costs, and the plan that follows from it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from repq.results.base import Range, Result, gained, measured_time
from repq.results.timing import MachineLoad


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
    activation: str | None = None  # behind it, where INT8 kernels of ONNX Runtime do not take it in: SiLU …


class Sensitivity(Result):
    """A layer-wise measurement and what it was made of. ``seconds`` and ``correlations`` go by measure."""

    model: str
    scheme: str
    layers: tuple[LayerSensitivity, ...]
    images: dict[str, str]  # of the similarities: name to SHA-256
    ap_images: dict[str, str] = Field(default_factory=dict)
    ap_float: float | None = None  # AP of the float model on ap_images
    ap_int8: float | None = None  # AP with every layer in INT8
    seconds: dict[str, float] = measured_time({})
    correlations: dict[str, dict[str, float | None]] = Field(
        default_factory=dict
    )  # Spearman's; None: a measure that does not vary
    settings: dict[str, Any] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()


class PlanTrial(Result):
    """One float set that the search tried. ``bound`` is the drop that the search compared with its budget."""

    order: str  # how the layers were ranked
    float_layers: int
    int8_share: float  # of what the search weighs: multiply-adds, or milliseconds that INT8 saves
    drop: float
    drop_interval: Range  # 95 %
    bound: float
    fits: bool
    step: Literal["all_int8", "comparison", "bisection", "greedy"]


class FrontPoint(Result):
    """One plan on the way from all layers in INT8 to all in float: AP in simulation, latency in the engine."""

    float_layers: int
    int8_macs_share: float
    drop: float
    drop_interval: Range  # 95 %
    latency_ms: float = measured_time()  # median
    latency_ms_range: Range = measured_time()  # quartiles
    chosen: bool = False  # the plan itself
    efficient: bool = False  # no other point is both faster and more accurate


class LatencyFront(MachineLoad):
    """What float layers cost in one engine: each alone, from the engine's own profile, and plans as a whole, timed."""

    engine: str
    threads: int
    imgsz: tuple[int, int]
    layer_ms: dict[str, float] = measured_time()  # time in float minus time in INT8
    points: tuple[FrontPoint, ...] = ()


class PlanReport(Result):
    """A plan, how it was found, and how sure the drop in AP is (paired bootstrap over images).

    ``holds``: whether the drop is within ``max_drop``; None without a budget. The SNRs are those of boxes and scores in
    dB, with the plan and with every layer in INT8 but those that the settings keep, where they chose the plan.
    """

    measure: str
    float_layers: tuple[str, ...]
    int8_macs_share: float
    kept_layers: tuple[str, ...] = ()  # of them: those that the settings keep in float, whatever they cost
    reasons: dict[str, str] = Field(default_factory=dict)  # why a layer stays in float
    max_drop: float | None = None
    holds: bool | None = None
    drop: float | None = None
    drop_interval: Range | None = None  # 95 %
    images: int = 0
    max_float: float | None = None
    snr_db: float | None = None
    snr_db_int8: float | None = None
    trials: tuple[PlanTrial, ...] = ()
    latency: LatencyFront | None = None

    @property
    def gain_db(self) -> float | None:
        """What the plan gains at the head; None: it was not chosen by that."""
        return None if self.snr_db is None or self.snr_db_int8 is None else gained(self.snr_db, self.snr_db_int8)

    @property
    def adds_nothing(self) -> bool:
        """Whether no layer stays in float beside those that the settings keep."""
        return set(self.float_layers) <= set(self.kept_layers)
