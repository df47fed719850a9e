"""Settings of fusing, sensitivity, plans and quantization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from repq.recipe.base import (
    AnyPath,
    Assembled,
    Batch,
    Config,
    Count,
    Factor,
    OneOf,
    Seed,
    Share,
    resolve,
    setting,
)
from repq.recipe.budget import max_drop
from repq.recipe.deployment import EngineName
from repq.recipe.training import Epochs, Factors, ImitationConfig, LoopConfig, Rate


class FuseConfig(Config):
    """Fusing and its proof."""

    tolerance: float = setting(
        1e-3, gt=0, le=1, flag="--tolerance", help="Bound of the relative error of every block and of the whole model."
    )
    images: Batch = setting(8, flag="--images", help="Images for the proof.")


class FromList(Config):
    """Settings with further fields from a list of objects: making one makes an object of the class as the list is now.

    A subclass says in ``assembled`` which function makes that class, a subclass of its own.
    """

    assembled: ClassVar[Assembled]

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def __new__(cls, **values: Any) -> Self:
        wanted: Any = cls.assembled.settings_class() if "assembled" in vars(cls) else cls
        return super().__new__(wanted)


class CalibrationConfig(FromList):
    """Activation ranges. Images come from ``manifest`` or are drawn from the train split with ``seed``.

    The calibrators in `repq.quant.calibration.CALIBRATORS` add settings of their own.
    """

    assembled = Assembled("repq.quant.calibration:settings_class")
    method: Annotated[str, OneOf("repq.quant.calibration:CALIBRATORS")] = setting(
        "mse", flag="--method", help="How activation ranges are chosen."
    )
    images: Count = setting(128, flag="--images", excludes="--calib", help="Calibration images.")
    batch: Batch = setting(16, flag="--batch", help="Images of one forward pass.")
    bins: int = setting(2048, ge=128, le=1 << 20, help="Bins of the histograms.")
    seed: Seed = setting(0, flag="--seed", help="Seed of everything that is random.")
    manifest: AnyPath | None = setting(
        None, flag="--calib", help="Manifest of calibration images instead of a random draw."
    )

    @model_validator(mode="after")
    def _nothing_of_other_methods(self) -> Self:
        if changed := [name for name, default in self._of_other_methods().items() if getattr(self, name) != default]:
            raise ValueError(f"{changed[0]} is no setting of the method {self.method}")
        return self

    def of_the_method(self) -> Self:
        """The same with the settings of all other methods as they are by default."""
        return self.model_copy(update=self._of_other_methods())

    def _of_other_methods(self) -> dict[str, Any]:
        """The settings that the method does not have, and their defaults."""
        fields = {entry.name: set(entry.fields) for entry in resolve("repq.quant.calibration:CALIBRATORS")}
        others = set[str]().union(*fields.values()) - fields[self.method]
        return {name: info.default for name, info in type(self).model_fields.items() if name in others}


class CorrectionConfig(FromList):
    """What is done beside choosing ranges, to lose less; nothing by default.

    The corrections in `repq.quant.corrections.CORRECTIONS` are the other fields.
    """

    assembled = Assembled("repq.quant.corrections:settings_class")
    images: Count = setting(32, help="Calibration images for corrections that look at them; they are held in memory.")


class PtqConfig(Config):
    """Post-training quantization."""

    scheme: Literal["symmetric", "asymmetric"] = setting(
        "symmetric", flag="--scheme",
        help="symmetric: INT8 for TensorRT; asymmetric: UINT8 activations for CPU engines.",
    )  # fmt: skip
    weight_granularity: Literal["channel", "tensor"] = setting(
        "channel", flag="--weight-granularity",
        help="Scales of a weight: one for each output channel, or one for all of it, which is what some NPUs take. "
        "Transposed convolutions always have one.",
    )  # fmt: skip
    reduce_range: bool = setting(
        False, flag="--reduce-range",
        help="Weights so small that no sum of two products leaves 16 bits: x86 CPUs without INT8 dot products (AVX2 "
        "alone) add in 16 bits, and OpenVINO's sums saturate there.",
    )  # fmt: skip
    keep_float: tuple[str, ...] = setting(
        (), flag="--keep-float", metavar="GLOB", help="Layer id or glob that stays in float; repeat for several."
    )
    float_bin_means: bool = setting(
        True, help="Keep in float what is no learned layer: the mean over the bins of a distance (weights 0, 1, 2, …).",
    )  # fmt: skip
    share_scales: Literal["none", "largest", "joint"] = setting(
        "none", flag="--share-scales",
        help="One scale for tensors that meet in a Concat or an addition, as TensorRT wants: the largest of those that "
        "each would have alone, or one calibrated jointly.",
    )  # fmt: skip
    calibration: Annotated[CalibrationConfig, CalibrationConfig.assembled] = setting(
        default_factory=dict, help="Activation ranges."
    )
    correct: Annotated[CorrectionConfig, CorrectionConfig.assembled] = setting(
        default_factory=dict, help="What is done beside choosing ranges."
    )
    auto: bool = setting(
        True, flag="--auto/--plain", excludes=("--method", "correct"),
        help="Choose --method and all corrections by what they gain on train images, unless one of them is given; or "
        "calibrate alone.",
    )  # fmt: skip

    @property
    def integer_options(self) -> tuple[str, ...]:
        """What `repq ptq` and the like have to be told so that integers mean the same, as words of a command."""
        granularity = self.weight_granularity
        return (
            *("--scheme", self.scheme),
            *(("--weight-granularity", granularity) if granularity != "channel" else ()),
            *(("--reduce-range",) if self.reduce_range else ()),
        )

    @model_validator(mode="before")
    @classmethod
    def _what_is_given_is_not_chosen(cls, values: Any) -> Any:
        return {"auto": not _names_settings(values), **values} if isinstance(values, Mapping) else values

    @model_validator(mode="after")
    def _one_chooser(self) -> PtqConfig:
        if self.auto and self.correct != CorrectionConfig(images=self.correct.images):
            raise ValueError("auto chooses the corrections itself: give either auto or corrections")
        return self


def _names_settings(values: Mapping[str, Any]) -> bool:
    """Whether the values of a ``PtqConfig`` say how ranges are chosen or what is corrected."""
    calibration, correct = (_given(values.get(name)) for name in ("calibration", "correct"))
    of_methods = {name for entry in resolve("repq.quant.calibration:CALIBRATORS") for name in entry.fields}
    return bool({"method", *of_methods} & calibration or correct - {"images"})


def _given(settings: Any) -> set[str]:
    """The fields that are set; none of what is no settings at all, which is said later."""
    if isinstance(settings, Config):
        return set(settings.model_fields_set)
    return set(settings) if isinstance(settings, Mapping) else set()


class QatConfig(ImitationConfig, LoopConfig):
    """Quantization-aware training of a calibrated model; its float model teaches it (YOLOv6 report, section 2.5.3).

    Another teacher may do that as well. The loss is ``task_weight * detection loss + decay * (feature_weight *
    features + projector_weight * projected features + class_weight * classes + box_weight * boxes)``, the last four
    against the teacher (see ``repq.train.distill``).
    """

    teacher: AnyPath | None = setting(
        None, flag="--teacher", help="Float checkpoint or ONNX file of any detector to imitate, of the same classes by "
        "name.  [default: the model's own float weights]",
    )  # fmt: skip
    scales: Literal["learned", "frozen"] = setting(
        "learned", flag="--scales", help="Whether scales are learned with the weights (LSQ) or stay as calibrated."
    )
    learn_weight_scales: bool = setting(True, help="Learn the scales of weights too, or of activations alone.")
    scale_rate: Factor = setting(
        3.0, gt=0, help="Learning rate of the scales as a multiple of that of the weights. It is relative: an adamw "
        "step at learning rate 0.001 moves a scale by at most about 0.1 %.",
    )  # fmt: skip
    task_weight: Factor = setting(0.0, flag="--task-weight", help="Weight of the labels; 0 needs none.")
    feature_weight: Factor = setting(10.0, help="Weight of the channel-wise imitation of the neck's maps.")
    box_weight: Factor = setting(2.5, help="Weight of the imitation of boxes: of their distributions where both have "
                                 "equally many bins, else by GIoU.")  # fmt: skip
    final_factor: Share = setting(1.0, help="Share of the teacher's weights that is left at the end, after a cosine.")
    keep_zeros: bool = setting(
        False,
        flag="--keep-zeros",
        help="Weights that are zero stay zero, such as those of `repq prune --unstructured`.",
    )
    eval_interval: Epochs | None = setting(
        None,
        help="Epochs between looks at the AP; null: none. The averaged weights of the last epoch are kept, or those of "
        "the start where they have more AP.",
    )
    epochs: Epochs = setting(30, flag="--epochs", help="Passes over the train split.")
    batch: Batch = setting(8, flag="--batch", help="Images of one forward pass, of all processes together.")
    optimizer: Literal["sgd", "adamw"] = setting("adamw", help="adamw wants a learning rate around 0.001.")
    learning_rate: Rate = setting(1e-3, help="Learning rate after the warmup.")
    momentum: float = setting(0.9, ge=0, lt=1, help="Momentum of sgd, first beta of adamw.")
    weight_decay: Share = setting(0.0, help="Decay of convolution weights.")
    warmup_steps: int = setting(20, ge=0, le=1_000_000, help="Updates in which the learning rate rises from 0.")
    warmup_bias_learning_rate: float = setting(0.0, ge=0, le=10, help="Of biases at the start, with sgd.")
    max_grad_norm: float | None = setting(10.0, gt=0, le=1e6, help="Longer gradients are shortened to this norm.")
    ema_decay: float = setting(0.99, gt=0, lt=1, help="Decay of the average of the weights.")
    ema_ramp_steps: Count = setting(50, help="Updates in which that decay rises.")
    scale: Factors = setting((0.8, 1.2), help="Factors of the change of size, or its half width.")
    hsv: tuple[Share, Share, Share] = setting((0.01, 0.3, 0.2), help="Half widths of the changes of colour.")

    @model_validator(mode="before")
    @classmethod
    def _in_float32(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and "precision" in values:
            raise ValueError(
                f"precision {str(values['precision'])[:40]!r}: this training is float32 alone, since with fewer bits "
                "values would be rounded before quantizers do; leave precision away"
            )
        return values

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> QatConfig:
        if not (self.task_weight or self.imitates):
            raise ValueError("all weights of the loss are 0: there is nothing to learn from")
        return self


class RecoveryConfig(QatConfig):
    """Training of a pruned model to answer as the whole one does; there are no scales in it."""

    epochs: Annotated[int, Field(ge=0, le=100_000)] = setting(
        0, flag="--epochs", needs="--data", help="Passes over the train split after pruning; 0: none."
    )
    task_weight: Factor = setting(
        0.0, flag="--task-weight", needs="--epochs", help="Weight of the labels; 0 needs none."
    )
    scales: Literal["learned", "frozen"] = setting("frozen", help="Without effect.")
    feature_weight: Factor = setting(0.0, help="Weight of the channel-wise imitation of the neck's maps.")


class PruneConfig(Config):
    """Structured pruning to a share of the channels, or of the multiply-adds; or zeros in place of single weights."""

    ratio: float | None = setting(
        None, gt=0, lt=1, flag="--ratio", excludes="--target-macs",
        help="Share of the removable channels that goes.",
    )  # fmt: skip
    target_macs: float = setting(0.7, gt=0, lt=1, flag="--target-macs", help="Share of the multiply-adds that stays.")
    importance: Literal["auto", "l1", "l2", "bn", "taylor", "activation"] = setting(
        "auto", flag="--importance", help="What a channel is worth; bn looks at batch norms (unfused WEIGHTS), taylor "
        "and activation at --data. auto: taylor where there are labels, else l2.",
    )  # fmt: skip
    scope: Literal["auto", "global", "layer", "sensitivity"] = setting(
        "auto", flag="--scope", help="Whether channels of all layers compete, every group gives the same share, or "
        "groups give by what pruning each alone costs on --data. auto: the last with --data, else layer.",
    )  # fmt: skip
    latency: EngineName | None = setting(
        None, flag="--latency", excludes=("--ratio", "--target-macs"),
        help="The target is latency in this runtime, timed in float32: give --max-ms or --latency-ratio.",
    )  # fmt: skip
    max_ms: float | None = setting(
        None, gt=0, le=1e6, flag="--max-ms", needs="--latency", excludes="--latency-ratio", help="Milliseconds."
    )
    latency_ratio: float | None = setting(
        None, gt=0, lt=1, flag="--latency-ratio", needs="--latency", help="Share of the whole model's latency."
    )
    unstructured: float | None = setting(
        None, gt=0, lt=1, flag="--unstructured",
        excludes=("--ratio", "--target-macs", "--latency", "--importance", "--scope", "--round"),
        help="Instead: this share of all weights becomes zero, the smallest ones. Shapes stay, and dense engines gain "
        "no latency from zeros. A recovery keeps them.",
    )  # fmt: skip
    round: int = setting(8, ge=1, le=128, flag="--round", help="What is left of a pruned layer divides by this.")
    max_ratio: float = setting(0.7, gt=0, lt=1, help="Largest share of a group that goes.")
    compensate: bool = setting(True, help="With --data, let biases stand for the means of the channels that leave.")
    images: Count = setting(64, help="Images that taylor, activation and the means look at.")
    sweep_images: Count = setting(16, help="Images that the sweep of --scope sensitivity looks at.")
    sweep_levels: Annotated[int, Field(ge=1, le=64)] = setting(4, help="Numbers of channels that it tries of a group.")
    recovery: RecoveryConfig = setting(RecoveryConfig(), help="Training after pruning.")

    @model_validator(mode="after")
    def _one_target(self) -> PruneConfig:
        if (self.max_ms is not None) + (self.latency_ratio is not None) != (self.latency is not None):
            raise ValueError("latency needs a target, max_ms or latency_ratio, and these need latency")
        changed = {name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default}
        targets = [name for name in ("ratio", "target_macs", "latency") if name in changed]
        if len(targets) > 1:
            raise ValueError(f"give one target: ratio, target_macs or latency, not {' and '.join(targets)}")
        structured = ("ratio", "target_macs", "latency", "importance", "scope", "round", "max_ratio")
        given = [name for name in structured if name in changed]
        if self.unstructured is not None and given:
            raise ValueError(f"unstructured removes no channels: {given[0]} has no effect beside it")
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
    """Which measures are taken, on images of the train split."""

    images: Count = setting(16, flag="--images", help="Images that the similarities are measured on.")
    seed: Seed = setting(0, flag="--seed", help="Seed of everything that is random.")
    local: bool = setting(True, help="Take the similarities at each layer's own output.")
    end_to_end: bool = setting(True, help="Take the similarities at the neck's and the head's outputs.")
    ap: tuple[ApSweep, ...] = setting(
        (), flag="--ap", help="AP sweeps (slow): only one layer in INT8, only one in float; repeat for both."
    )
    ap_images: Count | None = setting(
        None, flag="--ap-images", needs=("--ap or --top |", "--ap or --max-float |"),
        help="Images for AP.  [default: the whole split]",
    )  # fmt: skip
    batch: Batch = setting(8, help="Images in memory with all activations of the model.")
    group: Count = setting(16, help="Layers that share a recorded forward pass; a killed sweep loses at most so many.")


class PlanConfig(Config):
    """Which layers stay in float: the ``top`` most sensitive ones, or the fewest that keep AP within ``max_drop``.

    Or those that the head gains most from, at most ``max_float`` of the multiply-adds.
    """

    measure: Measure | None = setting(
        None, flag="--measure", metavar="NAME", help="Rank the layers by local.snr, head.mse, ap.only_int8 … "
        "[default: the best of the SNRs and AP sweeps that were taken; with --top the first, as a rule local.snr]",
    )  # fmt: skip
    top: int | None = setting(
        None, ge=0, le=100_000, flag="--top", excludes="--max-drop",
        help="Keep so many layers in float, whatever that costs.  [default: as many as --max-drop needs]",
    )  # fmt: skip
    max_drop: Share | None = max_drop("Keep the fewest in float that hold this AP budget on train images.")
    max_float: Share | None = setting(
        None, flag="--max-float", excludes=("--top", "--max-drop", "--min-int8", "--latency", "--measure"),
        help="Keep in float what raises the SNR of boxes and scores most, at most this share of the multiply-adds; "
        "needs no labels.",
    )  # fmt: skip
    min_int8: Share = setting(
        0.9, flag="--min-int8", excludes="--top", help="Share of the multiply-adds (with --latency of the time that "
        "INT8 saves) that stays in INT8 in any case. If no plan holds the budget with it, the report says so.",
    )  # fmt: skip
    latency: EngineName | None = setting(
        None, flag="--latency", excludes="--top",
        help="Weigh by milliseconds in this engine instead of multiply-adds.",
    )  # fmt: skip
    risk: float = setting(
        0.4, gt=0, lt=1, help="How probable it may be that the drop exceeds max_drop, by a bootstrap over the images; "
        "0.5 looks at the drop itself. The default asks for a margin of a quarter of the standard error: a search "
        "takes what looks best on these images, which on others looks worse.",
    )  # fmt: skip
    give_back: int = setting(
        8, ge=0, le=100_000, help="Layers at most that are offered INT8 again, first those that cost most in float."
    )
    resamples: int = setting(1000, ge=100, le=1_000_000, help="Resamples of that bootstrap.")
    images: Count | None = setting(None, flag="--ap-images", help="Images for AP in the search; null: the whole split.")
    seed: Seed = setting(0, flag="--seed", help="Seed of that bootstrap.")

    @model_validator(mode="before")
    @classmethod
    def _layers_instead_of_a_budget(cls, values: Any) -> Any:
        given = isinstance(values, Mapping) and any(values.get(name) is not None for name in ("top", "max_float"))
        return {"max_drop": None, **values} if given else values

    @model_validator(mode="after")
    def _one_aim(self) -> PlanConfig:
        if sum(aim is not None for aim in (self.top, self.max_drop, self.max_float)) != 1:
            raise ValueError(
                "give one of top (how many layers), max_drop (an AP budget) and max_float (a share of the "
                "multiply-adds), no more and no less"
            )
        if self.latency is not None and self.max_drop is None:
            raise ValueError("latency weighs layers in the search for an AP budget: give max_drop with it")
        return self
