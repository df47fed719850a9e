"""Files and paths that no command can use, made from every kind of damage and every suffix."""

from __future__ import annotations

import json
import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
TEXTS = {
    "empty": b"",
    "random bytes": random.Random(0).randbytes(4096),
    "zeros": bytes(1 << 16),
    "no UTF-8": b"a: \xff\xfe\xfd",
    "alias bomb": BOMB.encode(),
    "alias of itself": b"a: &a [*a]\n",
    "deep nesting": b"[" * 100_000,
    "deep YAML": b"a: " + b"{a: " * 5_000,
    "long number": b"nc: " + b"9" * 50_000,
    "bad tag": b"nc: !!int abc\nnames: !!python/object/apply:os.abort []\n",
    "NUL and surrogate": b"name: 'a\0b'\nnames: ['\\ud800']\n",
    "a list": b"- 1\n- 2\n",
    "a number": b"3\n",
    "JSON null": b"null",
    "JSON list": b"[[], {}, 1e999]",
    "JSON of wrong types": json.dumps({"images": {"a": 1}, "annotations": 3, "categories": "x", "rows": None}).encode(),
    "unknown keys": b"no_such_key: 1\n",
    "HTML": b"<!doctype html><title>404</title>",
    "safetensors with a huge header": (1 << 62).to_bytes(8, "little") + b"{}",
    "safetensors of wrong types": (13).to_bytes(8, "little") + b'{"a": [1, 2]}',
}


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02cos\nabort\n)R.")


def _link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


PLACES: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "a folder": Path.mkdir,
    "/dev/zero": _link("/dev/zero"),
    "a pipe": os.mkfifo,
    "a loop of links": lambda path: path.symlink_to(path.name),
    "a link to nothing": _link("nowhere"),
    "a pickle that aborts": _zip,
}
PATHS = {
    "a NUL": "a\0b",
    "5,000 characters": "a/" * 2_500,
    "a long name": "a" * 300,
    "below a file": os.devnull + "/x",
    "an unknown user": "~nosuchuser/x",
}


def kinds() -> list[str]:
    return [*TEXTS, "truncated", *PLACES, *PATHS]


def make(kind: str, good: Path, folder: Path) -> str:
    """A bad file with the suffix of a good one; its path."""
    if kind in PATHS:
        return PATHS[kind] + good.suffix
    path = folder / f"bad{good.suffix}"
    if kind in TEXTS:
        path.write_bytes(TEXTS[kind])
    elif kind == "truncated":
        whole = good.read_bytes()
        path.write_bytes(whole[: len(whole) * 2 // 3])
    else:
        PLACES[kind](path)
    return str(path)
