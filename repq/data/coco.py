"""COCO form: one json with images, categories and annotations (bbox = x, y, width, height in pixels)."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from repq.data.annotation import Annotation, as_boxes
from repq.errors import DataError


@dataclass(frozen=True, eq=False)
class CocoFile:
    """What a COCO json says.

    Attributes:
        names: class names; the class ids of repq count through them from 0.
        images: the json's entry per ``file_name``.
        annotations: the json's annotations per ``file_name``.
        classes: category id of the json to class id.
        problems: annotations that belong to no image.
    """

    names: tuple[str, ...]
    images: Mapping[str, Mapping[str, Any]]
    annotations: Mapping[str, Sequence[Mapping[str, Any]]]
    classes: Mapping[Any, int]
    problems: tuple[str, ...]


def read_coco(path: Path, names: tuple[str, ...] | None = None) -> CocoFile:
    """Read a COCO json.

    Args:
        names: class names that fix the class ids, joined with the json's by name; default: the json's, by category id.

    Raises:
        DataError: the file cannot be read, is no COCO json, or holds a class that ``names`` does not.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {path}", found=error.strerror or str(error), fix="check the path") from None
    except ValueError as error:  # also what is no UTF-8
        raise DataError(f"{path} is no valid JSON", found=str(error)) from None
    try:
        categories = {category["id"]: str(category["name"]) for category in content["categories"]}
        files = {image["id"]: str(image["file_name"]) for image in content["images"]}
        images = {str(image["file_name"]): image for image in content["images"]}
        annotations: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        problems = []
        for annotation in content["annotations"]:
            file_name = files.get(annotation["image_id"])
            if file_name is None:
                problems.append(f"annotation {annotation.get('id')}: no image {annotation['image_id']!r}")
            else:
                annotations[file_name].append(annotation)
        ordered = tuple(categories[key] for key in sorted(categories))
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is no COCO annotation file",
            found=f"{type(error).__name__}: {error}",
            fix="it needs the lists 'images' (id, file_name), 'categories' (id, name) and 'annotations' (image_id …)",
        ) from None
    names = names or ordered
    unknown = sorted(set(ordered) - set(names))
    if unknown or not names:
        raise DataError(
            f"the classes of {path} do not fit",
            found=f"not among the names of the data.yaml: {', '.join(unknown[:5])}" if unknown else "no categories",
            fix="give the same class names in both, or leave out 'names' and 'nc' in the data.yaml",
        )
    classes = {key: names.index(name) for key, name in categories.items()}
    return CocoFile(names, images, annotations, classes, tuple(problems))


def find_image(file_name: str, folders: Sequence[Path]) -> Path:
    """Return the first existing file of that name in the folders; if there is none, where it should be."""
    places = [folder / file_name for folder in folders] or [Path(file_name)]
    return next((place for place in places if place.is_file()), places[0])


def size_problem(image: Mapping[str, Any], width: int, height: int) -> str | None:
    """Say that the json was written for other pixels (resized, or not turned as EXIF says), if it was."""
    stated = image.get("width", width), image.get("height", height)
    if stated == (width, height):
        return None
    return f"the image has {width}x{height} pixels, the annotation file says {stated[0]}x{stated[1]}"


def read_annotations(
    annotations: Sequence[Mapping[str, Any]], classes: Mapping[Any, int], width: int, height: int
) -> Annotation:
    """Turn one image's annotations into labels, cut at the image's edges; what is broken is left out."""
    objects: list[tuple[float, ...]] = []
    areas: list[float] = []
    crowds: list[tuple[float, ...]] = []
    problems: list[str] = []
    for annotation in annotations:
        row = _row(annotation, classes, width, height)
        if isinstance(row, str):
            problems.append(f"annotation {annotation.get('id')}: {row}")
        elif annotation.get("iscrowd"):
            crowds.append(row)
        else:
            objects.append(row)
            area = annotation.get("area")
            if not isinstance(area, (int, float)) or not 0 < area < math.inf:
                area = row[3] * row[4] * width * height
            areas.append(area)
    return Annotation(as_boxes(objects), np.array(areas, np.float32), as_boxes(crowds), tuple(problems))


def _row(annotation: Mapping[str, Any], classes: Mapping[Any, int], width: int, height: int) -> tuple[float, ...] | str:
    category = annotation.get("category_id")
    class_id = classes.get(category) if isinstance(category, (int, str)) else None
    if class_id is None:
        return f"unknown category {category!r}"
    try:
        x, y, w, h = (float(value) for value in annotation["bbox"])
    except (KeyError, TypeError, ValueError):
        return "no bbox of four numbers"
    if not all(map(math.isfinite, (x, y, w, h))):
        return "a bbox that is not finite"
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    if right <= left or bottom <= top:
        return "a box without area inside the image"
    return (
        float(class_id),
        (left + right) / 2 / width,
        (top + bottom) / 2 / height,
        (right - left) / width,
        (bottom - top) / height,
    )
