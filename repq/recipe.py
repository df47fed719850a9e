"""Typed, frozen settings: one model per stage, and the recipe that joins them.

A recipe is a short YAML file. Unknown keys fail and name the closest valid one.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from repq.errors import RecipeError


def _as_size(value: Any) -> Any:
    return (value, value) if isinstance(value, int) else value


ImageSize = Annotated[tuple[int, int], BeforeValidator(_as_size)]
"""Height and width in pixels; a single integer means a square."""


class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


C = TypeVar("C", bound=Config)


class DemoConfig(Config):
    """The data set that repq draws by itself: coloured shapes on textured ground, in YOLO form."""

    train_images: int = Field(240, ge=1)
    val_images: int = Field(80, ge=1)
    size: int = Field(192, ge=32)
    classes: int = Field(3, ge=1, le=8)
    seed: int = 0


class DataConfig(Config):
    """Where images and labels come from: a ``data.yaml`` (``path``) or the demo set that repq draws (``demo``)."""

    path: Path | None = None
    demo: DemoConfig | None = None
    train: str = "train"
    val: str = "val"

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        if (self.path is None) == (self.demo is None):
            raise ValueError("give either data.path (a data.yaml) or data.demo, not both and not neither")
        return self


class LetterboxConfig(Config):
    """Letterbox geometry (YOLOv6 report, section 2.4.3 "gray border").

    Attributes:
        border: grey border in pixels that is left on every side of the network input.
        inner_size: long side of the image inside the input; default: the input minus both borders.
        value: grey level of the border, 0..255.
        upscale: whether images smaller than the input are enlarged.
    """

    border: int = Field(0, ge=0)
    inner_size: int | None = Field(None, ge=1)
    value: int = Field(114, ge=0, le=255)
    upscale: bool = True


class EvalConfig(Config):
    """COCO evaluation; the defaults are the official ones for reporting AP.

    Attributes:
        clip: whether boxes are cut at the image's edges before they are compared. It raises AP where many objects are
            cut off by the edge; figures are comparable only at the same setting.
    """

    batch: int = Field(16, ge=1)
    confidence: float = Field(0.03, ge=0, le=1)
    iou: float = Field(0.65, gt=0, le=1)
    max_detections: int = Field(300, ge=1)
    multi_label: bool = True
    clip: bool = False
    letterbox: LetterboxConfig = LetterboxConfig()


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


class TrainConfig(Config):
    """Training from scratch or from ``weights`` (YOLOv6 report, sections 2.2 to 2.4).

    Attributes:
        weights: checkpoint to start from, of any class count.
        rep_scales: branch scales from a hyper-search training; RepOptimizer then trains ``model``, which must be one of
            plain blocks (a name in ``_opt``).
        batch: images of one forward pass, of all processes together.
        nominal_batch: images that an update of the weights is meant for: gradients of several batches are summed, as
            long as the training keeps enough updates (see ``repq.train.accumulation``).
        optimizer: ``adamw`` wants a ``learning_rate`` around 0.001; ``momentum`` is its first beta.
        warmup_steps: updates in which the learning rate rises from 0 (biases: falls from ``warmup_bias_learning_rate``)
            and the momentum rises from ``warmup_momentum``; the last two with SGD only.
        assigner: of objects to predictions; ``atss_epochs`` are the first epochs, in which ATSS assigns in its place.
        class_weights: a factor of the class loss for every class; none means 1 each.
        balance: sampling of images with rare classes, from 0 (every image once an epoch) to 1 (see
            ``repq.train.image_weights``).
        hsv, translate, scale: half widths of the random changes of colour, place and size.
        rotate, shear: largest angles, in degrees.
        flip, flip_vertical: share of samples that are mirrored left to right, and upside down.
        mosaic, mixup: share of samples made of four images, and of samples blended with another; none in the last
            ``mosaic_off_epochs``.
        multi_scale: half width of the random change of the network input's size, from batch to batch.
        letterbox: how much room an image gets in the network input; the same as for evaluation is a good choice.
        patience: stop when the AP has been below its best for so many epochs.
        cache_mib: memory for decoded images, of each process.
        tensorboard: whether to write event files for TensorBoard (extra ``train``).
    """

    model: str = "yolov6n_v2"
    weights: Path | None = None
    rep_scales: Path | None = None
    epochs: int = Field(60, ge=1)
    patience: int | None = Field(None, ge=1)
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
    eval_interval: int = Field(10, ge=1)
    workers: int = Field(2, ge=0)
    cache_mib: int = Field(1024, ge=0)
    tensorboard: bool = False


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


class PtqConfig(Config):
    """Post-training quantization: the scheme and the layers that stay in float (exact ids or globs)."""

    scheme: Literal["symmetric", "asymmetric"] = "symmetric"
    keep_float: tuple[str, ...] = ()
    calibration: CalibrationConfig = CalibrationConfig()


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
        measure: what the layers are ranked by.
        max_drop: the AP, as a fraction, that quantization may cost on images of the train split.
        risk: how probable it may be that the drop exceeds ``max_drop``, by a bootstrap over the images; 0.5 looks at
            the drop itself, less asks for a margin.
        images: how many images AP is measured on in the search; null for the whole split.
    """

    measure: Measure = "head.snr"
    top: int | None = Field(None, ge=0)
    max_drop: float | None = Field(None, ge=0, le=1)
    risk: float = Field(0.5, gt=0, lt=1)
    resamples: int = Field(1000, ge=100)
    images: int | None = Field(None, ge=1)
    seed: int = 0

    @model_validator(mode="after")
    def _one_aim(self) -> PlanConfig:
        if (self.top is None) == (self.max_drop is None):
            raise ValueError("give either top (how many layers) or max_drop (an AP budget), not both and not neither")
        return self


class ExportConfig(Config):
    """ONNX export.

    Attributes:
        batch: null means a dynamic batch axis.
        merge_scales: of a quantized model: quantize residual branches too, and give tensors that TensorRT wants equal
            one scale. It changes the numbers a little: check the accuracy afterwards.
        float16: type what is not INT8 as FP16 instead of FP32, for TensorRT's strongly typed networks.
    """

    opset: int = Field(19, ge=19, le=21)
    batch: int | None = Field(1, ge=1)
    merge_scales: bool = False
    float16: bool = False


EngineName = Literal["onnxruntime", "openvino"]


class BuildConfig(Config):
    engines: tuple[EngineName, ...] = ("onnxruntime", "openvino")
    threads: int | None = Field(None, ge=1)


class CheckConfig(Config):
    """Agreement of torch's fake quantization with the engines."""

    images: int | None = Field(None, ge=1)  # None: the whole split
    max_ap_gap: float = Field(0.005, ge=0)
    min_snr_db: float | None = None


class BenchConfig(Config):
    batches: tuple[Annotated[int, Field(ge=1)], ...] = (1,)
    threads: tuple[Annotated[int, Field(ge=1)], ...] = (2,)
    warmup: int = Field(5, ge=0)
    rounds: int = Field(5, ge=1)
    runs_per_round: int = Field(10, ge=1)
    end_to_end: bool = True


class ReportConfig(Config):
    images: int = Field(4, ge=0)
    title: str | None = None
    confidence: float = Field(0.3, ge=0, le=1)


class Recipe(Config):
    """The whole job. ``weights`` starts from a checkpoint, ``train`` trains first; one of the two is needed.

    With ``search``, a hyper-search model (``…_hs``) is trained before, and its scales steer the RepOptimizer training
    of ``train`` (``…_opt``).
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    data: DataConfig
    imgsz: ImageSize = (640, 640)
    weights: Path | None = None
    device: str = "cpu"
    seed: int = 0
    search: TrainConfig | None = None
    train: TrainConfig | None = None
    fuse: FuseConfig = FuseConfig()
    ptq: PtqConfig = PtqConfig()
    export: ExportConfig = ExportConfig()
    build: BuildConfig = BuildConfig()
    check: CheckConfig = CheckConfig()
    eval: EvalConfig = EvalConfig()
    bench: BenchConfig = BenchConfig()
    report: ReportConfig = ReportConfig()

    @model_validator(mode="after")
    def _one_origin(self) -> Recipe:
        if (self.weights is None) == (self.train is None):
            raise ValueError("give either weights (a checkpoint) or train (train.weights fine-tunes), not both")
        if self.search is not None and (self.train is None or self.train.rep_scales is not None):
            raise ValueError("search finds the scales for train: it needs train, without train.rep_scales")
        return self


def load_recipe(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe file and apply ``key.path=value`` overrides (values are YAML).

    Paths inside the recipe are relative to the recipe's folder; environment variables and ``~`` are expanded.

    Raises:
        RecipeError: the file is missing or no mapping, a key is unknown, or a value is invalid.
    """
    values = read_yaml(path)
    for override in overrides:
        set_value(values, override)
    return parse_recipe(values, source=str(path), base=path.resolve().parent)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping with ``safe_load``.

    Raises:
        RecipeError: the file cannot be read or holds no mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"cannot read {path}", found=error.strerror or str(error), fix="check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is no valid YAML", found=str(error), fix="mend the line that is named") from None
    if not isinstance(values, dict):
        raise RecipeError(f"{path} holds no mapping", found=type(values).__name__, fix="write 'key: value' lines")
    return values


def set_value(values: dict[str, Any], override: str) -> None:
    """Set one ``a.b=value`` in a nested mapping, in place.

    Raises:
        RecipeError: the override has no ``=``, or walks through a value that is no mapping.
    """
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise RecipeError(f"cannot read the override {override!r}", fix="write --set stage.key=value")
    *parents, last = key.split(".")
    node = values
    for parent in parents:
        child = node.setdefault(parent, {})
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise RecipeError(f"the override {override!r} goes through {parent!r}, which is a plain value")
        node = child
    node[last] = yaml.safe_load(text)


def parse_recipe(values: Mapping[str, Any], *, source: str, base: Path) -> Recipe:
    """Validate a mapping as a recipe; relative paths are taken from ``base``.

    Raises:
        RecipeError: an unknown key (with the closest valid one) or an invalid value.
    """
    try:
        recipe = Recipe.model_validate(dict(values))
    except ValidationError as error:
        raise RecipeError(
            f"{source} is no valid recipe", found=_explain(error, Recipe), fix="mend the keys named"
        ) from None
    return _resolve_paths(recipe, base)


def parse_settings(model: type[C], values: Mapping[str, Any], overrides: Iterable[str] = (), *, what: str) -> C:
    """Validate the settings of one stage; values of None take the default, ``key=value`` overrides win.

    Args:
        what: what an error calls the settings.

    Raises:
        RecipeError: an unknown key (with the closest valid one) or an invalid value.
    """
    merged = {key: value for key, value in values.items() if value is not None}
    for override in overrides:
        set_value(merged, override)
    try:
        return model.model_validate(merged)
    except ValidationError as error:
        raise RecipeError(f"the {what} settings are not valid", found=_explain(error, model)) from None


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            valid = _valid_keys(model, problem["loc"][:-1])
            close = difflib.get_close_matches(str(problem["loc"][-1]), valid, n=1, cutoff=0.0)
            hint = f"; the closest valid key is {close[0]!r}" if close else ""
            lines.append(f"{where}: unknown key{hint}")
        else:
            lines.append(f"{where or 'recipe'}: {problem['msg']} (got {problem['input']!r})"[:300])
    return "; ".join(lines)


def _valid_keys(model: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    for part in path:
        field = model.model_fields.get(str(part))
        nested = _model_in(field.annotation) if field else None
        if nested is None:
            return []
        model = nested
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _model_in(argument)
        if found is not None:
            return found
    return None


def _resolve_paths(config: Any, base: Path) -> Any:
    updates: dict[str, Any] = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, Path):
            expanded = Path(os.path.expandvars(value.expanduser()))
            updates[name] = expanded if expanded.is_absolute() else (base / expanded).resolve()
        elif isinstance(value, Config):
            updates[name] = _resolve_paths(value, base)
    return config.model_copy(update=updates)
