"""The result of checking a split, kept between runs: it holds as long as no file of the split changes.

A cache is one ``.npz`` file without pickled objects, in ``$REPQ_CACHE`` or the user's cache folder, since data sets are
often read-only. It is written beside its place and renamed, so readers see the old or the new one whole.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from repq.data.dataset import NO_AREAS, NO_BOXES, ImageRecord, Problems
from repq.files import cache_folder, replacing
from repq.reading import JSON_LIMIT, read_bytes

_VERSION = "5"  # part of every key; raise it when the checks or the file change


def cache_path(source: Path, split: str) -> Path:
    """Return where the cache of a split lies."""
    key = hashlib.sha256(os.fsencode(f"{os.path.realpath(source)}\n{split}")).hexdigest()[:24]
    return cache_folder() / "labels" / f"{key}.npz"


def files_key(files: Iterable[Path | str], settings: Sequence[str]) -> str:
    """Hash the settings and, of every file, path, size, inode and times of change; a missing file counts too.

    A copy that keeps size and time of modification has another inode or another time of change (ctime), which
    programs cannot set.
    """
    digest = hashlib.sha256(json.dumps([_VERSION, *settings]).encode())
    for path in files:
        try:
            status = os.stat(path)  # noqa: PTH116 (faster, and there are many)
            state = f"{status.st_size} {status.st_ino} {status.st_mtime_ns} {status.st_ctime_ns}"
        except (OSError, ValueError):
            state = "missing"
        digest.update(f"{path}\0{state}\n".encode(errors="surrogatepass"))
    return digest.hexdigest()


def load(path: Path, expected: str, images: Mapping[str, str]) -> tuple[tuple[ImageRecord, ...], Problems] | None:
    """Return what a cache holds, or None if it is absent, damaged, or of another key.

    Args:
        images: name to path, of all images of the split.
    """
    try:
        with np.load(io.BytesIO(read_bytes(path, JSON_LIMIT)), allow_pickle=False) as arrays:
            text = json.loads(arrays["text"].tobytes())
            if text["key"] != expected:
                return None
            sizes = arrays["sizes"].reshape(-1, 4).astype(np.int64)
            labels = _split(arrays["labels"], sizes[:, 2], NO_BOXES)
            areas = _split(arrays["areas"], sizes[:, 2], NO_AREAS)
            crowds = _split(arrays["crowds"], sizes[:, 3], NO_BOXES)
        wide, high = sizes[:, 0].tolist(), sizes[:, 1].tolist()
        paths = map(images.__getitem__, text["names"])
        records = tuple(map(ImageRecord, text["names"], paths, wide, high, labels, areas, crowds))
        if len(records) != len(sizes):
            raise ValueError("the names of the cache do not fit its arrays")
        return records, Problems(*(tuple(map(str, lines)) for lines in text["problems"]))
    except Exception:  # whatever a damaged file may do to the readers of npz and JSON: it is made anew
        return None


def save(path: Path, key: str, records: Sequence[ImageRecord], problems: Problems) -> None:
    """Write a cache atomically. A folder that cannot be written only means that the next run checks again."""
    text = {
        "key": key,
        "names": [record.name for record in records],
        "problems": [problems.images, problems.labels, problems.notes],
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


def _split(
    rows: NDArray[np.float32], counts: NDArray[np.int64], none: NDArray[np.float32]
) -> Iterator[NDArray[np.float32]]:
    """The rows of each image; ``none`` for an image without."""
    rows = rows.astype(np.float32, copy=False)
    if len(rows) != counts.sum() or counts.min(initial=0) < 0 or rows.shape[1:] != none.shape[1:]:
        raise ValueError("the arrays of the cache do not fit together")
    ends = np.cumsum(counts).tolist()
    return (rows[end - count : end] if count else none for end, count in zip(ends, counts.tolist(), strict=True))
