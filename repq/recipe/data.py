"""Settings of data sets and of how images get into the network."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from repq.recipe.base import Config


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
