"""The way from image files to boxes as a stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from repq.api.images import open_data
from repq.api.model import Model
from repq.api.opening import labels, load
from repq.api.service import timed_service
from repq.log import Log, quiet
from repq.progress import Progress, silent
from repq.recipe import BenchConfig
from repq.results import ServiceRow

if TYPE_CHECKING:
    from repq.api.service import Prepared, Service
    from repq.bench import ServedModel
    from repq.data.dali import DaliLoader

LoaderName = Literal["opencv", "dali"]


def bench_service(
    models: Sequence[Path],
    data: Path,
    split: str,
    imgsz: tuple[int, int],
    config: BenchConfig,
    *,
    engines: Sequence[Any] = (),
    loaders: Sequence[LoaderName] = ("opencv",),
    images: int = 64,
    device: str = "cpu",
    progress: Progress = silent,
    log: Log = quiet,
) -> tuple[ServiceRow, ...]:
    """Time the way from JPEG files to boxes, for every model, engine and loader.

    Raises:
        RepqError: a model or the data cannot be used, or a loader is not installed.
    """
    from repq.bench import time_service

    records = open_data(data, split, log, progress).records[:images]
    files = [record.path.read_bytes() for record in records]
    rows: list[ServiceRow] = []
    for threads in config.threads:
        opened = [
            replace(load(path, engine=engine, imgsz=imgsz, device=device, threads=threads), label=label)
            for path, label in zip(models, labels(models), strict=True)
            for engine in (engines if engines and not path.is_dir() else (None,))
        ]
        for batch in config.batches:
            served = [
                arrange(model, imgsz, loader, batch, threads, device)
                for model in opened
                for loader in loaders
                if loader == "opencv" or model.preprocess.letterbox is None
            ]
            rows.extend(time_service(served, files, batch, threads, config, progress=progress))
    return tuple(rows)


def arrange(
    model: Model, imgsz: tuple[int, int], loader: LoaderName, batch: int, threads: int, device: str
) -> ServedModel:
    """A model, what it does itself, and the loader that does the rest."""
    from repq.bench import ServedModel

    inside = model.preprocess
    service = timed_service(model, imgsz, [np.zeros((*(inside.source or imgsz), 3), np.uint8)] * batch)
    label = "opencv"
    decode: Callable[[Sequence[bytes]], Any] = partial(_decode_all, service)
    preprocess: Callable[[Any], Any] = service.prepare
    if loader == "dali":
        from repq.data.dali import DaliLoader

        where: Literal["cpu", "gpu"] = "gpu" if device.startswith("cuda") else "cpu"
        load = DaliLoader(
            imgsz,
            batch,
            dtype="uint8" if inside.uint8 else "float32",
            preprocessing=model.preprocessing,
            device=where,
            threads=threads,
        )
        label, decode, preprocess = f"dali ({where})", partial(_load_all, load), _as_it_is
    return ServedModel(
        info=model.info,
        loader=label,
        letterbox="loader" if loader == "dali" else "host" if inside.letterbox is None else "graph",
        nms="host" if model.nms is None else "graph",
        decode=decode,
        preprocess=preprocess,
        infer=lambda prepared: (service.infer(prepared), prepared),
        postprocess=lambda ran: service.finish(*ran),
        batch=model.batch,
    )


def _decode_all(service: Service, files: Sequence[bytes]) -> list[Any]:
    return [service.decode(file) for file in files]


def _load_all(load: DaliLoader, files: Sequence[bytes]) -> Prepared:
    from repq.api.service import Prepared

    images, transforms = load(files)
    return Prepared((images,), transforms)


def _as_it_is(prepared: Prepared) -> Prepared:
    return prepared
