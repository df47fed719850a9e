"""YOLO label files: one object a line, ``class cx cy w h`` or ``class x1 y1 x2 y2 x3 y3 …`` (a polygon), in 0..1."""

from __future__ import annotations

import math
import os
from collections import Counter
from pathlib import Path

from repq.data.dataset import LEAST, Annotation, as_boxes
from repq.errors import DataError
from repq.printable import printable
from repq.reading import MIB, decode, lines, number, read_bytes, whole

_ROUNDING = 1e-4  # label files are printed with few digits, so a 1 may read 1.00001
_REACH = 0.51  # from the image's middle, as its fraction: so far a box reaches by rounding and careless drawing
_LIMIT = 64 * MIB


def read_labels(path: Path | str, num_classes: int, width: int, height: int, keypoints: int = 0) -> Annotation | str:
    """Read a label file; a missing or empty one means an image without objects. Broken lines are left out.

    Args:
        keypoints: values behind each box, as ``kpt_shape`` says; they are not used.

    Returns:
        A text, if there is something in the file's place that cannot be read: then the image's objects are unknown.
    """
    counts: Counter[str] = Counter()
    text = ""
    try:
        text = decode(read_bytes(path, _LIMIT, error=DataError), errors="replace")
    except DataError as error:
        if os.path.lexists(path):
            return f"its label file cannot be read: {error.found}"
        counts["unlabelled"] = 1
    rows: dict[tuple[float, ...], None] = {}
    problems: list[str] = []
    usual = text.isascii() and "_" not in text  # else ``float`` may take what is no number
    for place, line in enumerate(lines(text), start=1):
        fields = line.split()
        if not fields:
            continue
        row, form = (usual and _usual_row(fields, num_classes)) or parse_line(fields, num_classes, keypoints)
        if isinstance(row, str):
            problems.append(f"line {place}: {row}")
        elif row in rows:
            problems.append(f"line {place}: the same as an earlier line")
        else:
            rows[row] = None
            counts.update(form)
    labels = as_boxes(list(rows))
    counts["outside"] = sum(abs(x - 0.5) + w / 2 > _REACH or abs(y - 0.5) + h / 2 > _REACH for _, x, y, w, h in rows)
    areas = labels[:, 3] * labels[:, 4] * width * height
    return Annotation(labels, areas, problems=tuple(problems), counts=+counts)


def _usual_row(fields: list[str], num_classes: int) -> tuple[tuple[float, ...], tuple[str, ...]] | None:
    """What `parse_line` says of five numbers that need no correction; None for others. Most lines are such."""
    try:
        class_id, x, y, width, height = row = tuple(map(float, fields))
    except ValueError:  # no number, or not five
        return None
    # What is not finite is none of these.
    plain = 0 <= x <= 1 and 0 <= y <= 1 and LEAST < width <= 1 and LEAST < height <= 1
    return (row, ()) if plain and 0 <= class_id < num_classes and class_id.is_integer() else None


def parse_line(
    fields: list[str], num_classes: int, keypoints: int = 0
) -> tuple[tuple[float, ...] | str, tuple[str, ...]]:
    """Return class, centre x, y, width, height, or what is wrong with the line; and what is to be said of its form.

    Where lines hold key points, none is a polygon.
    """
    has_keypoints = keypoints > 0 and len(fields) == 5 + keypoints
    is_polygon = not keypoints and len(fields) >= 7 and len(fields) % 2 == 1
    if len(fields) != 5 and not has_keypoints and not is_polygon:
        return f"{len(fields)} values instead of 5{f' or {5 + keypoints}' if keypoints else ''}", ()
    # Of a triangle, it would be a corner at the very edge.
    if len(fields) == 7 and not keypoints and whole(fields[6], 20) is not None:
        return "7 values of which the last is a whole number: no polygon, but a box with score and track id?", ()
    values = []
    for field in fields[:5] if has_keypoints else fields:
        if (value := number(field)) is None and not _is_not_finite(field):
            return f"{printable(field, 40)!r} is no number", ()
        values.append(math.nan if value is None else value)
    if not all(map(math.isfinite, values)):
        return "a value that is not finite", ()
    class_id, *box = values
    if class_id != int(class_id) or not 0 <= class_id < num_classes:
        return f"class {printable(fields[0], 40)} is none of 0 to {num_classes - 1}", ()
    if min(box) < -_ROUNDING or max(box) > 1 + _ROUNDING:
        return "a coordinate outside 0..1", ()
    forms: tuple[str, ...] = ("keypoints",) if has_keypoints else ()
    if is_polygon:
        forms = ("polygon", "doubtful") if _may_be_keypoints(box) else ("polygon",)
        left, right, top, bottom = min(box[::2]), max(box[::2]), min(box[1::2]), max(box[1::2])
        box = [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]
    if min(box[2:]) <= LEAST:
        return "a box without area", ()
    row = (class_id, *(min(max(value, 0.0), 1.0) for value in box))
    return row, forms


def _is_not_finite(text: str) -> bool:
    return text.lower().lstrip("+-") in ("nan", "inf", "infinity")


def _may_be_keypoints(values: list[float]) -> bool:
    """Whether the numbers of a polygon make as much sense as a box inside the image and points inside the box.

    Points have two values, or a third that is 0, 1 or 2; those that cannot be seen are zero.
    """
    (x, y, width, height), rest = values[:4], values[4:]
    low, high = (x - width / 2 - _ROUNDING, y - height / 2 - _ROUNDING), (x + width / 2, y + height / 2)
    if min(low) < -2 * _ROUNDING or max(high) > 1 + _ROUNDING:
        return False

    def inside(step: int) -> bool:
        points = zip(rest[::step], rest[1::step], strict=True)
        return all(
            point == (0, 0) or all(a <= v <= b + _ROUNDING for a, v, b in zip(low, point, high, strict=True))
            for point in points
        )

    threes = len(rest) % 3 == 0 and all(value in (0, 1, 2) for value in rest[2::3])
    return inside(2) or (threes and inside(3))
