"""``data.yaml``: where the images and annotations of a split lie, and what the classes are called.

```yaml
path: ../bccd                    # the root; relative to this file; default: this file's folder
train: images/train              # a folder, a list file (.txt, one image a line), or a list of these
val: images/val
val_annotations: annotations/instances_val.json   # optional: COCO json instead of YOLO labels
nc: 3                            # optional if names are given
names: [RBC, WBC, Platelets]     # or {0: RBC, 1: WBC, 2: Platelets}; with COCO json optional
```

A split may also be the COCO json itself (``val: annotations/instances_val.json``), and the json may take the place of
the whole data.yaml. Then its ``file_name`` entries are looked for in ``<split>_images`` if that is given, else in the
root, ``images/``, ``NAME/`` and ``images/NAME/`` below the root, where the json is called ``instances_NAME.json``.
Other keys are ignored; nothing is downloaded or run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repq.errors import DataError, RecipeError
from repq.recipe import read_yaml


@dataclass(frozen=True)
class SplitSource:
    """What is known of one split before anything of it is read.

    Attributes:
        root: the folder that image names are relative to.
        images: folders and list files; for a COCO json the folders that may hold its images.
        annotations: a COCO json, or None for YOLO label files.
        names: the class names, if they are given here.
    """

    root: Path
    split: str
    images: tuple[Path, ...]
    annotations: Path | None
    names: tuple[str, ...] | None


def read_source(path: Path, split: str) -> SplitSource:
    """Read a ``data.yaml``, or take a COCO ``.json`` as the whole data set.

    Raises:
        DataError: the file cannot be read, has no such split, or its class names make no sense.
    """
    if path.suffix == ".json":
        folder = path.resolve().parent
        root = folder.parent if folder.name == "annotations" else folder
        return SplitSource(root, split, _image_folders(root, path), path.resolve(), None)
    try:
        values = read_yaml(path)
    except RecipeError as error:
        raise DataError(error.what, found=error.found, fix=error.fix) from None
    root = _root(path, values)
    images = _paths(path, root, values, split)
    if f"{split}_annotations" in values:
        annotations = _paths(path, root, values, f"{split}_annotations")
        if len(annotations) > 1:
            raise DataError(f"{path} names several annotation files for one split", fix="join them into one json")
        return SplitSource(root, split, images, annotations[0], _names(path, values))
    if len(images) == 1 and images[0].suffix == ".json":
        key = f"{split}_images"
        folders = _paths(path, root, values, key) if key in values else _image_folders(root, images[0])
        return SplitSource(root, split, folders, images[0], _names(path, values))
    return SplitSource(root, split, images, None, _names(path, values))


def _root(path: Path, values: Mapping[str, Any]) -> Path:
    root = _below(path.resolve().parent, str(values.get("path") or "."))
    if not root.is_dir():
        raise DataError(
            f"the root folder that {path} names does not exist",
            found=f"path: {values.get('path')}, which is {root}",
            fix="give 'path' relative to the data.yaml, or leave it out if the data lie beside the data.yaml",
        )
    return root


def _below(root: Path, text: str) -> Path:
    return (root / Path(os.path.expandvars(text)).expanduser()).resolve()


def _paths(path: Path, root: Path, values: Mapping[str, Any], key: str) -> tuple[Path, ...]:
    value = values.get(key)
    entries: list[Any] = value if isinstance(value, list) else [value]
    if not entries or not all(isinstance(entry, str) and entry for entry in entries):
        splits = [name for name in values if name not in ("path", "nc", "names")]
        raise DataError(
            f"{path} has no usable {key!r}",
            found=f"{key}: {value!r}" if key in values else f"the keys {', '.join(map(str, splits)) or 'none'}",
            fix=f"write '{key}: FOLDER', a list file, or a list of these; or choose another split",
        )
    return tuple(_below(root, entry) for entry in entries)


def _image_folders(root: Path, annotations: Path) -> tuple[Path, ...]:
    name = annotations.stem.removeprefix("instances_")
    return tuple(folder for folder in (root, root / "images", root / name, root / "images" / name) if folder.is_dir())


def _names(path: Path, values: Mapping[str, Any]) -> tuple[str, ...] | None:
    names, count = values.get("names"), values.get("nc")
    if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
        raise DataError(f"'nc' in {path} is no class count", found=repr(count), fix="write a whole number above 0")
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            raise DataError(
                f"the class ids under 'names' in {path} have gaps", found=str(list(names)[:20]), fix="count from 0 up"
            )
        names = [names[index] for index in range(len(names))]
    if not names:
        return None if count is None else tuple(f"class{index}" for index in range(count))
    if not isinstance(names, list):
        raise DataError(f"'names' in {path} is no list or mapping", found=repr(names))
    if count is not None and count != len(names):
        raise DataError(
            f"'nc' and 'names' in {path} disagree", found=f"nc {count}, {len(names)} names", fix="leave out 'nc'"
        )
    return tuple(str(name) for name in names)
