"""Calibration sets: which images the activation ranges are measured on, drawn with a seed or named in a manifest.

A manifest is a text file that ``sha256sum --check`` understands, run in the data set's root: one line an image, the
SHA-256 of the file, two spaces, the name relative to the root. Lines that begin with ``#`` are comments. It holds no
images, and it says exactly which pixels a result came from.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from repq.data.dataset import DetectionDataset, ImageRecord
from repq.errors import DataError
from repq.files import write_text
from repq.identity import hash_file
from repq.recipe import CalibrationConfig

_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


def calibration_set(dataset: DetectionDataset, config: CalibrationConfig) -> list[ImageRecord]:
    """Return the images to calibrate on.

    With ``config.manifest``: the images that it names, in its order, after checking every hash; ``images`` and
    ``seed`` then have no say. Else ``config.images`` of the data set, ranked by ``sha256("SEED:NAME")``: the draw
    depends on names alone, not on the order of files, and a smaller draw is the beginning of a larger one. If the
    data set has fewer images, all are returned, so compare the length with ``config.images``.

    Raises:
        DataError: the manifest cannot be read, names images that the data set has not, or hashes differ.
    """
    if config.manifest is not None:
        return _from_manifest(dataset, config.manifest)
    ranked = sorted(
        dataset.records, key=lambda record: hashlib.sha256(f"{config.seed}:{record.name}".encode()).digest()
    )
    return ranked[: config.images]


def _from_manifest(dataset: DetectionDataset, path: Path) -> list[ImageRecord]:
    hashes = read_manifest(path)
    records = {record.name: record for record in dataset.records}
    missing = [name for name in hashes if name not in records]
    if missing:
        raise DataError(
            f"the manifest {path} names {len(missing)} images that the split {dataset.split!r} has not",
            found=f"{_first(missing)}; the data set's root is {dataset.root}",
            fix="use the data set and split that the manifest was written for, or write a new manifest",
        )
    changed = [name for name, digest in hashes.items() if _hash_image(records[name].path) != digest]
    if changed:
        raise DataError(
            f"{len(changed)} images differ from those that the manifest {path} was written for",
            found=_first(changed),
            fix="restore the images, or write a new manifest if the change is meant",
        )
    return [records[name] for name in hashes]


def read_manifest(path: Path) -> dict[str, str]:
    """Return name to SHA-256, in the order of the file.

    Raises:
        DataError: the file cannot be read, a line has another form, a name comes twice, or there is no image in it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the manifest {path}", found=str(error), fix="check the path") from None
    hashes: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None or match[2] in hashes:
            problem = "a name that came before" if match else f"{line[:60]!r}"
            raise DataError(
                f"line {number} of the manifest {path} is not usable",
                found=problem,
                fix="write the SHA-256 in lower case, two spaces, the image's name; each image once",
            )
        hashes[match[2]] = match[1]
    if not hashes:
        raise DataError(f"the manifest {path} names no image")
    return hashes


def write_manifest(path: Path, records: Sequence[ImageRecord], dataset: DetectionDataset) -> None:
    """Write a manifest of images of a data set, atomically.

    Raises:
        DataError: an image cannot be read.
    """
    head = f"# {len(records)} images of the split {dataset.split!r}, relative to the data set's root"
    text = "\n".join([head, *(f"{_hash_image(record.path)}  {record.name}" for record in records), ""])
    write_text(path, text)


def _hash_image(path: Path) -> str:
    try:
        return hash_file(path)
    except OSError as error:
        raise DataError(f"cannot read the image {path}", found=error.strerror or str(error)) from None


def _first(names: list[str], show: int = 3) -> str:
    return ", ".join(names[:show]) + (f" and {len(names) - show} more" if len(names) > show else "")
