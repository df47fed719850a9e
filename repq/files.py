"""Writing files whole: beside their place first, then renamed. And where files are kept between runs."""

from __future__ import annotations

import errno
import glob
import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from zlib import crc32

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
_HOST = f"{crc32(socket.gethostname().encode()):08x}"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a new path beside ``path``; what the block writes there takes its place when the block ends well.

    Readers see the old file or the whole new one, and a block that fails leaves the old one. Missing folders are made.

    Raises:
        OSError: the folder cannot be made or written to, or the block wrote nothing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = _beside(path)
    try:
        with naming(path):
            yield beside
            beside.replace(path)
    finally:
        with suppress(OSError):  # renamed already, or never made
            beside.unlink()


@contextmanager
def replacing_folder(folder: Path, *, keep_others: bool = False) -> Iterator[Path]:
    """Yield a new folder beside ``folder``; what the block writes there takes its place when the block ends well.

    Args:
        keep_others: files of the old folder stay, unless the new one has them too.

    Raises:
        OSError: the folder cannot be made or written to, or it would take the place of the working folder.
    """
    folder = folder if folder.name not in ("", "..") else folder.resolve()
    if not keep_others and folder.exists() and Path.cwd().is_relative_to(folder.resolve()):
        raise OSError(errno.EBUSY, "the working folder cannot be replaced: name another one", os.fspath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = _beside(folder)
    old = new.with_suffix(".old.part")
    try:
        new.mkdir()
        with naming(folder):
            yield new
            if keep_others:
                for file in sorted(path for path in new.rglob("*") if path.is_file()):
                    target = folder / file.relative_to(new)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    file.replace(target)
                return
            if folder.exists():
                folder.replace(old)
            try:
                new.replace(folder)
            except OSError:
                if old.exists() and not folder.exists():
                    old.replace(folder)
                raise
    finally:
        for scratch in (new, old):
            shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield a new folder in ``TMPDIR`` that only this user reads; gone after the block.

    Raises:
        OSError: the folder cannot be made.
    """
    folder = _beside(Path(tempfile.gettempdir()) / "repq")
    try:
        folder.mkdir(mode=0o700)  # inside: a signal may come as soon as it is there
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """What a write to a full disk raises names no file: name this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in _DISK:
            error.filename = os.fspath(path)
        raise


def _beside(path: Path) -> Path:
    """A new path beside ``path``. What processes of this machine that are no more left there is removed."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.{_HOST}-*.part"):
        owner = left.name.removesuffix(".part").rpartition(f".{_HOST}-")[2].partition("-")[0]
        if owner.isdecimal() and not _alive(int(owner)):
            with suppress(OSError):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
    return path.with_name(f".{path.name}.{_HOST}-{os.getpid()}-{uuid.uuid4().hex[:8]}.part")


def _alive(process: int) -> bool:
    if os.name == "nt":  # where this would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@contextmanager
def in_utf8(path: Path) -> Iterator[Path]:
    """A path of the same file that is UTF-8, for libraries that take no other: itself, or a link to it."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        with scratch_folder() as folder:
            link = folder / f"file{path.suffix}"
            link.symlink_to(path.absolute())
            yield link
    else:
        yield path


def has_text(path: Path, text: str) -> bool:
    """Whether a file is there and has this text in UTF-8."""
    try:
        return path.read_bytes() == text.encode()
    except OSError:
        return False


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file whole; one that holds the text already stays, so that it may lie on a read-only disk."""
    if has_text(path, text):
        return
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8", newline="\n")


def cache_folder() -> Path:
    """Return ``$REPQ_CACHE``, else ``repq`` in ``$XDG_CACHE_HOME`` or ``~/.cache``; without a home in ``TMPDIR``."""
    own, shared = (os.environ.get(name) for name in ("REPQ_CACHE", "XDG_CACHE_HOME"))
    with suppress(RuntimeError):  # an unknown user
        return Path(own).expanduser() if own else Path(shared or "~/.cache").expanduser() / "repq"
    return Path(tempfile.gettempdir()) / "repq-cache"


def cached(name: str, make: Callable[[], bytes]) -> bytes:
    """Bytes that are kept in the cache folder between runs; made where they are missing, or damaged.

    A cache that cannot be read or written is no failure.
    """
    path = cache_folder() / name
    with suppress(OSError):
        kept = path.read_bytes()
        if sha256(kept[32:]).digest() == kept[:32]:
            return kept[32:]
    data = make()
    with suppress(OSError), replacing(path) as beside:
        beside.write_bytes(sha256(data).digest() + data)
    return data
