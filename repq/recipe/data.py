"""Settings of data sets and of how images get into the network."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from repq.recipe.base import AnyPath, Batch, Config, Count, OneOf, Pixels, Seed, Share, setting

Detections = Annotated[int, Field(ge=1, le=100_000)]
Split = Annotated[str, Field(min_length=1, max_length=200)]


class DemoConfig(Config):
    """The data set that repq draws by itself: coloured shapes on textured ground, in YOLO form."""

    train_images: Count = setting(240, help="Images to train on.")
    val_images: Count = setting(80, help="Images to evaluate on.")
    size: int = setting(192, ge=32, le=4096, help="Longest side of an image, in pixels.")
    classes: int = setting(3, ge=1, le=8, help="Kinds of shapes.")
    seed: Seed = setting(0, help="Seed of the drawing.")


class DataConfig(Config):
    """Where images and labels come from: a file (``path``) or the demo set that repq draws (``demo``)."""

    path: AnyPath | None = setting(None, help="data.yaml (YOLO) or a COCO .json.")
    demo: DemoConfig | None = setting(None, help="Draw a data set.")
    train: Split = setting("train", help="Split to train and calibrate on.")
    val: Split = setting("val", help="Split to evaluate on.")

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        if (self.path is None) == (self.demo is None):
            raise ValueError("give either data.path (a data.yaml) or data.demo, not both and not neither")
        return self


_GRAPH = "MODEL onnx|engine or WEIGHTS onnx"


class GraphConfig(Config):
    """What a model's file does not say of itself, above all an ONNX file of another tool."""

    preset: Annotated[str, OneOf("repq.preprocessing:PRESETS")] | None = setting(
        None, flag="--preset", help="How images become the model's input.  [default: what its file says]"
    )
    layout: Annotated[str, OneOf("repq.output_layouts:LAYOUTS")] | None = setting(
        None, flag="--layout", needs=_GRAPH, help="What the outputs of an ONNX file mean.  [default: what they show]"
    )
    classes: int | None = setting(
        None, ge=1, le=100_000, flag="--classes", needs=_GRAPH, help="Classes of an ONNX file that does not name them."
    )
    anchors: tuple[Annotated[float, Field(gt=0, le=1e5)], ...] | None = setting(
        None, min_length=2, help="Anchors of raw maps: widths and heights in pixels, finest level first."
    )


class LetterboxConfig(Config):
    """Room that an image gets in the input; the rest is the model's preprocessing (YOLOv6 report, section 2.4.3)."""

    border: int = setting(0, ge=0, le=4096, flag="--border", help="Grey border of the letterbox on every side, pixels.")
    inner_size: int | None = setting(
        None, ge=1, le=8192, flag="--inner-size",
        help="Long side of the image inside the letterbox.  [default: the input minus both borders]",
    )  # fmt: skip
    upscale: bool = setting(True, help="Enlarge images that are smaller than the input.")


class TtaConfig(Config):
    """Test-time augmentation: a pass for every scale, mirrored and not, whose boxes are merged in each image."""

    scales: tuple[Annotated[float, Field(gt=0, le=4)], ...] = setting(
        (1.0,), min_length=1, flag="--tta-scale", needs="--tta", help="Factors of the input size; repeat for several."
    )
    inside: bool = setting(
        False, flag="--tta-inside", needs="--tta",
        help="Scale images within an input of the usual size, which engines of one size take: factors up to 1.",
    )  # fmt: skip
    flip: bool = setting(True, flag="--tta-flip/--no-tta-flip", needs="--tta", help="Look at mirrored images too.")
    merge: Literal["nms", "wbf"] = setting(
        "nms", flag="--tta-merge", needs="--tta", help="Suppression, or weighted box fusion (extra `tta`)."
    )
    iou: float = setting(0.65, gt=0, le=1, help="IoU from which boxes of several passes are of one object.")
    step: Pixels = setting(32, help="Scaled sizes are rounded to multiples of this; the coarsest stride fits.")

    @model_validator(mode="after")
    def _no_larger_than_the_input(self) -> TtaConfig:
        if self.inside and max(self.scales) > 1:
            raise ValueError(
                f"an image scaled by {max(self.scales):g} does not lie inside the input: give factors to 1"
            )
        return self


class EvalConfig(Config):
    """COCO evaluation; the defaults are the official ones for reporting AP."""

    batch: Batch = setting(16, flag="--batch", help="Images of one forward pass.")
    confidence: Share = setting(0.03, flag="--conf", help="Score threshold.")
    iou: float = setting(0.65, gt=0, le=1, flag="--iou", help="IoU threshold of the suppression.")
    max_detections: Detections = setting(300, help="Boxes of one image at most.")
    multi_label: bool = setting(True, help="A place may give a box for several classes.")
    clip: bool = setting(
        False, help="Cut boxes at the image's edges before they are compared. It raises AP where many objects are cut "
        "off by the edge; figures are comparable only at the same setting.",
    )  # fmt: skip
    letterbox: LetterboxConfig = setting(LetterboxConfig(), help="How images get into the network input.")
    tta: TtaConfig | None = setting(
        None, flag="--tta", help="Test-time augmentation: better boxes for several times the work."
    )
