"""The containers that ``torch.save`` writes, read without torch's own loader: the zip form and the older flat form.

The object graph goes through :mod:`repq.model.unpickle`; numbers are read only for the tensors that are asked for, and
every declared size is checked against the bytes that are really there.
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from repq.errors import CheckpointError, reason
from repq.model.pickled import RefusedError, Storage, StoredTensor
from repq.model.unpickle import read_stream

MAX_PICKLE_BYTES = 64 * 2**20
"""The object graph of a checkpoint is below one megabyte; its numbers lie beside it."""

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001


@dataclass(frozen=True)
class TorchFile:
    """An open checkpoint: its object graph as plain data, and a reader of its storages."""

    root: Any
    read: Callable[[Storage], bytes]

    def tensor(self, stored: StoredTensor) -> torch.Tensor:
        """The numbers of ``stored`` in their saved type, contiguous.

        Raises:
            RefusedError: the storage is missing, or has another size than declared.
        """
        storage = stored.storage
        raw = self.read(storage)
        if len(raw) != storage.nbytes:
            raise RefusedError(f"storage {storage.key} with {len(raw)} bytes where {storage.nbytes} are declared")
        if not storage.numel:
            return torch.empty(stored.size, dtype=storage.dtype)
        flat = torch.frombuffer(bytearray(raw), dtype=storage.dtype)
        return flat.as_strided(stored.size, stored.stride, stored.offset).contiguous()


@contextmanager
def open_torch_file(path: Path) -> Iterator[TorchFile]:
    """Open what ``torch.save`` wrote; nothing in it is run.

    Raises:
        CheckpointError: no checkpoint, truncated, or refused because of what it names; also while tensors are read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(512)
        if head.startswith(b"PK\x03\x04"):
            with _zip_archive(path) as archive:
                yield _open_zip(archive, path.stat().st_size)
        elif head.startswith(b"\x80"):
            yield _open_legacy(path.read_bytes())
        else:
            raise CheckpointError(
                f"{path} is no checkpoint",
                found=_describe_head(head),
                fix="give a .pt file that torch.save wrote, or a .safetensors file",
            )
    except RefusedError as refusal:
        raise CheckpointError(
            f"{path} was refused; nothing in it was run",
            found=str(refusal),
            fix="if you trust its origin, save its weights there with torch.save(model.state_dict(), 'weights.pt') "
            "and give that file; otherwise delete it",
        ) from None
    except (zipfile.BadZipFile, EOFError, struct.error, NotImplementedError) as error:
        raise CheckpointError(
            f"{path} is truncated or damaged", found=reason(error), fix="copy or download it again"
        ) from None
    except OSError as error:
        raise CheckpointError(
            f"cannot read {path}", found=reason(error), fix="check the path and its permissions"
        ) from None


def _describe_head(head: bytes) -> str:
    if not head:
        return "an empty file"
    known = {
        b"version https://git-lfs": "a git-lfs pointer (run `git lfs pull`)",
        b"<": "a web page or XML",
        b"{": "JSON text",
        b"\x89HDF": "an HDF5 file",
        b"\x1f\x8b": "a gzip archive",
        b"\x08": "perhaps an ONNX graph",
    }
    for start, meaning in known.items():
        if head.lstrip().startswith(start) or head.startswith(start):
            return meaning
    if head[257:262] == b"ustar":
        return "a tar archive (the form of torch before 0.1.10, or something else)"
    return f"a file that starts with {head[:16]!r}"


# --- zip form (torch 1.6 and newer) ----------------------------------------------------------------------------------


def _zip_archive(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (ValueError, KeyError, OverflowError) as error:  # what zipfile lets through for a damaged directory
        raise zipfile.BadZipFile(str(error)) from None


def _member_bytes(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    try:
        return archive.read(member)
    except (ValueError, RuntimeError) as error:  # a damaged name, or a flag for encryption
        raise zipfile.BadZipFile(str(error)) from None


def _open_zip(archive: zipfile.ZipFile, file_size: int) -> TorchFile:
    members = {member.filename: member for member in archive.infolist()}
    if len(members) != len(archive.infolist()):
        raise RefusedError("a zip archive with two members of the same name")
    if any(member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1 for member in members.values()):
        raise RefusedError("a compressed or encrypted zip archive, which torch.save does not write")
    if sum(member.file_size for member in members.values()) > file_size:
        raise RefusedError("a zip archive whose members claim more bytes than the file has")
    graphs = [name for name in members if re.fullmatch(r"[^/]+/data\.pkl", name)]
    if len(graphs) != 1:
        raise RefusedError(f"a zip archive with {len(graphs)} object graphs (data.pkl) where a checkpoint has one")
    folder = graphs[0].removesuffix("data.pkl")
    if folder + "constants.pkl" in members:
        raise RefusedError("a TorchScript program, which holds code")
    if folder + "byteorder" in members and _member_bytes(archive, members[folder + "byteorder"]) != b"little":
        raise RefusedError("numbers in big-endian order")
    if members[graphs[0]].file_size > MAX_PICKLE_BYTES:
        raise RefusedError(f"an object graph of {members[graphs[0]].file_size} bytes")

    def read(storage: Storage) -> bytes:
        member = members.get(f"{folder}data/{storage.key}")
        if member is None or member.file_size != storage.nbytes:
            raise RefusedError(
                f"storage {storage.key} with {member.file_size if member else 'no'} bytes "
                f"where {storage.nbytes} are declared"
            )
        return _member_bytes(archive, member)

    return TorchFile(read_stream(_member_bytes(archive, members[graphs[0]])), read)


# --- flat form (before torch 1.6) ------------------------------------------------------------------------------------


def _open_legacy(content: bytes) -> TorchFile:
    """Five pickles (magic, protocol, system, object graph, storage keys), then per key a count and the raw numbers."""
    stream = io.BytesIO(content)
    if read_stream(stream) != _LEGACY_MAGIC or read_stream(stream) != _LEGACY_PROTOCOL:
        raise RefusedError("a plain pickle, which is not what torch.save writes")
    system = read_stream(stream)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise RefusedError("numbers in big-endian order")
    declared: dict[str, Storage] = {}
    root = read_stream(stream, declared)
    keys = read_stream(stream)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise RefusedError("no list of storages after the object graph")
    blocks: dict[str, bytes] = {}
    for key in keys:
        (numel,) = struct.unpack("<q", stream.read(8))
        if key not in declared:
            raise RefusedError(f"storage {key[:64]!r}, which no tensor uses, so that its length is unknown")
        length = numel * declared[key].dtype.itemsize
        if not 0 <= length <= len(content) - stream.tell():
            raise EOFError(f"storage {key[:64]} needs {length} bytes, {len(content) - stream.tell()} are left")
        blocks[key] = stream.read(length)

    def read(storage: Storage) -> bytes:
        if storage.key not in blocks:
            raise RefusedError(f"storage {storage.key} is missing")
        return blocks[storage.key]

    return TorchFile(root, read)
