"""Settings of training."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from repq.recipe.base import AnyPath, Batch, Config, Count, Factor, Share, resolve, setting
from repq.recipe.data import LetterboxConfig

Epochs = Annotated[int, Field(ge=1, le=100_000)]
Rate = Annotated[float, Field(gt=0, le=10)]


def _around_one(value: Any) -> Any:
    """A half width h as the factors 1 - h to 1 + h."""
    return (1 - value, 1 + value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _rising(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError("the least factor comes first")
    return value


Level = Annotated[float, Field(ge=0, le=255)]
_Zoom = Annotated[float, Field(gt=0, le=10)]
Factors = Annotated[tuple[_Zoom, _Zoom], BeforeValidator(_around_one), AfterValidator(_rising)]
"""Least and largest of factors that are drawn; one number h stands for 1 - h to 1 + h."""


class ImitationConfig(Config):
    """How much of what a teacher says counts, at the start of a training; see ``repq.train.distill``."""

    class_weight: Factor = setting(1.0, help="Weight of the imitation of scores.")
    box_weight: Factor = setting(1.0, help="Weight of the imitation of boxes: of their distributions where both have "
                                 "equally many bins, else by GIoU.")  # fmt: skip
    answer_temperature: float = setting(1.0, gt=0, le=1000, help="Temperature of scores and box distributions.")
    feature_weight: Factor = setting(0.0, help="Weight of the channel-wise imitation of the neck's maps.")
    temperature: float = setting(1.0, gt=0, le=1000, help="Temperature of that imitation.")
    projector_weight: Factor = setting(
        0.0, help="Weight of the imitation of the neck's maps through a projector, where the teacher sees something."
    )
    final_factor: Share = setting(0.01, help="Share of the teacher's weights that is left at the end, after a cosine.")

    @property
    def imitates(self) -> bool:
        """Whether anything of the teacher counts."""
        return bool(self.class_weight or self.box_weight or self.feature_weight or self.projector_weight)


class DistillConfig(ImitationConfig):
    """The student also imitates a trained detector, its teacher (YOLOv6 report, section 2.4.2)."""

    teacher: AnyPath = setting(
        flag="--teacher", help="Float checkpoint or ONNX file of any detector to imitate, of the same classes by name."
    )


class LoopConfig(Config):
    """What every training has: epochs of updates, rates, an average of the weights, and how samples are drawn."""

    epochs: Epochs = setting(60, flag="--epochs", help="Passes over the train split.")
    batch: Batch = setting(16, flag="--batch", help="Images of one forward pass, of all processes together.")
    nominal_batch: Batch | None = setting(
        None, help="Images that an update is meant for: gradients of several batches are summed, as long as the "
        "training keeps enough updates.",
    )  # fmt: skip
    optimizer: Literal["sgd", "adamw"] = setting("sgd", help="adamw wants a learning rate around 0.001.")
    learning_rate: Rate = setting(0.01, help="Learning rate after the warmup.")
    rate_batch: Batch | None = setting(
        None, help="Images of a batch that learning_rate is meant for; it grows with the batch.  [default: any]"
    )
    final_learning_rate_factor: float = setting(0.01, gt=0, le=1, help="Share of it that is left at the end.")
    momentum: float = setting(0.937, ge=0, lt=1, help="Momentum of sgd, first beta of adamw.")
    weight_decay: Share = setting(5e-4, help="Decay of convolution weights.")
    warmup_steps: int = setting(
        60, ge=0, le=1_000_000, help="Updates in which the learning rate rises from 0 (with sgd: of biases, falls from "
        "warmup_bias_learning_rate) and, with sgd, the momentum from warmup_momentum.",
    )  # fmt: skip
    warmup_epochs: float | None = setting(None, ge=0, le=1000, help="Epochs of warmup, in place of warmup_steps.")
    warmup_shape: Literal["linear", "quadratic"] = setting(
        "linear", help="How rates rise; after a quadratic warmup the cosine begins, else it began with the training."
    )
    flat_epochs: int = setting(0, ge=0, le=100_000, help="Last epochs, at the least learning rate.")
    warmup_bias_learning_rate: float = setting(0.1, ge=0, le=10, help="Of biases at the start, with sgd.")
    warmup_momentum: float = setting(0.8, ge=0, lt=1, help="Momentum at the start, with sgd.")
    max_grad_norm: float | None = setting(None, gt=0, le=1e6, help="Longer gradients are shortened to this norm.")
    ema_decay: float = setting(0.9999, gt=0, lt=1, help="Decay of the average of the weights.")
    ema_ramp_steps: Count = setting(2000, help="Updates in which that decay rises.")
    balance: Share = setting(0.0, help="Sampling of images with rare classes: 0 draws every image once an epoch.")
    flip: Share = setting(0.5, help="Share of samples that are mirrored left to right.")
    flip_vertical: Share = setting(0.0, help="Share of samples that are mirrored upside down.")
    hsv: tuple[Share, Share, Share] = setting((0.015, 0.7, 0.4), help="Half widths of the changes of colour.")
    hsv_shift: tuple[Level, Level, Level] = setting(
        (0, 0, 0), help="Half widths of what is added to hue, saturation and value (0..255), each half of the time."
    )
    affine: Literal["all", "mosaic"] = setting(
        "all", help="Samples that are moved, scaled, turned and sheared; others lie in the input as for evaluation."
    )
    translate: float = setting(0.1, ge=0, lt=1, help="Half width of the change of place.")
    scale: Factors = setting((0.5, 1.5), help="Factors of the change of size, or its half width.")
    rotate: float = setting(0.0, ge=0, le=180, help="Largest angle of rotation, degrees.")
    shear: float = setting(0.0, ge=0, lt=45, help="Largest angle of shear, degrees.")
    mosaic: Share = setting(0.0, help="Share of samples that are made of four images.")
    mixup: Share = setting(0.0, help="Share of samples that are blended with another.")
    mixup_scale: Factors | None = setting(
        None, help="Mosaics are blended half and half with one image, scaled by such a factor.  [default: samples of "
        "any kind are, with one alike]",
    )  # fmt: skip
    mosaic_off_epochs: int = setting(0, ge=0, le=100_000, help="Last epochs, without mosaic and mixup.")
    multi_scale: Factors = setting((1.0, 1.0), help="Factors of the change of the input size, or its half width.")
    multi_scale_batches: Count = setting(1, help="Batches between changes of the input size.")
    letterbox: LetterboxConfig = setting(
        LetterboxConfig(), help="How much room an image gets in the input; best as for evaluation."
    )
    loader: Literal["opencv", "dali"] = setting(
        "opencv", flag="--loader", help="What decodes, shrinks and warps images; dali (extra `dali`): NVIDIA DALI, on "
        "the GPU if that trains, to a grey level the same.",
    )  # fmt: skip
    workers: int | None = setting(
        None, ge=0, le=1024, no_effect=True, help="Threads that draw samples; null: as many as torch leaves cores to."
    )
    cache_mib: int = setting(1024, ge=0, le=1 << 20, no_effect=True, help="Memory for decoded images of each process.")
    cuda_graphs: bool = setting(
        True, no_effect=True, help="On a GPU, launch all kernels of a pass at once; takes memory for every input size."
    )
    tensorboard: bool = setting(False, no_effect=True, help="Write event files for TensorBoard (extra `train`).")


class TrainConfig(LoopConfig):
    """Training from scratch or from ``weights`` (YOLOv6 report, sections 2.2 to 2.4).

    What is not given is as ``model`` was published with, see `repq.model.Family.training`.
    """

    model: str = setting(
        "yolov6n_v2", max_length=100, flag="--model", metavar="NAME", help="yolov6s, yolov6n_v2_hs, yolov6n_v2_opt …"
    )
    weights: AnyPath | None = setting(None, flag="--weights", help="Checkpoint to fine-tune, of any class count.")
    rep_scales: AnyPath | None = setting(
        None, flag="--rep-scales", help="scales.safetensors of a hyper-search (…_hs) training, for …_opt models."
    )
    patience: Epochs | None = setting(None, help="Stop when the AP has been below its best for so many epochs.")
    assigner: Literal["task_aligned", "simota", "centre", "centre_area"] = setting(
        "task_aligned", help="Assigns objects to predictions; centre: to one, or to the nine around it."
    )
    atss_epochs: int = setting(0, ge=0, le=100_000, help="First epochs, in which ATSS assigns in its place.")
    class_loss: Literal["varifocal", "focal", "quality_focal", "poly"] = setting("varifocal", help="Loss of scores.")
    iou_loss: Literal["siou", "giou", "ciou", "diou", "iou"] = setting("siou", help="Loss of boxes; iou: 1 - IoU².")
    class_weight: Factor = setting(1.0, help="Weight of the loss of scores.")
    iou_weight: Factor = setting(2.5, help="Weight of the loss of boxes.")
    dfl_weight: Factor = setting(0.5, help="Weight of the loss of box distributions.")
    l1_weight: Factor = setting(0.0, help="Weight of the L1 loss of boxes.")
    l1_epochs: Epochs | None = setting(None, help="Last epochs, in which it counts; null: all.")
    class_weights: tuple[Factor, ...] = setting((), help="A factor of the loss of scores for every class; none: 1.")
    class_frequency: Literal["ignored", "median", "inverse"] = setting(
        "ignored", help="Makes these factors from the objects of each class in the train split: the median of all "
        "counts over its own, or its own to the power of -class_weights_power, 1 on the mean of all objects.",
    )  # fmt: skip
    class_weights_power: float = setting(0.5, ge=0, le=2, help="Of inverse frequencies: 0 leaves all factors at 1.")
    class_weights_limit: float = setting(
        10.0, ge=1, le=1e6, help="Factors from frequencies are at most this, and at least one over it."
    )
    distill: DistillConfig | None = setting(None, help="Imitation of a teacher.")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto", flag="--precision", help="Type that convolutions compute in, while weights and losses are float32. "
        "bfloat16 needs AVX-512 BF16, AMX or a GPU from Ampere on. auto: bfloat16 where it is, float16 on other GPUs.",
    )  # fmt: skip
    compile: bool = setting(
        False, help="Let torch compile the forward and the backward pass, in place of CUDA graphs: on a CPU by a C++ "
        "compiler, minutes for every input size.",
    )  # fmt: skip
    eval_interval: Epochs = setting(10, help="Epochs between looks at the AP.")

    @model_validator(mode="before")
    @classmethod
    def _as_published(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        known: dict[str, Any] = resolve("repq.model.families:training_settings")(values.get("model"))
        return {**known, **values}

    @model_validator(mode="after")
    def _one_source_of_class_weights(self) -> TrainConfig:
        if self.class_weights and self.class_frequency != "ignored":
            raise ValueError("class_frequency makes the class_weights itself: give only one of the two")
        return self
