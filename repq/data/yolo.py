"""YOLO form: images in folders or list files, beside each a text file with ``class cx cy w h`` a line, in 0..1."""

from __future__ import annotations

import math
from pathlib import Path

from repq.data.annotation import Annotation, as_boxes
from repq.data.images import IMAGE_SUFFIXES
from repq.errors import DataError

_ROUNDING = 1e-4  # label files are printed with few digits, so a 1 may read 1.00001


def list_images(sources: tuple[Path, ...], root: Path) -> list[Path]:
    """Return the image files in folders (searched to the bottom) and list files, in no particular order.

    A line of a list file is relative to the list file's folder, or to ``root`` if it is not found there.

    Raises:
        DataError: a folder or list file does not exist or is neither of the two.
    """
    images: list[Path] = []
    for source in sources:
        if source.is_dir():
            images += [path for path in source.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES]
        elif source.is_file() and source.suffix == ".txt":
            images += _read_list(source, root)
        else:
            raise DataError(
                f"{source} is no image folder and no list file",
                found="another kind of file" if source.exists() else "nothing there",
                fix="name a folder, or a .txt file with one image path a line",
            )
    return images


def _read_list(path: Path, root: Path) -> list[Path]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the list file {path}", found=str(error)) from None
    entries = [Path(line.strip()) for line in lines if line.strip()]
    beside = [path.parent / entry for entry in entries]
    return [near if near.exists() else root / entry for near, entry in zip(beside, entries, strict=True)]


def label_path(image: Path) -> Path:
    """Return where an image's labels lie: the last folder ``images`` becomes ``labels``, the suffix ``.txt``.

    Without such a folder the label file lies beside the image.
    """
    parts = list(image.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def read_labels(path: Path, num_classes: int, width: int, height: int) -> Annotation:
    """Read a label file; a missing or empty one means an image without objects. Broken lines are left out."""
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")
    except FileNotFoundError:
        text = ""
    rows: list[tuple[float, ...]] = []
    problems: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        row = parse_line(line, num_classes)
        if isinstance(row, str):
            problems.append(f"line {number}: {row}")
        elif row in rows:
            problems.append(f"line {number}: the same as an earlier line")
        else:
            rows.append(row)
    labels = as_boxes(rows)
    return Annotation(labels, labels[:, 3] * labels[:, 4] * width * height, as_boxes([]), tuple(problems))


def parse_line(line: str, num_classes: int) -> tuple[float, ...] | str:
    """Return class, centre x, y, width, height, or what is wrong with the line."""
    fields = line.split()
    if len(fields) != 5:
        return f"{len(fields)} values instead of 5"
    try:
        values = [float(field) for field in fields]
    except ValueError:
        return f"no number in {line.strip()[:40]!r}"
    if not all(map(math.isfinite, values)):
        return "a value that is not finite"
    class_id, *box = values
    if class_id != int(class_id) or not 0 <= class_id < num_classes:
        return f"class {fields[0]} is none of 0 to {num_classes - 1}"
    if min(box) < -_ROUNDING or max(box) > 1 + _ROUNDING:
        return "a coordinate outside 0..1"
    if min(box[2:]) <= 0:
        return "a box without area"
    return (class_id, *(min(max(value, 0.0), 1.0) for value in box))
