"""What a sweep has measured so far, kept on disk so that a killed sweep goes on and several processes can share one.

A journal is a folder. Each process appends to a file of its own, one JSON object a line, and reads the files of all:
merging is reading. The first line of each file holds the key of the measurement; files of another measurement are
refused. A line that was cut off by a kill is ignored.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from repq.errors import QuantizationError
from repq.files import naming


@dataclass(frozen=True)
class Entry:
    """What was measured of one item (a layer, or ``""`` for the model without a change) by one kind of sweep."""

    kind: str
    item: str
    values: Mapping[str, float]
    seconds: float


class Journal:
    """Entries by kind and item, in memory or in a folder.

    Args:
        folder: where the files lie; None keeps everything in memory.
        key: identifies the measurement: the same model, images and settings.
        rank: the number of this process, which names its file.
        replaces_others: files of another measurement, or that are no journals, are removed instead of refused.

    Raises:
        QuantizationError: the folder holds another measurement, or a file that is no journal.
    """

    def __init__(self, folder: Path | None, key: str, rank: int = 0, *, replaces_others: bool = False) -> None:
        self._folder, self._key = folder, key
        self._path = None if folder is None else folder / f"sweep-{rank}.jsonl"
        self._own: dict[tuple[str, str], Entry] = {}
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if replaces_others:
                self._remove_others(self._path.parent)
            self._begin(self._path)
        self.entries()

    def entries(self) -> dict[tuple[str, str], Entry]:
        """Everything measured so far, by any process."""
        if self._folder is None:
            return dict(self._own)
        found: dict[tuple[str, str], Entry] = {}
        for path in sorted(self._folder.glob("sweep-*.jsonl")):
            for entry in self._read(path):
                found.setdefault((entry.kind, entry.item), entry)
        return found

    def append(self, entry: Entry) -> None:
        """Add one entry; once this returns it outlives a kill."""
        self._own[entry.kind, entry.item] = entry
        if self._path is not None:
            self._write(self._path, asdict(entry))

    def complete(self, entries: Iterable[Entry]) -> None:
        """Add what is not there yet, such as what a process measured whose disk is another."""
        known = self.entries()
        for entry in entries:
            if (entry.kind, entry.item) not in known:
                self.append(entry)

    def _remove_others(self, folder: Path) -> None:
        for path in folder.glob("sweep-*.jsonl"):
            try:
                list(self._read(path))
            except QuantizationError:
                path.unlink()

    def _begin(self, path: Path) -> None:
        """Write the key, or cut off what a kill left of the last line."""
        text = path.read_bytes() if path.exists() else b""
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:
            os.truncate(path, len(whole))
        if not whole:
            self._write(path, {"key": self._key})

    def _write(self, path: Path, values: Mapping[str, object]) -> None:
        with naming(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _read(self, path: Path) -> Iterator[Entry]:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # what follows the last line break was cut off
        try:
            rows = [json.loads(line) for line in lines]
            key = rows[0]["key"] if rows else self._key
            entries = [Entry(**row) for row in rows[1:]]
        except (ValueError, TypeError, KeyError) as error:
            raise QuantizationError(
                f"{path} is no journal of a sensitivity sweep", found=str(error), fix="remove it and measure again"
            ) from None
        if key != self._key:
            raise QuantizationError(
                f"{path} belongs to another measurement",
                found=f"the key {str(key)[:12]}, not {self._key[:12]}: another model, other images or other settings",
                fix="give another folder, or remove this one to measure anew",
            )
        yield from entries
