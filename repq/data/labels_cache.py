"""The result of checking a split, kept between runs: it holds as long as no file of the split changes.

A cache is one ``.npz`` file without pickled objects, in ``$REPQ_CACHE`` or the user's cache folder, since data sets are
often read-only. It is written beside its place and renamed, so readers see the old or the new one whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from repq.data.dataset import ImageRecord, Problems
from repq.files import cache_folder, replacing

_VERSION = "1"  # part of every key; raise it when the checks or the file change


def cache_path(source: Path, split: str) -> Path:
    """Return where the cache of a split lies."""
    key = hashlib.sha256(f"{source.resolve()}\n{split}".encode()).hexdigest()[:24]
    return cache_folder() / "labels" / f"{key}.npz"


def files_key(files: Iterable[Path], settings: Sequence[str]) -> str:
    """Hash the paths, sizes and modification times of files (a missing file counts too) and the settings."""
    digest = hashlib.sha256(json.dumps([_VERSION, *settings]).encode())
    for path in files:
        try:
            status = path.stat()
            digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        except OSError:
            digest.update(f"{path}\0missing\n".encode())
    return digest.hexdigest()


def load(path: Path, expected: str, root: Path) -> tuple[tuple[ImageRecord, ...], Problems] | None:
    """Return what a cache holds, or None if it is absent, damaged, or of another key."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            text = json.loads(arrays["text"].tobytes())
            if text["key"] != expected:
                return None
            sizes = arrays["sizes"]
            counts, crowd_counts = sizes[:, 2], sizes[:, 3]
            labels, areas = _split(arrays["labels"], counts), _split(arrays["areas"], counts)
            crowds = _split(arrays["crowds"], crowd_counts)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    records = tuple(
        ImageRecord(name, place(root, name), int(size[0]), int(size[1]), *arrays)
        for name, size, *arrays in zip(text["names"], sizes, labels, areas, crowds, strict=True)
    )
    return records, Problems(tuple(text["image_problems"]), tuple(text["label_problems"]))


def save(path: Path, key: str, records: Sequence[ImageRecord], problems: Problems) -> None:
    """Write a cache atomically. A folder that cannot be written only means that the next run checks again."""
    text = {
        "key": key,
        "names": [record.name for record in records],
        "image_problems": problems.images,
        "label_problems": problems.labels,
    }
    sizes = [(record.width, record.height, len(record.labels), len(record.crowds)) for record in records]
    # A cache that cannot be written is no failure.
    with suppress(OSError), replacing(path) as beside, beside.open("wb") as file:
        np.savez_compressed(
            file,
            text=np.frombuffer(json.dumps(text).encode(), np.uint8),
            sizes=np.array(sizes, np.int64).reshape(-1, 4),
            labels=np.concatenate([record.labels for record in records]),
            areas=np.concatenate([record.areas for record in records]),
            crowds=np.concatenate([record.crowds for record in records]),
        )


def place(root: Path, name: str) -> Path:
    """Return the path of an image from its name, which may lead out of the root (``../other/a.jpg``)."""
    return Path(os.path.normpath(root / name))


def _split(rows: NDArray[np.float32], counts: NDArray[np.int64]) -> list[NDArray[np.float32]]:
    if len(rows) != counts.sum():
        raise ValueError("the arrays of the cache do not fit together")
    return np.split(rows, np.cumsum(counts)[:-1]) if len(counts) else []
