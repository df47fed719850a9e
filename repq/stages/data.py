"""Data sets and calibration sets as stages read them, and the drawn set of a recipe without one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from repq.errors import DataError
from repq.log import Log, quiet
from repq.printable import printable
from repq.stages.stage import Job, Stage

if TYPE_CHECKING:
    from repq.data import DetectionDataset, ImageRecord


def read_data(data: Path, split: str, log: Log = quiet) -> DetectionDataset:
    """Load a split and log what had to be skipped, and what was taken in another way than it is written."""
    from repq.data import load_dataset

    dataset = load_dataset(data, split)
    for line in dataset.problems.lines():
        log(f"{printable(data)} {printable(split)}: {line}")
    return dataset


def fitted(dataset: DetectionDataset, names: Sequence[str] | None, owner: str, log: Log = quiet) -> DetectionDataset:
    """The data set with the classes of a model, in the model's order; see `repq.data.fit_classes`.

    Raises:
        DataError: other classes.
    """
    from repq.data import fit_classes

    dataset, notes = fit_classes(dataset, names, owner)
    for note in notes:
        log(note)
    return dataset


def demand_same_order(dataset: DetectionDataset, names: Sequence[str] | None, owner: str) -> None:
    """Refuse a second model whose classes are not those of the first, to which the data set was fitted.

    Raises:
        DataError: other classes, or the same in another order: outputs of the two cannot be compared.
    """
    if fitted(dataset, names, owner) is not dataset:
        raise DataError(
            f"{owner} has its classes in another order than the model that it meets",
            found=f"{', '.join(map(printable, list(names or ())[:10]))}; the other: {', '.join(dataset.names[:10])}",
            fix="give models that were trained with the same 'names'",
        )


def look_for_overlap(
    deciding: Sequence[ImageRecord], data: Path, val_split: str | None, log: Log, use: str = "settings are chosen on"
) -> None:
    """Say if images that something is learned from are in the split that accuracy is reported on, if there is one."""
    from repq.data import listed_images, warn_of_overlap

    if val_split is None:
        return
    try:
        evaluation = listed_images(data, val_split)
    except DataError:  # there is none, which is no harm here
        return
    warn_of_overlap(deciding, evaluation, log, use)


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
