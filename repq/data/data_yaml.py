"""``data.yaml``: where the images and annotations of a split lie, and what the classes are called.

```yaml
path: ../bccd                    # the root; relative to this file; default: this file's folder
train: images/train              # a folder, a list file (.txt, one image a line), or a list of these
val: images/val
val_annotations: annotations/instances_val.json   # optional: COCO json instead of YOLO labels
nc: 3                            # optional if names are given
names: [RBC, WBC, Platelets]     # or {0: RBC, 1: WBC, 2: Platelets}; with COCO json optional
kpt_shape: [17, 3]               # optional: label lines hold so many key points behind the box
```

A split may also be the COCO json itself (``val: annotations/instances_val.json``), and the json may take the place of
the whole data.yaml. Then its ``file_name`` entries are looked for in ``<split>_images`` if that is given, else in the
root, ``images/``, ``NAME/`` and ``images/NAME/`` below the root, where the json is called ``instances_NAME.json``.
Names are taken as they are written: ``no`` is a name and no truth value. Other keys are ignored; nothing is downloaded
or run. ``docs/data.md`` has all of it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repq.data.classes import MAX_CLASSES, made_up_names, shown_name, unique_names
from repq.data.image_files import below, folder_of
from repq.errors import DataError
from repq.printable import printable
from repq.reading import read_yaml, whole

_ARCHIVES = frozenset({".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip", ".zst"})


@dataclass(frozen=True)
class SplitSource:
    """What is known of one split before anything of it is read.

    Attributes:
        root: the folder that image names are relative to.
        images: folders and list files; for a COCO json the folders that may hold its images.
        annotations: a COCO json, or None for YOLO label files.
        names: the class names, if they are given here.
        keypoints: values behind the box in each line of a label file.
        notes: what a user should know of the names.
    """

    root: Path
    split: str
    images: tuple[Path, ...]
    annotations: Path | None
    names: tuple[str, ...] | None = None
    keypoints: int = 0
    notes: tuple[str, ...] = ()


def read_source(path: Path, split: str) -> SplitSource:
    """Read a ``data.yaml``, or take a COCO ``.json`` as the whole data set.

    Raises:
        DataError: the file cannot be read, has no such split, or its class names make no sense.
    """
    if path.suffix.lower() == ".json":
        folder = folder_of(path)
        root = folder.parent if folder.name == "annotations" else folder
        return SplitSource(root, split, _image_folders(root, path), root / os.path.relpath(path, root))
    if path.suffix.lower() in _ARCHIVES:
        raise DataError(
            f"{printable(path)} is an archive", fix="unpack it, and give its data.yaml, or a folder of its images"
        )
    values = read_yaml(path, as_written=("names",), error=DataError)
    root = _root(path, values)
    images = _paths(path, root, values, split)
    names, notes = _names(path, values)
    keypoints = _keypoints(path, values)
    if f"{split}_annotations" in values:
        annotations = _paths(path, root, values, f"{split}_annotations")
        if len(annotations) > 1:
            raise DataError(
                f"{printable(path)} names several annotation files for one split", fix="join them into one json"
            )
        return SplitSource(root, split, images, annotations[0], names, keypoints, notes)
    if len(images) == 1 and images[0].suffix.lower() == ".json":
        key = f"{split}_images"
        folders = _paths(path, root, values, key) if key in values else _image_folders(root, images[0])
        return SplitSource(root, split, folders, images[0], names, keypoints, notes)
    return SplitSource(root, split, images, None, names, keypoints, notes)


def _root(path: Path, values: Mapping[str, Any]) -> Path:
    root = below(folder_of(path), str(values.get("path") or "."))
    if not os.path.isdir(root):  # noqa: PTH112 (Path's raises on names that are too long)
        raise DataError(
            f"the root folder that {printable(path)} names does not exist",
            found=f"path: {printable(values.get('path'))}, which is {printable(root)}",
            fix="give 'path' relative to the data.yaml, or leave it out if the data lie beside the data.yaml",
        )
    return root


def _paths(path: Path, root: Path, values: Mapping[str, Any], key: str) -> tuple[Path, ...]:
    value = values.get(key)
    entries: list[Any] = value if isinstance(value, list) else [value]
    if not entries or not all(isinstance(entry, str) and entry for entry in entries):
        splits = [printable(name, 40) for name in values if name not in ("path", "nc", "names")]
        raise DataError(
            f"{printable(path)} has no usable {key!r}",
            found=f"{key}: {_short(value)}" if key in values else f"the keys {', '.join(splits[:20]) or 'none'}",
            fix=f"write '{key}: FOLDER', a list file, or a list of these; or choose another split",
        )
    return tuple(_place(root, entry) for entry in entries)


def _place(root: Path, entry: str) -> Path:
    """Where an entry leads to; ``../train/images`` may be meant from the root on, as Roboflow writes it."""
    path = below(root, entry)
    inside = below(root, entry[3:]) if entry.startswith("../") else path
    return inside if not os.path.lexists(path) and os.path.lexists(inside) else path


def _image_folders(root: Path, annotations: Path) -> tuple[Path, ...]:
    name = annotations.stem.removeprefix("instances_")
    return tuple(folder for folder in (root, root / "images", root / name, root / "images" / name) if folder.is_dir())


def _names(path: Path, values: Mapping[str, Any]) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """The class names, if there are any, and what a user should know of them."""
    names, count = values.get("names"), _count(path, values.get("nc"))
    if isinstance(names, dict):
        names = _in_order(path, names)
    if not names:
        return (None if count is None else made_up_names(count)), ()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"'names' in {printable(path)} is no list or mapping of names", found=_short(names))
    if len(names) > MAX_CLASSES:
        raise DataError(f"'names' in {printable(path)} is too long", found=f"{len(names)} names")
    if count is not None and count != len(names):
        raise DataError(
            f"'nc' and 'names' in {printable(path)} disagree",
            found=f"nc {count}, {len(names)} names",
            fix="leave out 'nc'",
        )
    unique = unique_names(names)
    again = [name for name, given in zip(unique, names, strict=True) if name != shown_name(given)]
    return unique, (f"classes of one name are kept apart, as {', '.join(again[:5])}",) if again else ()


def _count(path: Path, count: Any) -> int | None:
    if isinstance(count, str):
        count = count if (given := whole(count, digits=9)) is None else given
    if count is not None and (not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MAX_CLASSES):
        raise DataError(
            f"'nc' in {printable(path)} is no class count",
            found=_short(count),
            fix=f"write a whole number from 1 to {MAX_CLASSES}",
        )
    return count


def _in_order(path: Path, names: Mapping[str, Any]) -> list[Any]:
    """The names of a mapping from class id, which may be quoted, to name."""
    ids = {whole(key, digits=9): name for key, name in names.items()}
    if len(ids) != len(names) or set(ids) != set(range(len(ids))):
        raise DataError(
            f"the class ids under 'names' in {printable(path)} have gaps",
            found=printable(list(names)[:20]),
            fix="count from 0 up",
        )
    return [ids[index] for index in range(len(ids))]


def _keypoints(path: Path, values: Mapping[str, Any]) -> int:
    shape = values.get("kpt_shape")
    if shape is None:
        return 0
    if isinstance(shape, list) and len(shape) == 2 and all(type(size) is int and 0 < size < 1000 for size in shape):
        return math.prod(shape)
    raise DataError(
        f"'kpt_shape' in {printable(path)} is no number of points and of values for each",
        found=_short(shape),
        fix="write it as 'kpt_shape: [17, 3]', or leave it out if the label files hold no key points",
    )


def _short(value: Any) -> str:
    """A value of the file; a container is only named, as it can be large."""
    return (
        f"a {type(value).__name__} of {len(value)}" if isinstance(value, (list, dict)) else printable(repr(value), 80)
    )
