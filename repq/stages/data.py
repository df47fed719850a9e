"""Data sets and calibration sets as stages read them, and the drawn set of a recipe without one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from repq.api.fitting import look_for_overlap
from repq.api.images import is_unlabelled, open_data
from repq.log import Log, quiet
from repq.printable import printable
from repq.progress import Progress, silent
from repq.stages.stage import Job, Stage

if TYPE_CHECKING:
    from repq.data import DetectionDataset


def read_data(data: Path, split: str, log: Log = quiet, progress: Progress = silent) -> DetectionDataset:
    """Load a split and log what had to be skipped, and what was taken in another way than it is written."""
    return open_data(data, split, log, progress)


def labelled(data: Path, split: str, log: Log = quiet, progress: Progress = silent) -> DetectionDataset | None:
    """A split to evaluate on; None, which is said, where there are images alone."""
    if is_unlabelled(data):
        log(f"{printable(data)} has no labels: AP is not measured")
        return None
    return read_data(data, split, log, progress)


def draw_calibration_set(
    data: Path, split: str, images: int, seed: int, out: Path, *, val_split: str | None = "val", log: Log = quiet
) -> int:
    """Write the manifest of a seeded draw of calibration images and return their number.

    Args:
        val_split: where accuracy is reported later, to warn of images that are in both.
    """
    from repq.data import calibration_set, write_manifest
    from repq.recipe import CalibrationConfig

    dataset = read_data(data, split, log)
    records = calibration_set(dataset, CalibrationConfig(images=images, seed=seed))
    look_for_overlap(records, data, val_split, log)
    write_manifest(out, records, dataset)
    return len(records)


def _draw(job: Job) -> None:
    from repq.data import make_demo_set

    assert job.recipe.data.demo is not None
    make_demo_set(job.payload / "demo", job.recipe.data.demo)


STAGE = Stage("data", _draw, uses=("data",), wanted=lambda recipe: recipe.data.demo is not None)
