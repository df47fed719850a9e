"""COCO form: one json with images, categories and annotations (bbox = x, y, width, height in pixels)."""

from __future__ import annotations

import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from repq.data.classes import MAX_CLASSES, shown_name, unique_names
from repq.data.dataset import LEAST, Annotation, Problems, as_boxes
from repq.data.image_files import below
from repq.errors import DataError
from repq.printable import first_names, printable
from repq.reading import number, read_json, whole

_TRUE = (1, "1")
_LARGEST = 1e30  # square pixels that float32 can hold


@dataclass(frozen=True, eq=False)
class CocoFile:
    """What a COCO json says.

    Attributes:
        names: class names; the class ids of repq count through them from 0.
        images: the json's entry per ``file_name``.
        annotations: the json's annotations per ``file_name``.
        classes: category id of the json to class id.
        problems: annotations that belong to no image, and what was done to the names.
    """

    names: tuple[str, ...]
    images: Mapping[str, Mapping[str, Any]]
    annotations: Mapping[str, Sequence[Mapping[str, Any]]]
    classes: Ids
    problems: Problems


class Ids:
    """What ids of a json stand for. A text or a float that is the same number as one id, and no other, is that id."""

    def __init__(self, what: str, entries: Iterable[tuple[Any, Any]]) -> None:
        """Take pairs of id and what it stands for.

        Raises:
            ValueError: an id is no whole number and no text, or stands for two things.
        """
        self.values: dict[Any, Any] = {}
        self._by_number: dict[int, list[Any]] = {}
        for given, value in entries:
            key = int(given) if isinstance(given, float) and given.is_integer() else given
            if isinstance(key, bool) or not isinstance(key, (int, str)):
                raise ValueError(f"the {what} id {printable(repr(key), 60)} is no whole number and no text")
            if self.values.setdefault(key, value) != value:
                raise ValueError(f"two of the {what} entries have the id {printable(repr(key), 60)}")
            place = _whole(key)
            if place is not None and key not in (known := self._by_number.setdefault(place, [])):
                known.append(key)

    def get(self, key: Any) -> Any:
        """What an id stands for; None if it is not there."""
        if isinstance(key, (int, str)) and not isinstance(key, bool) and key in self.values:
            return self.values[key]
        place = _whole(key)
        candidates = self._by_number.get(place, []) if place is not None else []
        return self.values[candidates[0]] if len(candidates) == 1 else None


def _whole(key: Any) -> int | None:
    if isinstance(key, float) and key.is_integer():
        return int(key)
    if isinstance(key, int) and not isinstance(key, bool):
        return key
    return whole(key, digits=39) if isinstance(key, str) else None


def read_coco(path: Path, names: tuple[str, ...] | None = None) -> CocoFile:
    """Read a COCO json.

    Args:
        names: class names that fix the class ids, joined with the json's by name; default: the json's, by category id.

    Raises:
        DataError: the file cannot be read, is no COCO json, holds objects of a class that ``names`` does not, or no
            annotation belongs to an image.
    """
    content = read_json(path, error=DataError)
    try:
        lists = [_entries(content, key) for key in ("categories", "images", "annotations")]
        categories, images, annotations = lists
        files = Ids("image", ((image["id"], _file_name(image)) for image in images))
        called = Ids("category", ((category["id"], _name(category)) for category in categories)).values
    except (KeyError, ValueError) as error:
        found = f"an entry without {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(
            f"{printable(path)} is no COCO annotation file",
            found=found,
            fix="it needs the lists 'images' (id, file_name), 'categories' (id, name) and 'annotations' (image_id …)",
        ) from None
    joined: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    lost: list[str] = []
    for annotation in annotations:
        file_name = files.get(annotation.get("image_id"))
        if file_name is None:
            lost.append(f"annotation {_id(annotation)}: no image {_shown(annotation.get('image_id'))}")
        else:
            joined[file_name].append(annotation)
    if lost and not joined:
        ids = ", ".join(_shown(image["id"]) for image in images[:3])
        raise DataError(
            f"no annotation of {printable(path)} belongs to one of its images",
            found=f"{len(lost)} annotations: {'; '.join(lost[:3])}; the images have ids such as {ids or '(none)'}",
            fix="give each annotation the 'id' of its image as 'image_id'",
        )
    if _are_fractions(annotations):
        raise DataError(
            f"the boxes of {printable(path)} cannot be in pixels",
            found=f"no number above 1 in the bbox of {len(annotations)} annotations",
            fix="write x, y, width and height of a bbox in pixels of the image",
        )
    twice = Counter(str(image["file_name"]) for image in images)
    repeated = tuple(f"{printable(name)}: listed more than once" for name, count in twice.items() if count > 1)
    names, classes, notes = _classes(path, called, names, (annotation.get("category_id") for annotation in annotations))
    by_file = {str(image["file_name"]): image for image in images}
    return CocoFile(names, by_file, joined, classes, Problems(repeated, tuple(lost), notes))


def _entries(content: Any, key: str) -> list[dict[str, Any]]:
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        raise ValueError(f"no list {key!r}")
    for place, entry in enumerate(content[key]):
        if not isinstance(entry, dict):
            raise ValueError(f"entry {place} of {key!r} is {_shown(entry)}")
    entries: list[dict[str, Any]] = content[key]
    return entries


def _are_fractions(annotations: Iterable[Mapping[str, Any]]) -> bool:
    """Whether there are boxes, and no number in them is above 1. Mostly the first box tells that they are not."""
    some = False
    for annotation in annotations:
        bbox = annotation.get("bbox")
        for value in bbox if isinstance(bbox, list) else ():
            found = _number(value, texts=True)
            if found is None or not found <= 1:
                return False
            some = True
    return some


def _file_name(image: Mapping[str, Any]) -> str:
    name = image["file_name"]
    if not isinstance(name, str) or not name:
        raise ValueError(f"the file_name {_shown(name)} is no text")
    return name


def _name(category: Mapping[str, Any]) -> str:
    name = category["name"]
    if not isinstance(name, (str, int, float)):
        raise ValueError(f"the category name {_shown(name)} is no text")
    return str(name)


def _classes(
    path: Path, called: Mapping[Any, str], names: tuple[str, ...] | None, used: Iterable[Any]
) -> tuple[tuple[str, ...], Ids, tuple[str, ...]]:
    """The class names, category id to class id, and what a user should know of them."""
    try:
        ordered = sorted(called)
    except TypeError:  # numbers and texts
        ordered = sorted(called, key=lambda key: (isinstance(key, str), str(key)))
    own = unique_names([called[key] for key in ordered])
    known = names or own
    lookup = Ids("category", zip(ordered, own, strict=True))
    unknown = set(own) - set(known)
    needed = sorted(unknown & {lookup.get(key) for key in used}, key=str) if unknown else []
    if needed or not known or len(known) > MAX_CLASSES:
        raise DataError(
            f"the classes of {printable(path)} do not fit",
            found=f"not among the names of the data.yaml: {first_names(needed, 5)}"
            if needed
            else f"{len(known)} categories",
            fix="give the same class names in both, or leave out 'names' and 'nc' in the data.yaml",
        )
    notes = []
    renamed = [name for key, name in zip(ordered, own, strict=True) if name != shown_name(called[key])]
    if renamed:
        notes.append(f"categories of one name are kept apart, as {first_names(renamed, 5)}")
    if unknown:
        notes.append(
            f"{len(unknown)} categories without annotations are left out, as the data.yaml does not name them: "
            f"{first_names(sorted(unknown), 5)}"
        )
    kept = ((key, known.index(name)) for key, name in zip(ordered, own, strict=True) if name not in unknown)
    return known, Ids("category", kept), tuple(notes)


def find_image(file_name: str, folders: Sequence[Path]) -> Path:
    """Return the first existing file of that name in the folders; if there is none, where it should be."""
    places = [below(folder, file_name) for folder in folders] or [Path(file_name)]
    return next((place for place in places if os.path.isfile(place)), places[0])  # noqa: PTH113


def size_problem(image: Mapping[str, Any], width: int, height: int) -> str | None:
    """Say that the json was written for other pixels (resized, or not turned as EXIF says), if it was."""
    stated = [image.get(key) for key in ("width", "height")]
    numbers = [_number(value, texts=True) for value in stated]
    if all(
        None in (value, true) or said == true
        for value, said, true in zip(stated, numbers, (width, height), strict=True)
    ):
        return None
    says = "x".join("?" if value is None else _shown(value) for value in stated)
    return f"the image has {width}x{height} pixels, the annotation file says {says}"


def read_annotations(annotations: Sequence[Mapping[str, Any]], classes: Ids, width: int, height: int) -> Annotation:
    """Turn one image's annotations into labels, cut at the image's edges; what is broken is left out."""
    objects: list[tuple[float, ...]] = []
    areas: list[float] = []
    crowds: list[tuple[float, ...]] = []
    problems: list[str] = []
    counts: Counter[str] = Counter()
    seen: set[tuple[float, ...]] = set()
    for annotation in annotations:
        row, forms = _row(annotation, classes, width, height)
        crowd = annotation.get("iscrowd")
        if isinstance(row, str):
            problems.append(f"annotation {_id(annotation)}: {row}")
        elif crowd in _TRUE:
            crowds.append(row)
        elif crowd not in (None, 0, "0", ""):
            problems.append(f"annotation {_id(annotation)}: iscrowd {_shown(crowd)} is neither 0 nor 1")
        else:
            counts.update(forms)
            counts["marked"] += any(annotation.get(flag) in _TRUE for flag in ("ignore", "difficult"))
            counts["repeated"] += row in seen
            seen.add(row)
            objects.append(row)
            area = _number(annotation.get("area"), texts=True)
            if area is None or not 0 < area < _LARGEST:
                area = row[3] * row[4] * width * height
            areas.append(area)
    return Annotation(as_boxes(objects), np.array(areas, np.float32), as_boxes(crowds), tuple(problems), +counts)


def _row(
    annotation: Mapping[str, Any], classes: Ids, width: int, height: int
) -> tuple[tuple[float, ...] | str, tuple[str, ...]]:
    """Class, centre x, y, width, height, or what is wrong; and what is to be said of the form (`load.FORMS`)."""
    class_id = classes.get(annotation.get("category_id"))
    if class_id is None:
        return f"unknown category {_shown(annotation.get('category_id'))}", ()
    bbox = annotation.get("bbox")
    outline = [] if bbox else _outline(annotation.get("segmentation"))
    if outline:
        low, high = [min(outline[axis::2]) for axis in (0, 1)], [max(outline[axis::2]) for axis in (0, 1)]
        numbers: list[float | None] = [*low, high[0] - low[0], high[1] - low[1]]
    else:
        numbers = [_number(value, texts=True) for value in bbox] if isinstance(bbox, list) else []
    if len(numbers) != 4 or None in numbers:
        mask = ", only a mask" if not bbox and isinstance(annotation.get("segmentation"), dict) else ""
        return f"no bbox of four numbers{mask}", ()
    x, y, w, h = (value for value in numbers if value is not None)
    if not all(map(math.isfinite, (x, y, w, h))):
        return "a bbox that is not finite", ()
    forms = (("polygon",) if outline else ()) + (
        ("cut",) if min(x, y) < -1 or x + w > width + 1 or y + h > height + 1 else ()
    )
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    if right - left <= LEAST * width or bottom - top <= LEAST * height:
        return "a box without area inside the image", ()
    centre = (left + right) / 2 / width, (top + bottom) / 2 / height
    return (float(class_id), *centre, (right - left) / width, (bottom - top) / height), forms


def _outline(segmentation: Any) -> list[float]:
    """The coordinates of all polygons, x and y in turn; none if it is no list of polygons."""
    if not isinstance(segmentation, list) or not all(isinstance(part, list) for part in segmentation):
        return []
    if any(len(part) < 6 or len(part) % 2 for part in segmentation):
        return []
    values = [_number(value) for part in segmentation for value in part]
    return [value for value in values if value is not None] if None not in values else []


def _number(value: Any, *, texts: bool = False) -> float | None:
    """A number of a json; None for what is none, infinity for one that is too large."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str) if texts else (int, float)):
        return None
    try:
        return number(value) if isinstance(value, str) else float(value)
    except OverflowError:
        return math.inf


def _id(annotation: Mapping[str, Any]) -> str:
    return _shown(annotation.get("id"))


def _shown(value: Any) -> str:
    """A value of a json, short. A container is only named: it can be nested to any depth."""
    if isinstance(value, (list, dict)):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 200:
        return "a number of many digits"
    return printable(repr(value), 60)
