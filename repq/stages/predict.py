"""Finding objects in files, by a model of any form, or by two that are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from repq.api.measuring import tell_notes
from repq.api.opening import load
from repq.api.sizes import size_for
from repq.log import Log, quiet
from repq.progress import Progress, silent
from repq.recipe import GraphConfig, PredictConfig
from repq.results import PredictReport


def predict_files(
    model: Path,
    places: Sequence[str],
    out: Path,
    config: PredictConfig,
    *,
    graph: GraphConfig = GraphConfig(),
    compare: Path | None = None,
    imgsz: tuple[int, int] | None = None,
    engine: Any = None,
    threads: int | None = None,
    device: str = "cpu",
    force: bool = False,
    progress: Progress = silent,
    log: Log = quiet,
) -> PredictReport:
    """Find objects and write them into the folder ``out``; see `repq.predict.predict`.

    Args:
        graph: what the models' files do not say of themselves.

    Raises:
        RepqError: a model or a source cannot be opened, or the folder cannot be written to.
    """
    from repq.predict import open_sources, predict

    paths = (model,) if compare is None else (model, compare)
    sizes = [size_for(ordered, imgsz, log) for ordered in (paths, paths[::-1])[: len(paths)]]  # else as the other's
    opened, *others = (
        replace(
            load(path, engine=engine if path.is_file() else None, imgsz=size, threads=threads, device=device,
                 graph=graph, log=log),
            usual=size,
        )
        for path, size in zip(paths, sizes, strict=True)
    )  # fmt: skip
    for one in (opened, *others):
        tell_notes(one, log)
    return predict(
        opened, open_sources(places, log), out, config, other=others[0] if others else None, imgsz=imgsz, force=force,
        progress=progress, log=log,
    )  # fmt: skip
