"""Class names: kept apart, and compared where a model meets a data set or one split another."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from repq.data.dataset import DetectionDataset, ImageRecord
from repq.errors import DataError
from repq.printable import first_names, printable

MAX_CLASSES = 100_000  # the largest public data sets have some ten thousand


def made_up_names(count: int) -> tuple[str, ...]:
    """Names for classes of which only the number is known."""
    return tuple(f"class{index}" for index in range(count))


def shown_name(name: str) -> str:
    """A name fit to be shown and compared: printable, and in one of the forms that Unicode has for it (NFC)."""
    return unicodedata.normalize("NFC", printable(name))


def unique_names(names: Sequence[str]) -> tuple[str, ...]:
    """Every name as `shown_name` gives it; the second of two equal ones gets `` (2)`` behind it, and so on."""
    taken: dict[str, int] = {}
    unique = []
    for shown in map(shown_name, names):
        name = shown
        while name in taken:
            taken[shown] += 1
            name = f"{shown} ({taken[shown]})"
        taken[name] = 1
        unique.append(name)
    return tuple(unique)


def fit_classes(
    dataset: DetectionDataset, names: Sequence[str] | None, owner: str
) -> tuple[DetectionDataset, tuple[str, ...]]:
    """Give a data set the classes of a model, or of another split, and notes of what was changed.

    Equal names in another order: the labels get the owner's class ids. Classes that the owner lacks and of which the
    data set holds no object are left out. Where one side has no names but made-up ones, only their number counts.

    Args:
        names: the owner's; None if it has none, which fits everything.
        owner: what an error and a note call it.

    Raises:
        DataError: other classes; the message has both lists.
    """
    own = dataset.names
    wanted = own if names is None else unique_names(names)
    made_up = wanted == made_up_names(len(wanted)) or own == made_up_names(len(own))
    if wanted == own or (made_up and len(wanted) == len(own)):
        return dataset, ()
    missing = [name for name in wanted if name not in set(own)]
    additional = [name for name in own if name not in set(wanted)]
    used = used_classes(dataset) if additional else frozenset()
    if missing or made_up or used.intersection(additional):
        raise DataError(
            f"{owner} and the data set have different classes",
            found=f"{len(wanted)} in {owner}, {len(own)} in the split {dataset.split!r}; only in {owner}: "
            f"{_listed(missing)}; only in the split: {_listed(additional)}",
            fix="give the data set that the model was trained for; if only the spelling differs, correct 'names' in "
            "the data.yaml; for a COCO json with fewer categories, a data.yaml can list all 'names' of the model",
        )
    places = {name: index for index, name in enumerate(wanted)}
    return relabelled(dataset, wanted, {old: places.get(name, -1) for old, name in enumerate(own)}), _notes(
        own, wanted, additional, owner
    )


def class_places(names: Sequence[str] | None, known: Sequence[str] | None, owner: str) -> tuple[int, ...] | None:
    """Where each class of one model is among those of another, by name; None: they are the same in the same order.

    Where one side has no names, or made-up ones, classes are taken to be the same.

    Args:
        known: the names of the other model, which may know further classes.
        owner: what an error calls that.

    Raises:
        DataError: a class is missing; the message has both lists.
    """
    if not names or not known:
        return None
    wanted, known = unique_names(names), unique_names(known)
    made_up = known == made_up_names(len(known)) or wanted == made_up_names(len(wanted))
    if wanted == known or (made_up and len(wanted) == len(known)):
        return None
    missing = [name for name in wanted if name not in set(known)]
    if missing:
        raise DataError(
            f"{owner} does not know every class",
            found=f"unknown: {_listed(missing)}; {owner} knows {_listed(known)}; wanted are {_listed(wanted)}",
            fix="take one that was trained on these classes; if only the spelling differs, correct 'names' in the "
            "data.yaml",
        )
    return tuple(known.index(name) for name in wanted)


def fit_splits(
    train: DetectionDataset, val: DetectionDataset
) -> tuple[DetectionDataset, DetectionDataset, tuple[str, ...]]:
    """Give two splits the same classes in the order of the first, and notes of what was changed.

    Classes that only one of them names and has no object of are left out.

    Raises:
        DataError: other classes; the message has both lists.
    """
    foreign = set(train.names) - set(val.names)
    dropped = foreign - used_classes(train) if foreign else set()
    kept = tuple(name for name in train.names if name not in dropped)
    train, left_out = fit_classes(train, kept, f"the split {val.split!r}")
    val, changed = fit_classes(val, train.names, f"the split {train.split!r}")
    return train, val, (*left_out, *changed)


def used_classes(dataset: DetectionDataset) -> frozenset[str]:
    """The names of the classes that objects or crowd regions of the data set have."""
    rows = [rows[:, 0] for record in dataset.records for rows in (record.labels, record.crowds)]
    return frozenset(dataset.names[int(index)] for index in np.unique(np.concatenate([np.zeros(0, np.float32), *rows])))


def relabelled(dataset: DetectionDataset, names: tuple[str, ...], ids: Mapping[int, int]) -> DetectionDataset:
    """The data set with other class names, and the class ids that ``ids`` gives for its own."""
    table = np.array([ids[old] for old in range(len(dataset.names))], np.float32)

    def changed(rows: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.concatenate((table[rows[:, 0].astype(int), None], rows[:, 1:]), axis=1)

    def record(old: ImageRecord) -> ImageRecord:
        return replace(old, labels=changed(old.labels), crowds=changed(old.crowds))

    return replace(dataset, names=names, records=tuple(map(record, dataset.records)))


def _notes(own: Sequence[str], wanted: Sequence[str], additional: Sequence[str], owner: str) -> tuple[str, ...]:
    notes = []
    if additional:
        notes.append(f"classes without objects that {owner} does not know are left out: {_listed(additional)}")
    if [name for name in own if name not in set(additional)] != list(wanted):
        notes.append(f"the classes are in another order than those of {owner}; the labels were matched to it by name")
    return tuple(notes)


def _listed(names: Sequence[str]) -> str:
    return first_names([repr(name) for name in names], 20)
