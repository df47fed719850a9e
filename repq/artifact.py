"""The run folder: content-addressed artifacts with a manifest each, made once and reused.

An artifact is a folder ``WORK/STAGE/KEY/`` that holds a payload and ``manifest.json``. The key is the hash of the
stage, its full settings, the hashes of its inputs, the library versions and the seed: the same key is the same result.
A folder is filled beside its place and renamed when complete, under a lock, so neither a killed run nor two runs at
once leave a half-written artifact. ``WORK/STAGE/.resume-KEY/`` keeps the state of a stage that can be continued.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from repq import __version__
from repq.errors import RepqError

MANIFEST = "manifest.json"
KEY_LENGTH = 12


class Manifest(BaseModel):
    """Everything that a result depends on, and the hashes of what it consists of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    key: str
    config: dict[str, Any]
    inputs: dict[str, str]
    versions: dict[str, str]
    seed: int
    created: str
    seconds: float
    files: dict[str, str]

    @property
    def content(self) -> str:
        """Hash of the payload alone: what stages further down depend on."""
        return hash_json(self.files)


@dataclass(frozen=True)
class Artifact:
    """A complete artifact on disk."""

    folder: Path
    manifest: Manifest
    reused: bool

    def __truediv__(self, name: str) -> Path:
        return self.folder / name


def hash_json(value: Any) -> str:
    """SHA-256 of a value's canonical JSON (sorted keys, no white space), hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def hash_folder(folder: Path) -> dict[str, str]:
    """Relative path to SHA-256 of every file below ``folder`` but the manifest."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): hash_file(path) for path in files}


def library_versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of repq and of the named distributions; ``absent`` for one that is not installed."""
    versions = {"repq": __version__}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    return versions


class RunFolder:
    """The artifacts of one or more runs of recipes.

    Raises:
        RepqError: the folder cannot be created.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RepqError(
                f"cannot use {root} as run folder", found=str(error), fix="give a writable folder with --work"
            ) from None

    def make(
        self,
        stage: str,
        run: Callable[[Path, Path], None],
        *,
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
        libraries: Iterable[str] = (),
        seed: int = 0,
        on_wait: Callable[[str], None] = lambda message: None,
    ) -> Artifact:
        """Return the artifact with these settings; run the stage only if there is no intact one.

        Args:
            stage: name of the stage and of its folder.
            run: fills the payload folder (first argument); may keep what it needs to continue after a kill in the
                resume folder (second argument), which is removed once the artifact is complete.
            config: the stage's full settings, as plain JSON values.
            inputs: name to content hash of everything that the stage reads.
            libraries: distributions whose version the result depends on.
            seed: the seed of everything random in the stage.
            on_wait: told when another run holds the same artifact.
        """
        identity = {
            "stage": stage,
            "config": dict(config),
            "inputs": dict(inputs),
            "versions": library_versions(libraries),
            "seed": seed,
        }
        key = hash_json(identity)[:KEY_LENGTH]
        folder = self.root / stage / key
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.parent / f".{key}.lock", on_wait):
            found = read_artifact(folder)
            if found is not None:
                return found
            return _produce(folder, run, {**identity, "key": key})


@contextmanager
def _locked(path: Path, on_wait: Callable[[str], None]) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0.1)
    except Timeout:
        on_wait(f"another run is making {path.parent.name}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _produce(folder: Path, run: Callable[[Path, Path], None], identity: dict[str, Any]) -> Artifact:
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
        manifest = Manifest(
            **identity,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - started, 3),
            files=hash_folder(partial),
        )
        (partial / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if not any(resume.iterdir()):
            resume.rmdir()
    shutil.rmtree(resume, ignore_errors=True)
    return Artifact(folder, manifest, reused=False)


def read_artifact(folder: Path) -> Artifact | None:
    """Read a complete, intact artifact; None if it is absent or a file of it is missing or altered."""
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None
    if hash_folder(folder) != manifest.files:
        return None
    return Artifact(folder, manifest, reused=True)
