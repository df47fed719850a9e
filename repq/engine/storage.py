"""Saved engines: a folder with ``engine.json`` (manifest and payload hashes) and the payload files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from pydantic import Field, ValidationError

from repq.engine.base import EngineManifest
from repq.errors import EngineError, reason
from repq.files import replacing_folder
from repq.identity import hash_file, hash_json
from repq.reading import MIB, read_text
from repq.results import Result

MANIFEST = "engine.json"


class _SavedEngine(Result):
    manifest: EngineManifest
    manifest_sha256: str
    payload_sha256: dict[str, str] = Field(min_length=1)


def is_engine(path: Path) -> bool:
    """Whether the path is a folder that holds an engine's manifest."""
    return (path / MANIFEST).is_file()


def write_engine(folder: Path, manifest: EngineManifest, write_payload: Callable[[Path], None]) -> None:
    """Write an engine beside its place and move it there; an engine that is there already is replaced.

    Raises:
        EngineError: the folder exists and is no engine, or cannot be written.
    """
    if folder.exists() and not is_engine(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise EngineError(f"cannot save an engine as {folder}", found="other files there", fix="name another folder")
    try:
        with replacing_folder(folder) as new:
            write_payload(new)
            saved = _SavedEngine(
                manifest=manifest,
                manifest_sha256=_hash(manifest.model_dump(mode="json")),
                payload_sha256={file.name: hash_file(file) for file in sorted(new.iterdir())},
            )
            (new / MANIFEST).write_text(saved.model_dump_json(indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise EngineError(f"cannot write {folder}", found=reason(error), fix="check the path") from None


def read_engine(folder: Path) -> EngineManifest:
    """Read a saved engine's manifest and check its payload against it.

    Raises:
        EngineError: no engine is there, the manifest is damaged, the engine is of an unknown kind, or a payload file
            is missing or changed.
    """
    if not folder.is_dir():
        raise EngineError(f"there is no engine at {folder}", fix="build one with `repq build MODEL.onnx -o FOLDER`")
    if not is_engine(folder):
        raise EngineError(
            f"{folder} is no engine", found=f"no {MANIFEST} in it", fix="give a folder that repq build wrote"
        )
    text = read_text(folder / MANIFEST, 64 * MIB, form="JSON", error=EngineError)
    saved, manifest_hash = _parse(folder / MANIFEST, text)
    unnamed = sorted({file.name for file in folder.iterdir()} - {MANIFEST, *saved.payload_sha256})
    if unnamed or not manifest_hash or saved.manifest_sha256 != manifest_hash:
        found = f"{MANIFEST} does not name {', '.join(unnamed[:3])}" if unnamed else f"{MANIFEST} has another hash"
        raise EngineError(f"the engine {folder} was changed after it was built", found=found, fix="build it again")
    for name, sha256 in saved.payload_sha256.items():
        file = folder / name
        if Path(name).name != name or not file.is_file():
            raise EngineError(f"the engine {folder} is not whole", found=f"no file {name!r}", fix="build it again")
        if hash_file(file) != sha256:
            raise EngineError(
                f"the engine {folder} was changed after it was built",
                found=f"{name} differs from its hash in {MANIFEST}",
                fix="build it again",
            )
    return saved.manifest


def _hash(manifest: object) -> str:
    """The hash of the manifest as it stands in the file, which settings that are new to repq do not change."""
    try:
        return hash_json(manifest)
    except ValueError:  # a text that is no Unicode, which no engine of ours has
        return ""


def folder_size(folder: Path) -> int:
    """Bytes of the files in a folder, without the manifest."""
    return sum(file.stat().st_size for file in folder.iterdir() if file.name != MANIFEST)


def _parse(path: Path, text: str) -> tuple[_SavedEngine, str]:
    try:
        values = json.loads(text)
        engine = values["manifest"]["engine"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise EngineError(
            f"{path} is damaged", found=f"{type(error).__name__}: {error}", fix="build it again"
        ) from None
    try:
        return _SavedEngine.model_validate(values), _hash(values["manifest"])
    except ValidationError as error:
        problems = error.errors()
        if any(problem["loc"] == ("manifest", "engine") for problem in problems):
            raise EngineError(
                f"{path} names an engine that this repq does not know",
                found=repr(engine),
                fix="use the repq that built it, or build it again with an engine that `repq doctor` lists",
            ) from None
        found = "; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in problems[:3])
        raise EngineError(f"{path} is damaged", found=found, fix="build it again") from None
