"""Whether models and data sets fit each other: classes by name, objects to measure with, images of one split only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from repq.api.images import open_data
from repq.errors import DataError
from repq.log import Log, quiet
from repq.printable import printable
from repq.progress import Progress, silent

if TYPE_CHECKING:
    from repq.data import DetectionDataset, ImageRecord


def fitted(dataset: DetectionDataset, names: Sequence[str] | None, owner: str, log: Log = quiet) -> DetectionDataset:
    """The data set with the classes of a model, in the model's order; see `repq.data.fit_classes`.

    Raises:
        DataError: other classes.
    """
    from repq.data import fit_classes

    if not dataset.names:  # images alone
        return dataset if names is None else replace(dataset, names=tuple(names))
    dataset, notes = fit_classes(dataset, names, owner)
    for note in notes:
        log(note)
    return dataset


def demand_same_order(dataset: DetectionDataset, names: Sequence[str] | None, owner: str) -> None:
    """Refuse a second model whose classes are not those of the first, to which the data set was fitted.

    Raises:
        DataError: other classes, or the same in another order: outputs of the two cannot be compared.
    """
    if dataset.names and fitted(dataset, names, owner) is not dataset:
        raise DataError(
            f"{owner} has its classes in another order than the model that it meets",
            found=f"{', '.join(map(printable, list(names or ())[:10]))}; the other: {', '.join(dataset.names[:10])}",
            fix="give models that were trained with the same 'names'",
        )


def splits_to_train_on(
    data: str | Path | DetectionDataset,
    splits: tuple[str, str],
    *,
    start: Sequence[str] | None = None,
    log: Log = quiet,
    progress: Progress = silent,
) -> tuple[DetectionDataset, DetectionDataset]:
    """The splits to learn from and to evaluate on, with the same classes in one order.

    Args:
        start: class names of the weights that training starts from. Equal names in another order are put in theirs,
            so that their class predictions stay what they are; other names are said.

    Raises:
        DataError: there are not two splits, they cannot be used or have different classes, or one has no labelled
            object.
    """
    from repq.data import demand_objects, fit_splits, warn_of_overlap

    if isinstance(splits, str) or len(splits) != 2:
        found = repr(splits if isinstance(splits, str) else tuple(splits))
        fix = 'name both, such as splits=("train", "val")'
        raise DataError("training takes two splits: one to learn from, one to evaluate on", found=found, fix=fix)
    train_set, val_set, notes = fit_splits(*(open_data(data, split, log, progress) for split in splits))
    for note in notes:
        log(note)
    demand_objects(train_set, "a detector cannot be trained")
    demand_objects(val_set)
    if start and set(start) == set(train_set.names):
        train_set, val_set = (fitted(part, start, "the checkpoint", log) for part in (train_set, val_set))
    elif start and len(start) == train_set.num_classes:
        log(
            f"the class predictions start from those of the checkpoint, which are of other classes: "
            f"{', '.join(map(printable, start[:5]))}; the data set's are {', '.join(train_set.names[:5])}"
        )
    warn_of_overlap(train_set.records, val_set.records, log, "are trained on")
    return train_set, val_set


def look_for_overlap(deciding: Sequence[ImageRecord], data: Path, val_split: str | None, log: Log) -> None:
    """Say if images that settings are chosen on are in the split that accuracy is reported on, if there is one."""
    from repq.data import listed_images, warn_of_overlap

    if val_split is None:
        return
    try:
        evaluation = listed_images(data, val_split)
    except DataError:  # there is none, which is no harm here
        return
    warn_of_overlap(deciding, evaluation, log)
