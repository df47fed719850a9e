r"""Calibration sets: which images the activation ranges are measured on, drawn with a seed or named in a manifest.

A manifest is a text file that ``sha256sum --check`` understands, run in the data set's root: one line an image, the
SHA-256 of the file, two spaces, the name relative to the root. Lines that begin with ``#`` are comments. It holds no
images, and it says exactly which pixels a result came from. As there, a line that begins with ``\\`` has the line
breaks and backslashes of a name escaped.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from repq.amounts import counted
from repq.data.dataset import DetectionDataset, ImageRecord, image_hashes
from repq.errors import DataError
from repq.files import replacing
from repq.printable import first_names, printable
from repq.reading import lines, read_text
from repq.recipe import CalibrationConfig

_LINE = re.compile(r"(\\?)([0-9a-f]{64}) [ *](.+)", re.DOTALL)
_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r"}
_ESCAPED = re.compile(r"\\([\\nr])")


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
        dataset.records, key=lambda record: hashlib.sha256(os.fsencode(f"{config.seed}:{record.name}")).digest()
    )
    return ranked[: config.images]


def _from_manifest(dataset: DetectionDataset, path: Path) -> list[ImageRecord]:
    hashes = read_manifest(path)
    records = {record.name: record for record in dataset.records}
    missing = [name for name in hashes if name not in records]
    if missing:
        raise DataError(
            f"the manifest {path} names {counted(len(missing), 'image')} that the split {dataset.split!r} has not",
            found=f"{first_names(missing)}; the data set's root is {dataset.root}",
            fix="use the data set and split that the manifest was written for, or write a new manifest",
        )
    found = image_hashes([records[name] for name in hashes])
    changed = [name for name, digest in hashes.items() if found[name] != digest]
    if changed:
        raise DataError(
            f"{counted(len(changed), 'image')} changed since the manifest {path} was written",
            found=first_names(changed),
            fix="restore the images, or write a new manifest if the change is meant",
        )
    return [records[name] for name in hashes]


def read_manifest(path: Path) -> dict[str, str]:
    """Return name to SHA-256, in the order of the file.

    Raises:
        DataError: the file cannot be read, a line has another form, a name comes twice, or there is no image in it.
    """
    text = read_text(path, what="the manifest ", errors="surrogateescape", error=DataError)
    hashes: dict[str, str] = {}
    for number, line in enumerate(lines(text), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        name = "" if match is None else _unescaped(match[3]) if match[1] else match[3]
        if match is None or name in hashes:
            raise DataError(
                f"line {number} of the manifest {printable(path)} is not usable",
                found="a name that came before" if match else f"{printable(line, 60)!r}",
                fix="write the SHA-256 in lower case, two spaces, the image's name; each image once",
            )
        hashes[name] = match[2]
    if not hashes:
        raise DataError(f"the manifest {printable(path)} names no image")
    return hashes


def _unescaped(name: str) -> str:
    return _ESCAPED.sub(lambda match: {"\\": "\\", "n": "\n", "r": "\r"}[match[1]], name)


def _line(digest: str, name: str) -> str:
    escaped = "".join(_ESCAPES.get(character, character) for character in name)
    return f"{chr(92) if escaped != name else ''}{digest}  {escaped}"


def write_manifest(path: Path, records: Sequence[ImageRecord], dataset: DetectionDataset) -> None:
    """Write a manifest of images of a data set, atomically.

    Raises:
        DataError: an image cannot be read.
    """
    head = f"# {len(records)} images of the split {dataset.split!r}, relative to the data set's root"
    text = "\n".join([head, *(_line(digest, name) for name, digest in image_hashes(records).items()), ""])
    with replacing(path) as beside:
        beside.write_bytes(os.fsencode(text))
