"""What is measured of opened models: accuracy, agreement, latency."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from repq.api.fitting import demand_same_order, fitted
from repq.api.service import demand_clear, service_of, timed_service
from repq.errors import RepqError
from repq.log import Log, quiet
from repq.progress import Progress, silent
from repq.recipe import BenchConfig, CheckConfig, EvalConfig
from repq.results import Accuracy, BenchReport, CheckReport
from repq.torchrun import is_alone

if TYPE_CHECKING:
    from repq.api.model import Model
    from repq.api.service import Prepared, Service
    from repq.bench import DeviceWork, Runner
    from repq.data import DetectionDataset
    from repq.evaluate import Detections


def accuracy_of(
    model: Model,
    dataset: DetectionDataset,
    imgsz: tuple[int, int],
    config: EvalConfig,
    progress: Progress = silent,
    log: Log = quiet,
) -> Accuracy:
    """COCO AP of an opened model, with the work of a service inside or without.

    Processes that share their work look at shares of the images; all of them get the result.

    Raises:
        RepqError: the model takes another size.
        DataError: the model and the data set disagree on the classes, there is not one labelled object, or an image can
            no longer be read.
    """
    from repq.evaluate import resampled_accuracy

    dataset = demand_fit(model, dataset, imgsz, log)
    return resampled_accuracy(_detections_of(model, dataset, imgsz, config, progress), dataset)


def ap_of(
    model: Model, dataset: DetectionDataset, imgsz: tuple[int, int], config: EvalConfig, progress: Progress = silent
) -> float:
    """The AP of `accuracy_of` alone, without that of resamples, which takes longer than the rest. Errors: the same."""
    from repq.evaluate import coco_accuracy

    dataset = demand_fit(model, dataset, imgsz)
    return coco_accuracy(_detections_of(model, dataset, imgsz, config, progress), dataset).ap


def _detections_of(
    model: Model, dataset: DetectionDataset, imgsz: tuple[int, int], config: EvalConfig, progress: Progress
) -> Detections:
    """What a model finds in the images of a data set with its classes."""
    from repq.data import demand_objects
    from repq.evaluate import detect_all, detect_images, views

    demand_objects(dataset)
    if config.tta is not None:
        demand_plain(model)
        fix = "--tta-inside puts the image smaller into this size; --tta-scale 1 looks at no other"
        for view in views(imgsz, config.tta):
            demand_size(model, view.size, "a pass of test-time augmentation at ", fix)

    def detect(share: DetectionDataset) -> Detections:
        at_once = model.running.runs_at_once
        if model.plain:
            return detect_all(
                model.infer, share, imgsz, config, progress, label="evaluating", layout=model.layout,
                preprocessing=model.preprocessing, at_once=at_once,
            )  # fmt: skip
        service = service_of(model, imgsz, config)
        return detect_images(service.detect, share, config.batch, progress, at_once=at_once)

    if is_alone():
        return detect(dataset)
    from repq.distributed import found_in_shares

    return found_in_shares(detect, dataset, config.batch)


def demand_fit(model: Model, dataset: DetectionDataset, imgsz: tuple[int, int], log: Log = quiet) -> DetectionDataset:
    """The data set with the model's classes in their order.

    Raises:
        RepqError: the model takes another size.
        DataError: it has other classes.
    """
    demand_clear(model)
    demand_size(model, imgsz)
    tell_notes(model, log)
    return fitted(dataset, model.names, model.label, log)


def tell_notes(model: Model, log: Log) -> None:
    """Say what was taken of a graph or an engine that does not say it; of a checkpoint, who reads it says it."""
    for note in model.notes if model.kind != "checkpoint" else ():
        log(f"{model.label}: {note}")


def demand_plain(model: Model) -> None:
    """Refuse a graph that does the work of a service itself, where its detections are to be compared.

    Raises:
        RepqError: it has preprocessing or suppression inside.
    """
    if not model.plain:
        inside = "suppression" if model.nms is not None else "preprocessing"
        raise RepqError(
            f"the detections of {model.label} cannot be compared",
            found=f"{inside} inside the graph",
            fix="compare the graph exported without it; `repq eval` gives the AP of either",
        )


def demand_size(
    model: Model,
    imgsz: tuple[int, int],
    asked: str = "--imgsz ",
    fix: str = "give the model's own size, or export it again for this one",
) -> None:
    """Refuse another size than the one that the model is fixed to, or one that its levels do not divide."""
    if model.weights is not None:
        model.weights.model.spec.check_size(*imgsz)
    if model.imgsz is not None and model.imgsz != imgsz:
        raise RepqError(
            f"{model.label} takes images of {model.imgsz[0]}x{model.imgsz[1]}",
            found=f"{asked}{imgsz[0]}x{imgsz[1]}",
            fix=fix,
        )


def agreement(
    reference: Model,
    candidates: Sequence[Model],
    dataset: DetectionDataset,
    imgsz: tuple[int, int],
    config: CheckConfig,
    eval_config: EvalConfig,
    progress: Progress = silent,
    log: Log = quiet,
) -> CheckReport:
    """Compare models with a reference, on the first ``config.images`` images.

    Raises:
        RepqError: a model takes another size or other input, gives another output, or does the work of a service
            itself.
        DataError: the classes are not those of the data set, or in another order from model to model, there is not one
            labelled object, or an image can no longer be read.
    """
    from repq.bench import check_agreement

    if config.images is not None:
        dataset = dataset.subset(dataset.records[: config.images])
    demand_plain(reference)
    dataset = demand_fit(reference, dataset, imgsz, log)
    for model in candidates:
        demand_clear(model)
        demand_plain(model)
        demand_size(model, imgsz)
        demand_same_order(dataset, model.names, model.label)
        if model.preprocessing != reference.preprocessing:
            raise RepqError(
                f"{model.label} takes other input than {reference.label}",
                found=f"{model.preprocessing} and {reference.preprocessing}",
                fix="export it again from the same checkpoint",
            )
        own, wanted = model.layout.decoded.values(), reference.layout.decoded.values()
        if others := [name for name in wanted if own[name] != wanted[name]]:
            raise RepqError(
                f"{model.label} gives its detections in another form than {reference.label}",
                found=", ".join(f"{name}: {own[name]} and {wanted[name]}" for name in others),
                fix="compare exports of one form; `repq eval` gives the AP of each",
            )
    rows = [(model.info, model.infer) for model in candidates]
    form = reference.layout, reference.preprocessing
    return check_agreement(reference.infer, rows, dataset, imgsz, config, eval_config, progress, *form)


def timed(
    models: Sequence[tuple[str, Model]],
    imgsz: tuple[int, int],
    config: BenchConfig,
    *,
    images: Sequence[NDArray[np.uint8]] = (),
    seed: int = 0,
    progress: Progress = silent,
) -> BenchReport:
    """Time models, each with the label of its row, side by side in one run.

    Args:
        images: RGB (h, w, 3), for the runs with pre- and post-processing; without any there are no such runs.

    Raises:
        RepqError: a model does not take this size or batch.
    """
    from repq.bench import TimedModel, bench

    rows = []
    for label, model in models:
        demand_size(model, imgsz)
        info = model.info.model_copy(update={"model": label})
        rows.append(TimedModel(info, partial(_runner, model, imgsz, seed, config.batches[0], images), model.batch))
    device = next((model.options.device for _, model in models), "cpu")
    gpu = gpu_index(device, [row.info.engine for row in rows])
    return bench(rows, imgsz, config, images=images, seed=seed, progress=progress, watch_gpu=gpu)


def gpu_index(device: str, engines: Sequence[str]) -> int | None:
    """Which GPU a timing runs on; None: it runs on the CPU."""
    if device.startswith("cuda"):
        return int(device.partition(":")[2] or 0)
    from repq.engine import ENGINES

    return 0 if any(entry.on_gpu for entry in ENGINES if entry.name in engines) else None


def _runner(
    model: Model, imgsz: tuple[int, int], seed: int, batch: int, images: Sequence[NDArray[np.uint8]], threads: int
) -> Runner:
    import cv2

    from repq.bench import Runner

    model = model.on(threads=threads)
    on_device = model.running.on_device
    noise = np.random.default_rng(seed).integers(0, 256, (*(model.preprocess.source or imgsz), 3), dtype=np.uint8)
    service = timed_service(model, imgsz, [noise] * batch)

    def own(image: NDArray[np.uint8]) -> NDArray[Any]:
        """An image as the model's service gets it: its colours, and its size where the graph takes one."""
        ordered = np.ascontiguousarray(image[..., ::-1]) if service.bgr else image
        return cv2.resize(ordered, noise.shape[1::-1]) if model.preprocess.source else ordered

    def run(prepared: Prepared) -> tuple[list[Any], Prepared]:
        return service.infer(prepared), prepared

    return Runner(
        infer=run,
        preprocess=service.prepare,
        postprocess=lambda ran: service.finish(*ran),
        inputs=lambda batch: service.prepare([noise] * batch),
        images=[own(image) for image in images],
        on_device=None if on_device is None else partial(_work_on_device, service, noise, on_device),
    )


def _work_on_device(service: Service, image: Any, on_device: Any, batch: int) -> DeviceWork:
    from repq.bench import DeviceWork

    (images,) = service.prepare([image] * batch).parts
    return DeviceWork(*on_device(images.shape))
