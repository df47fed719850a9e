"""Safetensors files: written whole, with the same bytes for the same content, and read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from repq.files import in_utf8, replacing

_LENGTH = 8  # bytes of the header's length, and what the header is padded to (safetensors, "Format")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and text to ``path``.

    The library writes the metadata in an order that changes from run to run; here it is sorted, so that equal content
    has an equal hash.

    Raises:
        OSError: the file cannot be written.
        SafetensorError: a tensor cannot be stored.
    """
    data = save(dict(tensors), dict(metadata))
    end = _LENGTH + int.from_bytes(data[:_LENGTH], "little")
    header = json.loads(data[_LENGTH:end])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _LENGTH)
    with replacing(path) as beside:
        beside.write_bytes(len(text).to_bytes(_LENGTH, "little") + text + data[end:])


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The text and the tensors of a file.

    The tensors are copies: one that lies as in the file may not be aligned, and kernels then sum in another order.

    Raises:
        OSError: the file cannot be read.
        SafetensorError: it is truncated, or of another kind.
    """
    with in_utf8(path) as there, safe_open(there, framework="pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping)
        return file.metadata() or {}, tensors
