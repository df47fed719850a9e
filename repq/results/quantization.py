"""What quantizing layers does, and which way to INT8 a checkpoint needs."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from repq.results.accuracy import Accuracy
from repq.results.base import Range, Result, measured_time
from repq.results.graphs import QdqCount


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
    activation_channels: int = 1  # scales of the input: 1, or one per channel, of which activation_scale is the largest
    convolutions: int = 1  # 2 for a split layer: coarse and fine
    weight_snr_db: float | None
    activation_snr_db: float | None


class PtqTrial(Result):
    """Settings that were tried: what the head's output then looks like against the float model's.

    ``head_snr_db`` is on images of the train split: on ones that were held out if the tool chose the settings, else on
    the calibration images. With ``inputs_alone`` weights were in float for it.
    """

    name: str
    head_snr_db: float
    gain_db: float | None  # against the trial that it builds on; None for the first
    kept: bool  # whether the steps after it build on it
    inputs_alone: bool = False
    ap_train: float | None = None
    seconds: float = measured_time()


class AppliedCorrection(Result):
    """A correction that a model has, and what it costs in the engine; empty: nothing."""

    name: str
    title: str
    cost: str


class PtqReport(Result):
    model: str
    method: str
    calibration: str = ""  # the method's title
    scheme: str
    images: int
    layers: tuple[LayerQuantization, ...]
    int8_macs_share: float
    accuracy_float: Accuracy | None  # None, and below: not evaluated
    accuracy_quantized: Accuracy | None
    accuracy_own_scales: Accuracy | None = None  # where scales are shared: with one for every tensor alone
    qdq_own_scales: QdqCount | None = None  # of the graph with those
    share_scales: str = "none"
    shared_groups: int = 0  # groups of layers that share the scale of their inputs
    settings: dict[str, Any] = Field(default_factory=dict)  # as chosen
    corrections: tuple[AppliedCorrection, ...] = ()
    trials: tuple[PtqTrial, ...] = ()
    extra_macs_share: float = 0.0  # multiply-adds that split layers add, as a share of all


WayName = Literal["ptq", "corrected", "partial", "repopt", "qat"]


class LayerDiagnosis(Result):
    """One layer: what its values look like, and what quantizing its weight or its input alone does to its output."""

    layer: str
    macs: int
    weight_channel_ratio: float  # largest over smallest non-zero per-output-channel |weight| maximum
    weight_crest: float  # largest |weight| of a channel over that channel's root mean square, the worst channel
    activation_range: Range
    activation_tail: float  # largest |input| over the 99.9th percentile of |input|
    activation_channel_ratio: float  # largest over median |input| maximum of the channels
    weight_snr_db: float | None  # of the output; None: no error, or no signal
    activation_snr_db: float | None
    findings: tuple[str, ...] = ()


def noise(row: LayerQuantization | LayerDiagnosis) -> float:
    """Noise over signal of a layer's output, by its weight and its input."""
    return sum(10 ** (-value / 10) for value in (row.weight_snr_db, row.activation_snr_db) if value is not None)


class Way(Result):
    """A way to INT8 and what was measured of it; figures are None for ways that take training.

    Attributes:
        ap_drop: AP that it loses on labelled images that calibrated nothing; None: there are none.
        sufficient: whether it loses no more AP than allowed, nor too much of the head's signal; None: not measured,
            or by SNR alone, which cannot approve of a way.
    """

    name: WayName
    command: str
    head_snr_db: float | None
    ap_drop: float | None = None
    sufficient: bool | None
    evidence: str


class PresetTrial(Result):
    """AP of the float model on labelled images that are prepared by one preset; ``taken``: as the model says itself."""

    name: str
    ap: float
    taken: bool


class Diagnosis(Result):
    model: str
    scheme: str
    images: int
    layers: tuple[LayerDiagnosis, ...]
    weights_only_snr_db: float  # of the head's output with all weights in INT8 and all activations in float
    activations_only_snr_db: float
    ways: tuple[Way, ...]
    advice: WayName
    threshold_db: float
    max_drop: float = 0.0
    ap_float: float | None = None  # on the images that judge
    presets: tuple[PresetTrial, ...] = ()  # none without labels
    labelled: int = 0  # images that they were tried on
