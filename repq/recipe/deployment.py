"""Settings of graphs, engines and what is measured on them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from repq.recipe.base import Config, ImageSize
from repq.recipe.data import LetterboxConfig


class PreprocessConfig(Config):
    """What a graph does to images before its first layer; the defaults leave all of it to the caller.

    Attributes:
        uint8: the input is pixels in 0..255 as bytes instead of float32 in 0..1.
        bgr: colours come in the order blue, green, red.
        letterbox: the input is decoded images (B, h, w, 3) of any size, and the graph letterboxes them; null: it is
            letterboxed images (B, 3, H, W).
        source: height and width of those images; null: any, read from the input at run time.
    """

    uint8: bool = False
    bgr: bool = False
    letterbox: LetterboxConfig | None = None
    source: ImageSize | None = None

    @model_validator(mode="after")
    def _whole(self) -> PreprocessConfig:
        if self.letterbox is not None and not self.uint8:
            raise ValueError("a graph that letterboxes takes decoded images: set uint8 as well")
        if self.source is not None and self.letterbox is None:
            raise ValueError("source is the size of images that the graph letterboxes: set letterbox as well")
        return self


class NmsConfig(Config):
    """Non-maximum suppression inside the graph; the meaning of each is that of ``EvalConfig``."""

    confidence: float = Field(0.03, ge=0, le=1)
    iou: float = Field(0.65, gt=0, le=1)
    max_detections: int = Field(300, ge=1)
    multi_label: bool = True


class ExportConfig(Config):
    """ONNX export.

    Attributes:
        batch: null means a dynamic batch axis.
        merge_scales: of a quantized model: quantize residual branches too, and give tensors that TensorRT wants equal
            one scale. It changes the numbers a little: check the accuracy afterwards.
        float16: type what is not INT8 as FP16 instead of FP32, for TensorRT's strongly typed networks. Nodes that
            would overflow on the calibration images stay FP32.
        float16_io: in such a file, make input and outputs FP16 too; boxes then lose digits from 512 pixels on.
        preprocess: what the graph does before its first layer.
        nms: null means that the graph ends with all detections.
    """

    opset: int = Field(19, ge=19, le=21)
    batch: int | None = Field(1, ge=1)
    merge_scales: bool = False
    float16: bool = False
    float16_io: bool = False
    preprocess: PreprocessConfig = PreprocessConfig()
    nms: NmsConfig | None = None


EngineName = Literal["onnxruntime", "openvino", "tensorrt"]

Provider = Literal["cpu", "cuda", "tensorrt"]

BatchSize = Annotated[int, Field(ge=1)]


class TensorRtConfig(Config):
    """How TensorRT builds.

    Attributes:
        batches: smallest, most frequent and largest batch of a model whose batch axis is free, which needs them.
        sources: smallest, most frequent and largest height and width of the images of a model that letterboxes images
            of any size, which needs them.
        workspace_mib: memory that a kernel may use while it runs; null for all that the GPU has.
        timing_cache: a file of kernel timings, read if it is there and written back: the next build is quicker and
            chooses alike.
        version_compatible: an engine that later TensorRT versions load as well, at the price of some speed and size.
        refit: keep the weights exchangeable, at the price of some speed.
        tf32: let FP32 layers multiply in TF32 (GPUs from Ampere on), as trtexec does. False is a true FP32 baseline.
    """

    batches: tuple[BatchSize, BatchSize, BatchSize] | None = None
    sources: tuple[ImageSize, ImageSize, ImageSize] | None = None
    workspace_mib: int | None = Field(None, ge=1)
    timing_cache: Path | None = None
    version_compatible: bool = False
    refit: bool = False
    tf32: bool = True

    @model_validator(mode="after")
    def _ordered(self) -> TensorRtConfig:
        if self.batches is not None and list(self.batches) != sorted(self.batches):
            raise ValueError("batches are the smallest, the most frequent and the largest one, in this order")
        if any(list(axis) != sorted(axis) for axis in zip(*(self.sources or ()), strict=True)):
            raise ValueError(
                "sources are the smallest, the most frequent and the largest size, each way, in this order"
            )
        return self


class BuildConfig(Config):
    """Engines.

    Attributes:
        threads: CPU threads; null leaves the choice to the runtime.
        provider: what ONNX Runtime runs on; ``cuda`` and ``tensorrt`` need the package onnxruntime-gpu and a GPU.
        tensorrt: settings of the engine ``tensorrt``.
    """

    engines: tuple[EngineName, ...] = ("onnxruntime", "openvino")
    threads: int | None = Field(None, ge=1)
    provider: Provider = "cpu"
    tensorrt: TensorRtConfig = TensorRtConfig()


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
