"""What a checkpoint's ranges and errors say about the way to INT8."""

from __future__ import annotations

from typing import Literal

from repq.results.base import Range, Result

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


class Way(Result):
    """A way to INT8 and what was measured of it; ``head_snr_db`` is None for ways that take training."""

    name: WayName
    command: str
    head_snr_db: float | None
    sufficient: bool | None
    evidence: str


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
