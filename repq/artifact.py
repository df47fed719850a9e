"""The run folder: content-addressed artifacts with a manifest each, made once and reused.

An artifact is a folder ``WORK/STAGE/KEY/`` that holds a payload and ``manifest.json``. The key is that of the result's
`Identity`: the same key is the same result. A folder is filled beside its place and renamed when complete, under a
lock, so neither a killed run nor two runs at once leave a half-written artifact. ``WORK/STAGE/.resume-KEY/`` keeps the
state of a stage that can be continued.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatch
from itertools import chain, count
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from repq.errors import RepqError, reason
from repq.files import replacing
from repq.identity import Identity, describe, hash_file, hash_folder, hash_json
from repq.results import Result

MANIFEST = "manifest.json"
R = TypeVar("R", bound=Result)


class Manifest(BaseModel):
    """Everything that a result depends on, and the hashes of what it consists of.

    Attributes:
        files: relative path to SHA-256 of every file.
        contents: hash of what other results can depend on, by file: without dates, timings and logs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    key: str
    identity: dict[str, Any]
    created: str
    seconds: float
    files: dict[str, str]
    contents: dict[str, str]

    @property
    def content(self) -> str:
        """One hash of what other results can depend on."""
        return hash_json(self.contents)


@dataclass(frozen=True)
class Contents:
    """What the files of an artifact are.

    Attributes:
        results: file name to the type of the result in it.
        ignored: globs of files that nothing depends on, such as event files.
    """

    results: Mapping[str, type[Result]] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()

    def hashes(self, folder: Path, files: Mapping[str, str]) -> dict[str, str]:
        """Hash of what other results can depend on: results by the fields that belong to their identity."""
        kept = {name: digest for name, digest in files.items() if not any(fnmatch(name, p) for p in self.ignored)}
        results = {name: read_result(folder / name, kind) for name, kind in self.results.items() if name in kept}
        return kept | {name: hash_json(describe(result)) for name, result in results.items()}


def read_result(path: Path, kind: type[R]) -> R:
    """Read a result back from its JSON.

    Raises:
        RepqError: the file cannot be read, or holds something else.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RepqError(f"{path} holds no {kind.__name__}", found=reason(error), fix="make it again") from None


@dataclass(frozen=True)
class Artifact:
    """A complete artifact on disk."""

    folder: Path
    manifest: Manifest
    reused: bool

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def result(self, kind: type[R], name: str | None = None) -> R:
        """A result of the stage; by default that in ``STAGE.json``."""
        return read_result(self.folder / (name or f"{self.manifest.stage}.json"), kind)


class RunFolder:
    """The artifacts of one or more runs of recipes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def make(
        self,
        identity: Identity,
        run: Callable[[Path, Path], None],
        *,
        contents: Contents = Contents(),
        on_wait: Callable[[str], None] = lambda message: None,
    ) -> Artifact:
        """Return the artifact with this identity; run the stage only if there is no intact one.

        Args:
            run: fills the payload folder (first argument); may keep what it needs to continue after a kill in the
                resume folder (second argument), which is removed once the artifact is complete.
            on_wait: gets a message when another run holds the same artifact.

        Raises:
            RepqError: the folder cannot be created.
        """
        folder = self.root / identity.stage / identity.key
        found = read_artifact(folder)
        if found is not None:
            return found
        with _locked(folder.parent / f".{identity.key}.lock", self.root, on_wait):
            found = read_artifact(folder)
            return found if found is not None else _produce(folder, run, identity, contents)


@contextmanager
def _locked(path: Path, root: Path, on_wait: Callable[[str], None]) -> Iterator[None]:
    """Hold a lock. Folders that were made for it are removed again where the block fails and leaves them empty."""
    lock, made = _acquired(path, root, on_wait)
    try:
        yield
    except BaseException:
        if made:  # while it is held: a run that waits then finds no folder, and makes it
            with suppress(OSError):
                path.unlink()
            for place in made:
                with suppress(OSError):
                    place.rmdir()
        raise
    finally:
        lock.release()


def _acquired(path: Path, root: Path, on_wait: Callable[[str], None]) -> tuple[FileLock, list[Path]]:
    """The lock, and the folders that had to be made for it, the innermost first."""
    while True:
        made = [place for place in path.parents if not place.exists()]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RepqError(
                f"cannot use {root} as run folder", found=str(error), fix="give a writable folder with --work"
            ) from None
        lock = FileLock(path)
        with suppress(FileNotFoundError):  # the run that made the folder has failed and removed it
            try:
                lock.acquire(timeout=0.1)
            except Timeout:
                on_wait(f"another run is making {path.parent.name}; waiting for it")
                lock.acquire()
            return lock, made


def _produce(folder: Path, run: Callable[[Path, Path], None], identity: Identity, contents: Contents) -> Artifact:
    partial = folder.with_name(f".partial-{folder.name}")
    resume = folder.with_name(f".resume-{folder.name}")
    for leftover in (partial, folder):  # a killed run's, or one whose payload no longer has its hashes
        if leftover.exists():
            shutil.rmtree(leftover)
    partial.mkdir()
    resume.mkdir(exist_ok=True)
    started = time.monotonic()
    try:
        run(partial, resume)
        files = hash_folder(partial)
        manifest = Manifest(
            stage=identity.stage,
            key=identity.key,
            identity=identity.values(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - started, 3),
            files=files,
            contents=contents.hashes(partial, files),
        )
        (partial / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):  # there is something to go on from, or nobody may remove it
            resume.rmdir()
    shutil.rmtree(resume, ignore_errors=True)
    return Artifact(folder, manifest, reused=False)


def read_artifact(folder: Path) -> Artifact | None:
    """Read a complete, intact artifact; None if it is absent, another one, or a file of it is missing or altered."""
    manifest = _read_manifest(folder)
    if manifest is None or (manifest.stage, manifest.key) != (folder.parent.name, folder.name):
        return None
    try:
        files = hash_folder(folder)
    except OSError:
        return None
    if {name: digest for name, digest in files.items() if name != MANIFEST} != manifest.files:
        return None
    return Artifact(folder, manifest, reused=True)


def _read_manifest(folder: Path) -> Manifest | None:
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (OSError, ValidationError):
        return None


def publish(artifact: Artifact, target: Path) -> list[Path]:
    """Copy the files of an artifact into a folder, in place of those that others of its stage left there.

    What is there already is not written again, so that a complete run may lie on a read-only disk. What is of no
    artifact, or was edited, stays; under another name, ``NAME.before``, where its own is needed.

    Returns:
        What got another name.
    """
    manifests = map(_read_manifest, artifact.folder.parent.iterdir())
    known = {entry for manifest in manifests if manifest for entry in manifest.files.items()}
    wanted, kept = artifact.manifest.files, list[Path]()
    for name in sorted({name for name, _ in known}):
        file = target / name
        digest = hash_file(file) if file.is_file() else None
        if digest == wanted.get(name):
            continue
        if digest is not None and name in wanted and (name, digest) not in known:
            kept.append(_free(file.with_name(f"{file.name}.before")))
            file.replace(kept[-1])
        if name in wanted:
            with replacing(file) as beside:
                shutil.copyfile(artifact / name, beside)
        elif (name, digest) in known:
            file.unlink(missing_ok=True)
    return kept


def _free(path: Path) -> Path:
    numbered = (path.with_name(f"{path.name}-{number}") for number in count(2))
    return next(one for one in chain([path], numbered) if not one.exists())
