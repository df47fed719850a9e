"""Settings of fusing, sensitivity, plans and quantization."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from repq.recipe.base import Config
from repq.recipe.deployment import EngineName
from repq.recipe.training import LoopConfig


class FuseConfig(Config):
    """Fusing and its proof. ``tolerance`` bounds the relative error of every block and of the whole model."""

    tolerance: float = Field(1e-3, gt=0)
    images: int = Field(8, ge=1)


class CalibrationConfig(Config):
    """Activation ranges. Images come from ``manifest`` or are drawn from the train split with ``seed``."""

    method: Literal["max", "percentile", "mse", "entropy"] = "mse"
    percentile: float = Field(99.99, gt=50, le=100)
    images: int = Field(128, ge=1)
    batch: int = Field(16, ge=1)
    bins: int = Field(2048, ge=128)
    seed: int = 0
    manifest: Path | None = None


class CorrectionConfig(Config):
    """What is done beside choosing ranges, to lose less; nothing by default.

    Attributes:
        channel_inputs: the inputs of depthwise convolutions get one scale per channel.
        equalize: weight ranges are evened out along chains of convolutions that allow it.
        split_below_db: layers whose weights have a lower SNR in INT8 run as two INT8 convolutions, coarse and fine.
        rounding: nearest, or adaptive: which way each weight is rounded is learned on the calibration images.
        outputs: the outputs of quantized layers get the mean per channel that they have in float, or both moments, mean
            and variance.
        images: how many of the calibration images the last two take; they are held in memory.
    """

    channel_inputs: bool = False
    equalize: bool = False
    split_below_db: float | None = None
    rounding: Literal["nearest", "adaptive"] = "nearest"
    outputs: Literal["as_they_are", "mean", "moments"] = "as_they_are"
    images: int = Field(32, ge=1)


class PtqConfig(Config):
    """Post-training quantization.

    Attributes:
        keep_float: layers that stay in float, exact ids or globs.
        share_scales: of tensors that TensorRT wants to have one scale (those that meet in a Concat or an addition):
            ``largest`` takes what covers the scales that each would have alone, ``joint`` calibrates them on one
            histogram of all their values; ``none`` leaves each its own.
        auto: the calibration method and the corrections are chosen by what they gain on images of the train split.
    """

    scheme: Literal["symmetric", "asymmetric"] = "symmetric"
    keep_float: tuple[str, ...] = ()
    share_scales: Literal["none", "largest", "joint"] = "none"
    calibration: CalibrationConfig = CalibrationConfig()
    correct: CorrectionConfig = CorrectionConfig()
    auto: bool = False

    @model_validator(mode="after")
    def _one_chooser(self) -> PtqConfig:
        if self.auto and self.correct != CorrectionConfig(images=self.correct.images):
            raise ValueError("auto chooses the corrections itself: give either auto or corrections")
        return self


class QatConfig(LoopConfig):
    """Quantization-aware training of a calibrated model; the teacher is its float model (YOLOv6 report, section 2.5.3).

    The loss is ``task_weight * detection loss + decay * (feature_weight * features + class_weight * classes +
    box_weight * boxes)``, the last three against the teacher (see ``repq.quant.qat.imitation``).

    Attributes:
        scales: whether activation and weight scales are learned (LSQ) or stay as calibrated. Zero points stay.
        learn_weight_scales: whether learned scales are those of weights too, or of activations alone.
        scale_rate: learning rate of the scales as a multiple of that of the weights. It is relative: an ``adamw`` step
            at learning rate 0.001 moves a scale by at most about 0.1 %.
        task_weight: of the labels; 0 learns from the teacher alone and needs no labels.
        feature_weight, temperature: of the channel-wise distillation of the neck's maps.
        class_weight, box_weight: of the imitation of scores and boxes.
        final_factor: share of the teacher's weights that is left at the end, after a cosine.
        eval_interval: epochs between looks at the AP on the val split; null for none. Nothing is chosen by it: the
            averaged weights of the last epoch are kept.
    """

    scales: Literal["learned", "frozen"] = "learned"
    learn_weight_scales: bool = True
    scale_rate: float = Field(3.0, gt=0)
    task_weight: float = Field(0.0, ge=0)
    feature_weight: float = Field(10.0, ge=0)
    temperature: float = Field(1.0, gt=0)
    class_weight: float = Field(1.0, ge=0)
    box_weight: float = Field(2.5, ge=0)
    final_factor: float = Field(1.0, ge=0, le=1)
    eval_interval: int | None = Field(None, ge=1)
    epochs: int = Field(30, ge=1)
    batch: int = Field(8, ge=1)
    optimizer: Literal["sgd", "adamw"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    warmup_steps: int = Field(20, ge=0)
    warmup_bias_learning_rate: float = Field(0.0, ge=0)
    max_grad_norm: float | None = Field(10.0, gt=0)
    ema_decay: float = Field(0.99, gt=0, lt=1)
    ema_ramp_steps: int = Field(50, ge=1)
    scale: float = Field(0.2, ge=0, lt=1)
    hsv: tuple[float, float, float] = (0.01, 0.3, 0.2)

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> QatConfig:
        if not (self.task_weight or self.feature_weight or self.class_weight or self.box_weight):
            raise ValueError("all weights of the loss are 0: there is nothing to learn from")
        return self


ApSweep = Literal["only_int8", "only_float"]


Measure = Literal[
    "local.mse",
    "local.snr",
    "local.cosine",
    "neck.mse",
    "neck.snr",
    "neck.cosine",
    "head.mse",
    "head.snr",
    "head.cosine",
    "ap.only_int8",
    "ap.only_float",
]
"""What layers can be ranked by; see ``repq.results.LayerSensitivity``."""


class SensitivityConfig(Config):
    """Which measures are taken, on images of the train split.

    Attributes:
        images, seed: how many images the similarities are measured on, and the draw.
        local, end_to_end: the similarities at each layer's own output, and at the neck's and the head's.
        ap: the AP sweeps: only one layer in INT8, only one layer in float.
        ap_images: how many images AP is measured on; null for the whole split.
        batch: images in memory with all activations of the model.
        group: layers that share a recorded forward pass; a killed sweep loses at most so many.
    """

    images: int = Field(16, ge=1)
    seed: int = 0
    local: bool = True
    end_to_end: bool = True
    ap: tuple[ApSweep, ...] = ()
    ap_images: int | None = Field(None, ge=1)
    batch: int = Field(8, ge=1)
    group: int = Field(16, ge=1)


class PlanConfig(Config):
    """Which layers stay in float: the ``top`` most sensitive ones, or the fewest that keep AP within ``max_drop``.

    Attributes:
        measure: what the layers are ranked by. null: ``local.snr`` for ``top``; with ``max_drop`` the search tries the
            SNRs and the AP sweeps that were taken, plain and for each multiply-add, and goes on with the best.
        max_drop: the AP, as a fraction, that quantization may cost on images of the train split.
        min_int8: the share of the multiply-adds (or of the time that INT8 saves, with ``latency``) that stays in INT8
            in any case. If no plan holds ``max_drop`` with it, the best one does not, and the report says so.
        latency: weigh layers by the milliseconds that each costs in float in this engine, instead of multiply-adds.
        risk: how probable it may be that the drop exceeds ``max_drop``, by a bootstrap over the images; 0.5 looks at
            the drop itself. The default asks for a margin of a quarter of the standard error: a search takes
            what looks best on these images, which on others looks worse.
        give_back: how many layers at most are offered INT8 again, those first that cost most in float.
        images: how many images AP is measured on in the search; null for the whole split.
    """

    measure: Measure | None = None
    top: int | None = Field(None, ge=0)
    max_drop: float | None = Field(None, ge=0, le=1)
    min_int8: float = Field(0.9, ge=0, le=1)
    latency: EngineName | None = None
    risk: float = Field(0.4, gt=0, lt=1)
    give_back: int = Field(8, ge=0)
    resamples: int = Field(1000, ge=100)
    images: int | None = Field(None, ge=1)
    seed: int = 0

    @model_validator(mode="after")
    def _one_aim(self) -> PlanConfig:
        if (self.top is None) == (self.max_drop is None):
            raise ValueError("give either top (how many layers) or max_drop (an AP budget), not both and not neither")
        if self.latency is not None and self.max_drop is None:
            raise ValueError("latency weighs layers in the search for an AP budget: give max_drop with it")
        return self
