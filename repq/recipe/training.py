"""Settings of training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from repq.recipe.base import Config, setting
from repq.recipe.data import LetterboxConfig


class DistillConfig(Config):
    """Self-distillation (YOLOv6 report, section 2.4.2): the student also imitates a trained detector, its teacher.

    Attributes:
        teacher: checkpoint of the same model, trained before on the same classes.
        class_weight, dfl_weight: weights of the two imitation losses at the start of the training.
        final_factor: share of the weights that is left at the end, after a cosine.
    """

    teacher: Path
    class_weight: float = Field(1.0, ge=0)
    dfl_weight: float = Field(1.0, ge=0)
    final_factor: float = Field(0.01, ge=0, le=1)


class LoopConfig(Config):
    """What every training has: epochs of updates, rates, an average of the weights, and how samples are drawn.

    Attributes:
        batch: images of one forward pass, of all processes together.
        nominal_batch: images that an update of the weights is meant for: gradients of several batches are summed, as
            long as the training keeps enough updates (see ``repq.train.accumulation``).
        optimizer: ``adamw`` wants a ``learning_rate`` around 0.001; ``momentum`` is its first beta.
        warmup_steps: updates in which the learning rate rises from 0 (biases: falls from ``warmup_bias_learning_rate``)
            and the momentum rises from ``warmup_momentum``; the last two with SGD only.
        balance: sampling of images with rare classes, from 0 (every image once an epoch) to 1 (see
            ``repq.train.image_weights``).
        hsv, translate, scale: half widths of the random changes of colour, place and size.
        rotate, shear: largest angles, in degrees.
        flip, flip_vertical: share of samples that are mirrored left to right, and upside down.
        mosaic, mixup: share of samples made of four images, and of samples blended with another; none in the last
            ``mosaic_off_epochs``.
        multi_scale: half width of the random change of the network input's size, from batch to batch.
        letterbox: how much room an image gets in the network input; the same as for evaluation is a good choice.
        workers: threads that draw samples; null for as many as torch leaves cores to.
        cache_mib: memory for decoded images, of each process.
        tensorboard: whether to write event files for TensorBoard (extra ``train``).
    """

    SPEED_ALONE: ClassVar[frozenset[str]] = frozenset({"workers", "cache_mib"})
    """Settings that no weight depends on."""

    epochs: int = Field(60, ge=1)
    batch: int = Field(16, ge=1)
    nominal_batch: int | None = Field(None, ge=1)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = Field(0.01, gt=0)
    final_learning_rate_factor: float = Field(0.01, gt=0, le=1)
    momentum: float = Field(0.937, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    warmup_steps: int = Field(60, ge=0)
    warmup_bias_learning_rate: float = Field(0.1, ge=0)
    warmup_momentum: float = Field(0.8, ge=0, lt=1)
    max_grad_norm: float | None = Field(None, gt=0)
    ema_decay: float = Field(0.9999, gt=0, lt=1)
    ema_ramp_steps: int = Field(2000, ge=1)
    balance: float = Field(0.0, ge=0, le=1)
    flip: float = Field(0.5, ge=0, le=1)
    flip_vertical: float = Field(0.0, ge=0, le=1)
    hsv: tuple[float, float, float] = (0.015, 0.7, 0.4)
    translate: float = Field(0.1, ge=0, lt=1)
    scale: float = Field(0.5, ge=0, lt=1)
    rotate: float = Field(0.0, ge=0, le=180)
    shear: float = Field(0.0, ge=0, lt=45)
    mosaic: float = Field(0.0, ge=0, le=1)
    mixup: float = Field(0.0, ge=0, le=1)
    mosaic_off_epochs: int = Field(0, ge=0)
    multi_scale: float = Field(0.0, ge=0, lt=1)
    letterbox: LetterboxConfig = LetterboxConfig()
    workers: int | None = setting(None, ge=0, help="Threads that draw samples.", no_effect=True)
    cache_mib: int = setting(1024, ge=0, help="Memory for decoded images.", no_effect=True)
    tensorboard: bool = setting(False, help="Write event files for TensorBoard.", no_effect=True)


class TrainConfig(LoopConfig):
    """Training from scratch or from ``weights`` (YOLOv6 report, sections 2.2 to 2.4).

    Attributes:
        weights: checkpoint to start from, of any class count.
        rep_scales: branch scales from a hyper-search training; RepOptimizer then trains ``model``, which must be one of
            plain blocks (a name in ``_opt``).
        patience: stop when the AP has been below its best for so many epochs.
        assigner: of objects to predictions; ``atss_epochs`` are the first epochs, in which ATSS assigns in its place.
        class_weights: a factor of the class loss for every class; none means 1 each.
    """

    model: str = "yolov6n_v2"
    weights: Path | None = None
    rep_scales: Path | None = None
    patience: int | None = Field(None, ge=1)
    assigner: Literal["task_aligned", "simota"] = "task_aligned"
    atss_epochs: int = Field(0, ge=0)
    class_loss: Literal["varifocal", "focal", "quality_focal", "poly"] = "varifocal"
    iou_loss: Literal["siou", "giou", "ciou", "diou"] = "siou"
    class_weight: float = Field(1.0, ge=0)
    iou_weight: float = Field(2.5, ge=0)
    dfl_weight: float = Field(0.5, ge=0)
    l1_weight: float = Field(0.0, ge=0)
    class_weights: tuple[Annotated[float, Field(ge=0)], ...] = ()
    distill: DistillConfig | None = None
    eval_interval: int = Field(10, ge=1)
