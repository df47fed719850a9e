"""Where a command reads and writes, looked at before it does anything."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from fnmatch import fnmatch
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repq.errors import RepqError
from repq.printable import printable
from repq.recipe.base import Config
from repq.recipe.reader import demand_plain

if TYPE_CHECKING:
    from repq.cli.generated import Option

Writes = str | tuple[str, ...]

ENDED = ("artifacts.yaml", "compare.json", "ablation.json")
"""What runs, comparisons and ablations write last."""
_LOOKED_AT = 1 << 20
_ENGINE = "engine.json"
MANIFEST = re.compile(rb"# \d+ images of the split ")
"""How the manifest of a calibration set begins."""


def demand_places(options: list[Option], values: Config, log_file: Path | None = None) -> None:
    """Check every path of a command: inputs are files or folders, and outputs can be written and lose nothing.

    Args:
        log_file: an output that every command has.

    Raises:
        RepqError: an input is a device or a pipe; an output has the wrong suffix, lies where it cannot be written, is
            an input or another output as well, is a file that repq did not write, or is a folder with other files.
    """
    outputs: list[tuple[str, Path, Writes]] = []
    if log_file is not None:
        demand_plain(log_file, "(--log-file)")
        outputs.append(("--log-file", log_file, ""))
    inputs: list[tuple[str, Path]] = []
    for option in options:
        writes = option.marks["writes"]
        for path in _paths(values, next(iter(option.targets))):
            demand_plain(path, f"({option.name})")
            if writes is None:
                inputs.append((option.name, path))
            else:
                outputs.append((option.names[0], path, writes))
    for (name, path, _), (other, place, _) in combinations(outputs, 2):
        if _same(path, place):
            raise RepqError(
                f"{name} and {other} are one file", found=printable(path), fix="name another for one of them"
            )
    for name, path, writes in outputs:
        if isinstance(writes, str):
            _demand_file(name, path, writes)
        else:
            _demand_folder(name, path, writes, log_file)
        if log_file is not None and _ENGINE in writes and path.resolve() in log_file.resolve().parents:
            raise RepqError(
                f"--log-file lies in the folder of {name}, which is written anew", found=printable(log_file),
                fix="name another place for the log",
            )  # fmt: skip
        for other, source in inputs:
            if _same(path, source):
                raise RepqError(
                    f"{name} is {printable(path)}, which {other} reads", fix="write to another place, so that it stays"
                )
            if not isinstance(writes, str) and path.exists() and path.resolve() in source.resolve().parents:
                raise RepqError(
                    f"{other} lies in the folder of {name}", found=printable(source), fix="write to another folder"
                )
        _demand_writable(name, path)


def _paths(values: Any, target: str) -> Iterator[Path]:
    for part in target.split("."):
        values = None if values is None else getattr(values, part)
    for value in values if isinstance(values, tuple) else (values,):
        if isinstance(value, Path):
            yield value


def _same(one: Path, other: Path) -> bool:
    """Whether both are one file, by whatever name."""
    with suppress(OSError):
        return one.samefile(other)
    return one.resolve() == other.resolve()


def _demand_file(name: str, path: Path, suffix: str) -> None:
    if path.is_dir():
        raise RepqError(f"{name} is a file", found=f"the folder {printable(path)}", fix="name a file in it")
    if suffix and path.suffix.lower() not in suffix.split("|"):
        expected = " or ".join(one or "none" for one in suffix.split("|"))
        raise RepqError(
            f"{name} does not fit what is written", found=f"the suffix {printable(path.suffix) or 'none'}",
            fix=f"name a file with the suffix {expected}",
        )  # fmt: skip
    if suffix and not _is_own(path):
        raise RepqError(
            f"{name} would replace a file that repq did not write", found=printable(path),
            fix="name another file, or remove this one",
        )  # fmt: skip


def _is_own(path: Path) -> bool:
    """Whether nothing is lost by a new file: there is none, it is empty, or repq wrote it (see its metadata)."""
    try:
        with path.open("rb") as file:
            head = file.read(_LOOKED_AT)
            file.seek(-min(_LOOKED_AT, path.stat().st_size), os.SEEK_END)  # of ONNX, metadata come last
            return not head or b"repq." in head + file.read() or MANIFEST.match(head) is not None
    except OSError:  # it is not there, or what writes to it will say what is wrong
        return True


def _demand_folder(name: str, path: Path, own: tuple[str, ...], log_file: Path | None) -> None:
    if path.exists() and not path.is_dir():
        raise RepqError(f"{name} is a folder", found=f"the file {printable(path)}", fix="name another place")
    if _ENGINE in own and path.exists() and Path.cwd().is_relative_to(path.resolve()):
        raise RepqError(
            f"{name} is the working folder, or one around it, which would be written anew", found=printable(path),
            fix="name a new folder",
        )  # fmt: skip
    own += tuple(_listed(path / _ENGINE)) if _ENGINE in own else ()
    others = path.iterdir() if path.is_dir() else ()
    there = sorted(entry.name for entry in others if log_file is None or not _same(entry, log_file))
    foreign = [entry for entry in there if not entry.startswith(".") and not any(fnmatch(entry, one) for one in own)]
    if foreign:
        raise RepqError(
            f"the folder {printable(path)} holds what this command did not write",
            found=", ".join(map(printable, foreign[:5])), fix=f"give a new folder as {name}",
        )  # fmt: skip


def _listed(manifest: Path) -> list[str]:
    """The files of a built engine, as it lists them."""
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return [str(name) for name in json.loads(manifest.read_text(encoding="utf-8"))["payload_sha256"]]
    return []


def _demand_writable(name: str, path: Path) -> None:
    """The folder is there and can be written to, or can be made."""
    folder = path.absolute().parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise RepqError(f"{name} lies under a file", found=printable(folder), fix="name another place")
    if any((path / name).is_file() for name in ENDED):  # nothing is written if nothing is to be made
        return
    if not os.access(path if path.is_dir() else folder, os.W_OK):
        raise RepqError(f"{name} cannot be written", found=f"no right to write to {printable(folder)}",
                        fix="name another place, or check who may write there")  # fmt: skip
