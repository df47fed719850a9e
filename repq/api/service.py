"""From image files to boxes, in steps that can be timed apart, whichever of them the model does itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from repq.data import LetterboxTransform, decode_image, letterbox, letterbox_transform, to_input
from repq.errors import DataError, RepqError
from repq.evaluate import postprocess
from repq.log import Log, quiet
from repq.recipe import DeployConfig, EvalConfig, NmsConfig, parse_settings
from repq.thresholds import Thresholds

if TYPE_CHECKING:
    from repq.api.model import Model

Image = NDArray[np.uint8]
Boxes = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Prepared:
    """Network input for some images.

    Attributes:
        parts: arrays of images that follow one another and have one shape; a graph of one input size has one part.
        transforms: how each image was placed.
    """

    parts: tuple[NDArray[Any], ...]
    transforms: tuple[LetterboxTransform, ...]


@dataclass(frozen=True)
class Service:
    """A detector with everything around it.

    Attributes:
        decode: a file's bytes to an image (h, w, 3), with the colours in the order that the model takes.
        prepare: such images to network input.
        infer: network input to what the model gives.
        finish: that to boxes (k, 6) in pixels of the images: x1, y1, x2, y2, score, class; best first.
        bgr: whether the model takes blue first.
    """

    decode: Callable[[bytes], Image]
    prepare: Callable[[Sequence[Image]], Prepared]
    infer: Callable[[Prepared], list[NDArray[Any]]]
    finish: Callable[[Sequence[NDArray[Any]], Prepared], list[Boxes]]
    bgr: bool

    def take(self, images: Sequence[Image]) -> Prepared:
        """RGB images of any sizes to network input."""
        return self.prepare([np.ascontiguousarray(image[..., ::-1]) for image in images] if self.bgr else images)

    def detect(self, images: Sequence[Image]) -> list[Boxes]:
        """RGB images of any sizes to their boxes."""
        prepared = self.take(images)
        return self.finish(self.infer(prepared), prepared)


def service_of(model: Model, imgsz: tuple[int, int], config: EvalConfig | None = None) -> Service:
    """Put around a model what it does not do itself.

    Args:
        config: default: the settings that the graph has inside, else the usual ones.

    Raises:
        RepqError: the model letterboxes or suppresses by other settings than ``config``.
    """
    preprocess, form = model.preprocess, model.preprocessing
    config = config or as_exported(model)
    demand_settings(model, config)

    def prepare(images: Sequence[Image]) -> Prepared:
        if preprocess.letterbox is not None:
            sizes = [image.shape[:2] for image in images]
            _demand_source(model, sizes)
            placed = [letterbox_transform(width, height, imgsz, config.letterbox, form) for height, width in sizes]
            return Prepared(_runs(images), tuple(placed))
        placed_in = (letterbox(image, imgsz, config.letterbox, form) for image in images)
        canvases, transforms = zip(*placed_in, strict=True)
        stacked = to_bytes(canvases) if preprocess.uint8 else to_input(canvases, form)
        return Prepared((stacked,), transforms)

    def finish(outputs: Sequence[NDArray[Any]], prepared: Prepared) -> list[Boxes]:
        demand_clear(model)
        of_batches = (surviving(out) if model.nms else postprocess(out, config, model.layout) for out in outputs)
        found = [boxes for batch in of_batches for boxes in batch]
        for boxes, transform in zip(found, prepared.transforms, strict=True):
            boxes[:, :4] = transform.to_original(boxes[:, :4], clip=config.clip)
        return found

    return Service(
        decode=lambda data: decode_image(data, "sent to the service", bgr=form.bgr),
        prepare=prepare,
        infer=lambda prepared: [model.infer(part) for part in prepared.parts],
        finish=finish,
        bgr=form.bgr,
    )


def timed_service(model: Model, imgsz: tuple[int, int], images: Sequence[Image]) -> Service:
    """`service_of` for timing: whether its values are finite is looked at for these images and then no more.

    Raises:
        EngineError: they are not.
    """
    service = service_of(model, imgsz)
    service.infer(service.prepare(images))
    return replace(service, infer=lambda prepared: [model.running.unchecked(part) for part in prepared.parts])


def thresholds_of(model: Model, asked: Mapping[str, Any], log: Log = quiet) -> Thresholds:
    """What counts as found: what is asked for, else what the graph has inside, else what the model says.

    Args:
        asked: fields of `Thresholds`; None asks for nothing.
        log: gets both values where the model says another.

    Raises:
        RepqError: a value outside its limits.
    """
    own, inside = model.thresholds, model.nms
    if inside is not None:
        least = max(own.confidence, inside.confidence)
        own = Thresholds(least, inside.iou, inside.max_detections)
    wanted = parse_settings(DeployConfig, dict(asked), what="detection")
    return own.changed(wanted.model_dump(), model.label, log)


def demand_clear(model: Model) -> None:
    """Refuse a model of whose outputs nobody knows what they mean.

    Raises:
        RepqError: why that is so.
    """
    if model.unclear is not None:
        raise model.unclear


def finder_of(model: Model, imgsz: tuple[int, int], thresholds: Thresholds, *, as_eval: bool = False) -> Service:
    """A service for users: one class a place, boxes of an area that lie inside the image, of at least some score.

    Args:
        thresholds: see `thresholds_of`.
        as_eval: what AP is measured of instead: several classes of a place, boxes as they are.

    Raises:
        RepqError: other settings than the graph has inside, or nobody knows what its outputs mean.
    """
    demand_clear(model)
    wanted, least = asdict(thresholds), thresholds.confidence
    if model.nms is None:
        wanted["multi_label"] = as_eval
    elif least < model.nms.confidence:
        raise RepqError(
            f"{model.label} suppresses by itself, from a score of {model.nms.confidence} on", found=f"conf={least}",
            fix="ask for that score or a higher one, or export again",
        )  # fmt: skip
    else:
        wanted["confidence"] = model.nms.confidence
    service = service_of(model, imgsz, as_exported(model, clip=not as_eval, **wanted))

    def finish(outputs: Sequence[NDArray[Any]], prepared: Prepared) -> list[Boxes]:
        found = service.finish(outputs, prepared)
        found = [rows[rows[:, 4] > least] for rows in found]
        return found if as_eval else [rows[(rows[:, 2:4] > rows[:, :2]).all(axis=1)] for rows in found]

    return replace(service, finish=finish)


def as_exported(model: Model, **changes: Any) -> EvalConfig:
    """The settings that a graph has inside, else the usual ones; ``changes`` to either."""
    inside: dict[str, Any] = {} if model.nms is None else model.nms.model_dump()
    if model.preprocess.letterbox is not None:
        inside["letterbox"] = model.preprocess.letterbox
    return parse_settings(EvalConfig, {**inside, **changes}, what="evaluation")


def to_bytes(images: Sequence[Image]) -> NDArray[np.uint8]:
    """Stack B images (H, W, 3) into (B, 3, H, W)."""
    return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))


def surviving(output: NDArray[Any]) -> list[Boxes]:
    """The rows of boxes (B, K, 6) that stand for a box."""
    return [np.array(rows[rows[:, 4] > 0], np.float32) for rows in output]


def demand_settings(model: Model, config: EvalConfig) -> None:
    """Refuse settings that contradict those inside the graph.

    Raises:
        RepqError: the letterbox or the suppression differs.
    """
    inside = model.preprocess.letterbox
    if inside is not None and inside != config.letterbox:
        raise RepqError(
            f"{model.label} letterboxes by itself, with other settings",
            found=f"{inside} in the graph, {config.letterbox} asked for",
            fix="ask for those of the graph, or export again",
        )
    if model.nms is not None:
        wanted = NmsConfig(**{name: getattr(config, name) for name in NmsConfig.model_fields})
        if model.nms != wanted:
            raise RepqError(
                f"{model.label} suppresses by itself, with other settings",
                found=f"{model.nms} in the graph, {wanted} asked for",
                fix="ask for those of the graph (--conf, --iou), or export again",
            )


def _demand_source(model: Model, sizes: Sequence[tuple[int, ...]]) -> None:
    source = model.preprocess.source
    other = next((size for size in sizes if source not in (None, size)), None)
    if source is not None and other is not None:
        raise DataError(
            f"{model.label} takes images of {source[0]}x{source[1]} only",
            found=f"an image of {other[0]}x{other[1]}",
            fix="export it for images of any size (--source-size any)",
        )


def _runs(images: Sequence[Image]) -> tuple[NDArray[np.uint8], ...]:
    """Stack neighbours of one size."""
    runs: list[list[Image]] = []
    for image in images:
        if runs and runs[-1][0].shape == image.shape:
            runs[-1].append(image)
        else:
            runs.append([image])
    return tuple(np.stack(run) for run in runs)
