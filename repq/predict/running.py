"""Images in, boxes and drawings out. The model runs in one thread; what is before and after it runs in others."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice, repeat, takewhile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from repq.api.detected import Detected
from repq.api.model import Model, Size
from repq.api.service import Prepared, Service, finder_of, thresholds_of
from repq.concurrency import concurrently, prefetch
from repq.data.classes import class_places
from repq.errors import DataError, RepqError
from repq.files import replacing_folder
from repq.log import Log, quiet
from repq.predict.outputs import (
    COCO,
    DRAWN,
    LABELS,
    PREDICTIONS,
    CocoFile,
    DrawnImages,
    DrawnVideo,
    JsonFile,
    Output,
    Prediction,
    YoloFiles,
    as_file,
    is_own,
    named,
)
from repq.predict.sources import Pending, Source
from repq.printable import printable
from repq.progress import Progress, silent
from repq.recipe import DeployConfig, EvalConfig, PredictConfig
from repq.report.boxes import Found, compared, draw_boxes, side_by_side
from repq.results import Comparison, PredictReport
from repq.stopping import Stopped

Image = NDArray[np.uint8]
Boxes = NDArray[np.float32]
_NAMED = 20
_MANY = 8


@dataclass(frozen=True, eq=False)
class _Chunk:
    """Images on their way: what was read, what could not be, the input of each model, and later its output."""

    images: tuple[tuple[str, Image], ...]
    failures: tuple[tuple[str, str], ...]
    prepared: tuple[Prepared, ...] = ()
    outputs: tuple[list[NDArray[Any]], ...] = ()


@dataclass
class _Tally:
    """What is counted on the way."""

    images: int = 0
    per_class: Counter[int] = field(default_factory=Counter)
    skipped: list[str] = field(default_factory=list)
    skipped_count: int = 0
    same: int = 0
    lost: int = 0
    new: int = 0
    changed: Counter[str] = field(default_factory=Counter)

    def add(self, found: Prediction) -> None:
        self.images += 1
        self.per_class.update(found.boxes[0][:, 5].astype(int).tolist())
        if len(found.boxes) > 1:
            lost, new = len(found.lost), len(found.new)
            self.same, self.lost, self.new = self.same + len(found.boxes[0]) - lost, self.lost + lost, self.new + new
            if lost + new:
                self.changed[found.name] = lost + new

    def compared_with(self, other: str) -> Comparison:
        """What a second model of this label finds otherwise."""
        changed = dict(self.changed.most_common(_NAMED))
        return Comparison(other=other, same=self.same, lost=self.lost, new=self.new, changed=changed)


def predict(
    model: Model,
    sources: Sequence[Source],
    out: Path,
    config: PredictConfig = PredictConfig(),
    *,
    other: Model | None = None,
    imgsz: Size | None = None,
    force: bool = False,
    progress: Progress = silent,
    log: Log = quiet,
) -> PredictReport:
    """Find objects in all images of the sources and write what was found into a folder, whole or not at all.

    Args:
        sources: as `open_sources` opens them.
        out: a folder; one that holds predictions of repq alone is replaced.
        other: a second model: both are drawn side by side, with lost and new boxes marked.
        force: write into a folder with other files too; those of the same names are replaced.

    Raises:
        RepqError: the folder holds something else or an image, the models do not fit each other or the settings, or
            the folder cannot be written.
        DataError: not one image can be read.
    """
    model, other = _for_speed(model, sources), None if other is None else _for_speed(other, sources)
    models = [model] if other is None else [model, other]
    _demand_place(out, sources, force=force)
    places = _places(model, other, log)
    size, thresholds = model.size(imgsz), thresholds_of(model, _asked(config), log)
    if other is not None:
        thresholds_of(other, asdict(thresholds), log)  # it is looked at by those of the first: says where it has others
    finders = [finder_of(one, one.size(imgsz), thresholds, as_eval=config.as_eval) for one in models]
    titles = [one.label if len({each.label for each in models}) > 1 else str(one.path) for one in models]
    names = model.class_names
    about = {"model": model.label, "engine": model.running.engine, "classes": names, "imgsz": size,
             **asdict(thresholds), **({"other": other.label} if other else {})}  # fmt: skip
    at_once = min(one.running.runs_at_once for one in models)  # they start here, before time is taken
    job = _Job(finders, config, config.batch or model.batch or 1, titles, names, places, at_once)
    tally, started, threads = _Tally(), time.perf_counter(), cv2.getNumThreads()
    with ExitStack() as stack:
        folder = stack.enter_context(replacing_folder(out, keep_others=out.is_dir() and not is_own(out)))
        json_file = JsonFile(folder / PREDICTIONS, about, names)
        outputs: list[Output] = [json_file]
        outputs += [YoloFiles(folder / LABELS, scores=config.scores)] if config.txt else []
        outputs += [CocoFile(folder / COCO, names, model.num_classes or len(names))] if config.coco else []
        stack.callback(cv2.setNumThreads, threads)
        cv2.setNumThreads(1)  # what is beside the model has its own threads
        for source in sources:
            drawn = [_drawn_of(source, folder / DRAWN)] if config.draw else []
            _work_through(source, job, [*outputs, *drawn], tally, json_file, progress, log)
            for output in drawn:
                output.close()
        for output in outputs:
            output.close()
        if not tally.images:
            raise DataError("not one image could be read", found="; ".join(tally.skipped[:3]) or "no frames",
                            fix="check the files; `repq predict` reads what OpenCV decodes")  # fmt: skip
        seconds = time.perf_counter() - started
        files = tuple(sorted(entry.name for entry in folder.iterdir()))
    return PredictReport(
        model=model.label,
        engine=model.running.engine,
        precision=model.precision,
        imgsz=size,
        confidence=thresholds.confidence,
        images=tally.images,
        boxes=tally.per_class.total(),
        per_class={named(names, label): found for label, found in tally.per_class.most_common()},
        skipped_count=tally.skipped_count,
        skipped=tuple(tally.skipped),
        images_per_s=tally.images / seconds,
        compared=None if other is None else tally.compared_with(other.label),
        out=str(out),
        files=files,
    )


def _drawn_of(source: Source, folder: Path) -> Output:
    """Where the images of a source are drawn with their boxes."""
    return DrawnImages(folder) if source.kind == "images" else DrawnVideo(folder / source.name, source.fps)


@dataclass(frozen=True, eq=False)
class _Job:
    """The steps from images to predictions.

    Attributes:
        titles: of the models, over their pictures.
        places: the first model's class of each class of the second; None: the same.
        at_once: how many threads may call ``run`` at once.
    """

    finders: Sequence[Service]
    config: PredictConfig
    batch: int
    titles: Sequence[str]
    names: Sequence[str]
    places: NDArray[np.float32] | None = None
    at_once: int = 1

    def take(self, frames: Sequence[Pending]) -> _Chunk:
        """Read images and make network input of them."""
        images, failures = [], []
        for frame in frames:
            try:
                images.append((frame.name, frame.read()))
            except DataError as error:
                failures.append((frame.name, error.found or error.what))
        pixels = [image for _, image in images]
        prepared = tuple(finder.take(pixels) for finder in self.finders) if images else ()
        return _Chunk(tuple(images), tuple(failures), prepared)

    def run(self, chunk: _Chunk) -> _Chunk:
        """Run the models."""
        outputs = tuple(finder.infer(part) for finder, part in zip(self.finders, chunk.prepared, strict=False))
        return _Chunk(chunk.images, chunk.failures, chunk.prepared, outputs)

    def finish(self, chunk: _Chunk, still: bool) -> tuple[list[Prediction], tuple[tuple[str, str], ...]]:
        """Make boxes of what they gave, and draw them."""
        per_model = [
            finder.finish(output, prepared)
            for finder, output, prepared in zip(self.finders, chunk.outputs, chunk.prepared, strict=False)
        ]
        if self.places is not None:
            for boxes in per_model[1]:
                boxes[:, 5] = self.places[boxes[:, 5].astype(int)]
        found = []
        for index, (name, image) in enumerate(chunk.images):
            found.append(self._prediction(name, image, tuple(boxes[index] for boxes in per_model), still))
        return found, chunk.failures

    def _prediction(self, name: str, image: Image, boxes: tuple[Boxes, ...], still: bool) -> Prediction:
        lost: tuple[int, ...] = ()
        new: tuple[int, ...] = ()
        shown: list[Found] = []
        if len(boxes) > 1:
            shown = list(compared((self.titles[0], boxes[0]), (self.titles[1], boxes[1])))
            lost, new = (tuple(np.flatnonzero(one.marked).tolist()) for one in shown)  # type: ignore[arg-type]
        drawn: Any = None
        if self.config.draw:
            canvas: Image = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2BGR), np.uint8)
            drawn = side_by_side(canvas, shown, self.names) if shown else draw_boxes(canvas, boxes[0], self.names)
            drawn = as_file(drawn, name) if still else drawn
        return Prediction(name, (image.shape[0], image.shape[1]), boxes, lost, new, drawn)


def _work_through(
    source: Source, job: _Job, outputs: Sequence[Output], tally: _Tally, json_file: JsonFile, progress: Progress,
    log: Log,
) -> None:  # fmt: skip
    still, workers, before = source.kind == "images", job.config.workers, tally.images + tally.skipped_count
    finished = prefetch(partial(job.finish, still=still), _run_through(source, job), workers=workers, ahead=2 * workers)

    def write(result: tuple[list[Prediction], tuple[tuple[str, str], ...]]) -> None:
        for found in result[0]:
            for output in outputs:
                output.add(found)
            tally.add(found)
        for name, reason in result[1]:
            _skip(tally, json_file, name, reason)

    total = source.total if job.config.frames is None else min(source.total or 1 << 31, job.config.frames)
    steps = None if total is None else -(-total // job.batch)
    label = f"predicting {source.name}".rstrip()
    try:
        for _ in progress(prefetch(write, finished, workers=1, ahead=workers), total=steps, label=label):
            pass
    except (Stopped, KeyboardInterrupt):
        if source.kind != "camera":
            raise
        log(f"{source.name}: stopped after {tally.images} frames")
    seen = tally.images + tally.skipped_count - before
    if source.kind == "video" and total is not None and seen < total:
        _skip(tally, json_file, source.name, f"{total - seen} of {total} frames cannot be decoded", total - seen)
    if tally.skipped_count:
        log(f"{tally.skipped_count} skipped: {'; '.join(tally.skipped[:3])}")


def _run_through(source: Source, job: _Job) -> Iterator[_Chunk]:
    """The images of a source with what the models gave; the next ones are read meanwhile."""
    frames: Iterator[Pending] = source.frames
    if source.kind != "images":  # the decoder of a video is one thread beside the model's
        read = prefetch(lambda _: next(source.frames, None), repeat(None), workers=1, ahead=2)
        frames = (frame for frame in takewhile(bool, read) if frame is not None)
    workers = job.config.workers
    chunks = _chunked(islice(frames, job.config.frames), job.batch)
    taken = prefetch(job.take, chunks, workers=workers, ahead=2 * max(workers, job.at_once))
    return concurrently(job.run, taken, job.at_once)


def detected(
    model: Model, sources: Sequence[Source], config: PredictConfig, imgsz: Size | None = None, log: Log = quiet
) -> Iterator[Detected]:
    """Find objects in the images of sources, one after the other; what cannot be read is logged and left out.

    Raises:
        RepqError: the settings do not fit the model.
    """
    model = _for_speed(model, sources)
    thresholds = thresholds_of(model, _asked(config), log)
    finder = finder_of(model, model.size(imgsz), thresholds, as_eval=config.as_eval)
    size, at_once = config.batch or model.batch or 1, model.running.runs_at_once
    job = _Job([finder], config, size, [model.label], model.class_names, at_once=at_once)

    def found() -> Iterator[Detected]:
        for chunk in (chunk for source in sources for chunk in _run_through(source, job)):
            for name, reason in chunk.failures:
                log(f"{printable(name)} is skipped: {reason}")
            boxes = finder.finish(chunk.outputs[0], chunk.prepared[0]) if chunk.images else []
            for (name, image), rows in zip(chunk.images, boxes, strict=True):
                yield Detected(name, image, rows, model.class_names)

    return found()


def _for_speed(model: Model, sources: Sequence[Source]) -> Model:
    """The model for as many images a second as can be had, unless an image is waited for: of a camera, or of few."""
    known = all(source.kind != "camera" for source in sources)
    return model.on(concurrent=True) if known and sum(source.total or _MANY for source in sources) >= _MANY else model


def _asked(config: PredictConfig) -> dict[str, Any]:
    asked = {name: getattr(config, name) for name in DeployConfig.model_fields}
    measured = EvalConfig()
    return {
        name: getattr(measured, name) if config.as_eval and value is None else value for name, value in asked.items()
    }


def _skip(tally: _Tally, json_file: JsonFile, name: str, reason: str, count: int = 1) -> None:
    tally.skipped_count += count
    json_file.skipped.append({"image": name, "reason": reason})
    if len(tally.skipped) < _NAMED:
        tally.skipped.append(f"{printable(name)}: {reason}")


def _chunked(frames: Iterable[Pending], size: int) -> Iterator[list[Pending]]:
    source = iter(frames)
    while chunk := list(islice(source, size)):
        yield chunk


def _demand_place(out: Path, sources: Sequence[Source], *, force: bool) -> None:
    place = out.resolve()
    read = [path.resolve() for source in sources for path in source.paths]
    inside = next((path for path in read if place in (path, *path.parents)), None)
    if inside is not None:
        raise RepqError(f"{printable(inside)} lies in the folder that is written, {printable(out)}",
                        fix="write to another folder")  # fmt: skip
    if out.is_dir() and any(out.iterdir()) and not is_own(out) and not force:
        foreign = ", ".join(sorted(printable(entry.name) for entry in islice(out.iterdir(), 5)))
        raise RepqError(f"the folder {printable(out)} holds what `repq predict` did not write", found=foreign,
                        fix="give a new folder, or --force to write over files of the same names")  # fmt: skip


def _places(model: Model, other: Model | None, log: Log) -> NDArray[np.float32] | None:
    """The first model's class of each class of the second, by name; None: they are the same.

    Raises:
        RepqError: the two find other classes.
    """
    if other is None:
        return None
    if model.num_classes != other.num_classes:
        raise RepqError("the two models find other classes", found=f"{model.num_classes} and {other.num_classes}",
                        fix="compare models that were trained with the same 'names'")  # fmt: skip
    places = class_places(other.names, model.names, model.label)
    if places is None:
        return None
    log(f"{other.label} has its classes in another order than {model.label}; they were matched by name")
    return np.array(places, np.float32)
