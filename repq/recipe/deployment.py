"""Settings of graphs, engines and what is measured on them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from repq.recipe.base import AnyPath, Batch, Config, Count, Decibels, ImageSize, OneOf, Share, Threads, resolve, setting
from repq.recipe.budget import max_drop
from repq.recipe.data import Detections, LetterboxConfig

EngineName = Annotated[str, OneOf("repq.engine:ENGINES")]
RuntimeName = Annotated[str, OneOf("repq.engine:ENGINES", also=("torch",))]
FormName = Annotated[str, OneOf("repq.graph.forms:FORMS")]
Provider = Literal["cpu", "cuda", "tensorrt"]
Mebibytes = Annotated[int, Field(ge=1, le=1 << 20)]
_TENSORRT = "--engine tensorrt"


def default_engines() -> tuple[str, ...]:
    """The engines that are built if nobody says which."""
    names: tuple[str, ...] = resolve("repq.engine:default_engines")()
    return names


def engine_title(name: str) -> str:
    """What tables call an engine."""
    return next((str(entry.title) for entry in resolve("repq.engine:ENGINES") if entry.name == name), name)


def _none_if(word: str) -> BeforeValidator:
    """Reads a word as None, such as the batch size ``dynamic``."""

    def read(value: Any) -> Any:
        return None if value == word else value

    return BeforeValidator(read)


class PreprocessConfig(Config):
    """What a graph does to images before its first layer; the defaults leave all of it to the caller."""

    uint8: bool = setting(
        False, flag="--uint8-input", follows="--letterbox-in-graph",
        help="The graph takes pixels in 0..255 as bytes; /255 is in its first weights.",
    )  # fmt: skip
    bgr: bool = setting(False, flag="--bgr", help="The graph takes blue first, as OpenCV decodes.")
    letterbox: LetterboxConfig | None = setting(
        None, flag="--letterbox-in-graph", help="The graph takes decoded images (B, h, w, 3) as bytes and letterboxes."
    )
    source: Annotated[ImageSize | None, _none_if("any")] = setting(
        None, flag="--source-size", needs="--letterbox-in-graph",
        help="Their size: HEIGHTxWIDTH, or 'any', read from the input at run time.  [default: any]",
    )  # fmt: skip

    @model_validator(mode="after")
    def _whole(self) -> PreprocessConfig:
        if self.letterbox is not None and not self.uint8:
            raise ValueError("a graph that letterboxes takes decoded images: set uint8 as well")
        if self.source is not None and self.letterbox is None:
            raise ValueError("source is the size of images that the graph letterboxes: set letterbox as well")
        return self


class NmsConfig(Config):
    """Non-maximum suppression inside the graph; the meaning of each is that of ``EvalConfig``."""

    confidence: Share = setting(0.03, flag="--conf", help="Score threshold of that suppression.")
    iou: float = setting(0.65, gt=0, le=1, flag="--iou", help="IoU threshold of that suppression.")
    max_detections: Detections = setting(300, flag="--max-detections", help="Its K.")
    multi_label: bool = setting(True, help="A place may give a box for several classes.")


class ExportConfig(Config):
    """ONNX export."""

    opset: int = setting(19, ge=19, le=21, flag="--opset", help="ONNX opset; unless given, an ONNX file keeps its own.")
    batch: Annotated[Batch | None, _none_if("dynamic")] = setting(
        1, flag="--batch", help="Batch size, or 'dynamic': a free batch axis."
    )
    merge_scales: bool = setting(
        False, flag="--merge-scales", needs="MODEL quantized",
        help="For TensorRT: one scale where unequal ones cost kernels. It changes the numbers a little.",
    )  # fmt: skip
    float16: bool = setting(
        False, flag="--fp16", help="For TensorRT and NCNN: what is not INT8 becomes FP16, where it does not overflow."
    )
    float16_io: bool = setting(
        False, flag="--fp16-io", needs="--fp16",
        help="Input and outputs become FP16 too; boxes then lose digits from 512 pixels on.",
    )  # fmt: skip
    target: EngineName | None = setting(
        None, help="The runtime that the graph is for: the file says so, and lint looks at it with its eyes."
    )
    form: FormName | None = setting(
        None, flag="--for", excludes="--target",
        help="The file is what this runtime computes right and fast without repq's engine; implies --target.",
    )  # fmt: skip
    preprocess: PreprocessConfig = setting(PreprocessConfig(), help="What the graph does before its first layer.")
    nms: NmsConfig | None = setting(
        None, flag="--nms", help="The graph ends with boxes (B, K, 6): x1, y1, x2, y2, score, class."
    )


class TensorRtConfig(Config):
    """How TensorRT builds."""

    batches: tuple[Batch, Batch, Batch] | None = setting(
        None, flag="--profile", metavar="MIN USUAL MAX", needs=_TENSORRT,
        help="TensorRT: batch sizes of a model with a free batch axis, which needs them.",
    )  # fmt: skip
    sources: tuple[ImageSize, ImageSize, ImageSize] | None = setting(
        None, flag="--source-profile", metavar="MIN USUAL MAX", needs=_TENSORRT,
        help="TensorRT: sizes of the images that a model letterboxes by itself, which needs them.",
    )  # fmt: skip
    workspace_mib: Mebibytes | None = setting(
        None, flag="--workspace", metavar="MIB", needs=_TENSORRT,
        help="TensorRT: memory for one kernel.  [default: all of the GPU]",
    )  # fmt: skip
    timing_cache: AnyPath | None = setting(
        None, flag="--timing-cache", needs=_TENSORRT, writes="", no_effect=True,
        help="TensorRT: file of kernel timings, read and written: the next build is quicker and chooses alike.",
    )  # fmt: skip
    version_compatible: bool = setting(
        False, flag="--version-compatible", needs=_TENSORRT,
        help="TensorRT: for later versions as well, a little slower and larger.",
    )  # fmt: skip
    refit: bool = setting(
        False, flag="--refit", needs=_TENSORRT, help="TensorRT: keep the weights exchangeable, a little slower."
    )
    tf32: bool = setting(
        True, flag="--tf32/--no-tf32", needs=_TENSORRT,
        help="TensorRT: FP32 layers may multiply in TF32, as trtexec lets them; without it, a true FP32 baseline.",
    )  # fmt: skip

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
    """Engines."""

    engines: tuple[EngineName, ...] = setting(
        default_factory=default_engines, min_length=1, help="Engines to build; default: those on the CPU."
    )
    threads: Threads | None = setting(
        None, flag="--threads", excludes=_TENSORRT, help="CPU threads.  [default: the runtime's own choice]"
    )
    provider: Provider = setting(
        "cpu", flag="--provider", needs="--engine onnxruntime",
        help="What ONNX Runtime runs on; nothing else takes its place. cuda and tensorrt need onnxruntime-gpu.",
    )  # fmt: skip
    dynamic: bool = setting(
        False, flag="--dynamic", needs="--engine onnxruntime", excludes="--provider",
        help="ONNX Runtime: a float MODEL in INT8 with scales taken anew in every run. For comparison: it is slow, and "
        "depthwise layers may collapse.",
    )  # fmt: skip
    tune: bool = setting(
        False, flag="--tune", needs="--engine onnxruntime", excludes=("--provider", "--dynamic"),
        help="ONNX Runtime: where a result is needed in float, as before SiLU, time each layer in float and in INT8 on "
        "this machine, and take the faster.",
    )  # fmt: skip
    tensorrt: TensorRtConfig = setting(TensorRtConfig(), help="Settings of the engine tensorrt.")


class CheckConfig(Config):
    """Agreement of torch's fake quantization with the engines."""

    images: Count | None = setting(
        None, flag="--images", help="Use only the first images of the split.  [default: the whole split]"
    )
    max_drop: Share = max_drop("Largest |AP - AP of the reference|.")
    min_snr_db: Decibels | None = setting(None, flag="--min-snr", help="Smallest SNR of an output, dB.")


class BenchConfig(Config):
    """Timing."""

    batches: tuple[Batch, ...] = setting((1,), min_length=1, flag="--batch", help="Batch sizes; repeat for several.")
    threads: tuple[Threads, ...] = setting((2,), min_length=1, flag="--threads", help="Repeat for several.")
    warmup: int = setting(5, ge=0, le=100_000, flag="--warmup", help="Runs before the timed ones.")
    rounds: int = setting(5, ge=1, le=100_000, flag="--rounds", help="How often the models take turns.")
    runs_per_round: int = setting(10, ge=1, le=100_000, flag="--runs", help="Timed runs per round.")
    settle_ms: float = setting(
        50.0, ge=0, le=60_000, allow_inf_nan=False,
        help="Runs at the start of a turn are not counted as long as this: others' threads may still spin.",
    )  # fmt: skip
    end_to_end: bool = setting(
        True, flag="--end-to-end/--infer-only", help="Also time with pre- and post-processing, on images of the data."
    )


class ReportConfig(Config):
    """What the report of a run shows beside its figures."""

    images: int = setting(4, ge=0, le=1000, help="Images with the detections before and after.")
    candidates: Count = setting(64, help="Of so many images, those with most objects, the most changed are shown.")
    title: str | None = setting(None, max_length=300, help="Title of the report.")
    confidence: Share = setting(0.3, help="Score from which boxes are drawn.")
