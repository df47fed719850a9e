"""The plain values that a checkpoint's pickle stream stands for, and the fixed table of what it may name and call.

A class of a network module becomes a :class:`Node`, a tensor a :class:`StoredTensor`. Nothing that a stream names is
imported; a call is answered by a function of this file or refused.

Source: the forms that ``torch.save`` and numpy's ``__reduce__`` write.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from repq.model.families import FAMILIES


def module_packages() -> tuple[str, ...]:
    """Packages whose classes become inert nodes: torch's own modules and what the families' checkpoints pickle."""
    return ("torch.nn", *(package for family in FAMILIES for package in family.packages))


class RefusedError(Exception):
    """The stream holds something that no checkpoint needs, or is malformed. Nothing of it was run."""


@dataclass(frozen=True)
class Name:
    """A dotted name in the stream; it is never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Node:
    """An object of a module class: the class's name and the attributes that were saved with it."""

    kind: Name
    state: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Storage:
    """A flat block of ``numel`` numbers that lies in the file under ``key``."""

    key: str
    dtype: torch.dtype
    numel: int

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class StoredTensor:
    """A strided view of a storage; it lies inside the storage and has no more elements than it."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(eq=False)
class _NumpyDtype:
    code: str
    order: str = "<"


# --- names and objects -----------------------------------------------------------------------------------------------


def admit(module: Any, name: Any) -> Name:
    if not isinstance(module, str) or not isinstance(name, str):
        raise RefusedError("a malformed pickle (a name that is no text)")
    found = Name(module, name)
    known = found in _REBUILDERS or found in _STORAGES or found in _INERT
    if not known and not _is_module_class(found):
        raise RefusedError(f"the name {str(found)[:120]!r}, which is neither a network module nor a tensor")
    return found


def _is_module_class(found: Name) -> bool:
    inside = any(found.module == package or found.module.startswith(package + ".") for package in module_packages())
    return inside and found.name.isidentifier() and all(part.isidentifier() for part in found.module.split("."))


def call(callee: Any, arguments: Any) -> Any:
    rebuild = _REBUILDERS.get(callee) if isinstance(callee, Name) else None
    if rebuild is None or not isinstance(arguments, tuple):
        raise RefusedError(f"a call of {_describe(callee)}")
    return rebuild(*arguments)


def new_node(kind: Any, arguments: Any) -> Node:
    if not (isinstance(kind, Name) and _is_module_class(kind)) or arguments != ():
        raise RefusedError(f"an object of {_describe(kind)} made with arguments, or of no network module")
    return Node(kind)


def _describe(value: Any) -> str:
    return repr(str(value)[:120]) if isinstance(value, Name) else f"a value of type {type(value).__name__}"


def set_state(target: Any, state: Any) -> Any:
    if isinstance(target, Node) and isinstance(state, dict):
        target.state.update(state)
    elif isinstance(target, _NumpyDtype) and isinstance(state, tuple) and len(state) > 1 and state[1] in tuple("<>|"):
        target.order = state[1]
    elif not (isinstance(target, dict) and isinstance(state, dict)):  # attributes of an OrderedDict: torch's _metadata
        raise RefusedError(f"saved attributes for an object of type {type(target).__name__}")
    return target


def _key(value: Any) -> Any:
    """A dictionary key or set member: a scalar or a short tuple of scalars.

    Hashing deeper nesting could recurse too far, and hashing the same long key again and again could take forever.
    """
    for scalar in value if isinstance(value, tuple) and len(value) <= 16 else (value,):
        short = isinstance(scalar, (str, bytes, float, type(None)))
        if not short and not (isinstance(scalar, int) and scalar.bit_length() <= 64):
            raise RefusedError(f"a dictionary key of type {type(value).__name__}")
    return value


def set_items(target: Any, items: list[Any]) -> Any:
    if not isinstance(target, dict) or len(items) % 2:
        raise RefusedError("a malformed pickle (dictionary items for something that is no dictionary)")
    target.update((_key(key), value) for key, value in zip(items[::2], items[1::2], strict=True))
    return target


def extend(target: Any, items: list[Any]) -> None:
    if not isinstance(target, list):
        raise RefusedError("a malformed pickle (list items for something that is no list)")
    target.extend(items)


def as_set(items: Any) -> set[Any]:
    return {_key(item) for item in items}


# --- tensors and scalars ---------------------------------------------------------------------------------------------


def _names(table: dict[str, Any]) -> dict[Name, Any]:
    return {Name(*path.rsplit(".", 1)): value for path, value in table.items()}


_STORAGE_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_STORAGES = _names(
    {f"{package}.{name}": dtype for package in ("torch", "torch.cuda") for name, dtype in _STORAGE_DTYPES.items()}
)
_INERT = _names({f"torch.{str(dtype).removeprefix('torch.')}": dtype for dtype in _STORAGE_DTYPES.values()})


def persistent(reference: Any) -> Storage | Name:
    """What ``torch.save`` keeps outside the pickle: storages, and (before torch 1.6) the classes of modules."""
    if not isinstance(reference, tuple) or len(reference) < 2:
        raise RefusedError("a reference outside the pickle that is no storage")
    kind, subject, *rest = reference
    if kind == "module" and isinstance(subject, Name) and _is_module_class(subject):
        return subject
    dtype = _STORAGES.get(subject) if isinstance(subject, Name) else None
    if kind != "storage" or dtype is None or len(rest) not in (3, 4):
        raise RefusedError("a reference outside the pickle that is no storage")
    key, _, numel, *view = rest
    if not isinstance(key, str) or not re.fullmatch(r"\w{1,64}", key, re.ASCII) or view not in ([], [None]):
        raise RefusedError("a storage with an unusable key or a view of another storage")
    if type(numel) is not int or numel < 0:
        raise RefusedError("a storage with an impossible size")
    return Storage(key, dtype, numel)


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> StoredTensor:
    """A view of ``storage``; the last index, offset + sum((size - 1) * stride), must lie inside it.

    Views that repeat elements (stride 0) are refused, since they could stand for any amount of memory.
    """
    if not isinstance(storage, Storage):
        raise RefusedError("a tensor without a storage")
    numbers = (offset, *size, *stride)
    if any(type(number) is not int or number < 0 for number in numbers) or len(size) != len(stride) or len(size) > 16:
        raise RefusedError("a tensor of impossible shape")
    elements, last = 1, offset
    for length, step in zip(size, stride, strict=True):
        elements *= length
        last += (length - 1) * step
    if elements and (last >= storage.numel or elements > storage.numel):
        raise RefusedError(f"a tensor of shape {tuple(size)} that reaches beyond its {storage.numel} stored numbers")
    return StoredTensor(storage, offset, tuple(size), tuple(stride))


def _rebuild_parameter(tensor: Any, *_: Any) -> StoredTensor:
    if not isinstance(tensor, StoredTensor):
        raise RefusedError("a parameter without a tensor")
    return tensor


def _ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
    return set_items({}, [item for key, value in pairs for item in (key, value)])


def _size(lengths: Any) -> tuple[Any, ...]:
    return tuple(lengths)


def _device(*description: Any) -> str:
    if any(type(part) not in (str, int) for part in description):
        raise RefusedError("a malformed device")
    return ":".join(str(part) for part in description)


def _latin_bytes(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise RefusedError("bytes in an unknown encoding")
    return text.encode("latin-1")


def _empty_bytes(*arguments: Any) -> bytes:
    if arguments:
        raise RefusedError("bytes made from something else")
    return b""


def _numpy_dtype(code: Any, *_: Any) -> _NumpyDtype:
    if not isinstance(code, str) or not re.fullmatch(r"[fiu][1248]|b1", code):
        raise RefusedError("a numpy type that is no number")
    return _NumpyDtype(code)


def _numpy_scalar(dtype: Any, raw: Any) -> Any:
    if not isinstance(dtype, _NumpyDtype) or not isinstance(raw, bytes) or len(raw) != int(dtype.code[1:]):
        raise RefusedError("a malformed numpy number")
    return np.frombuffer(raw, np.dtype(dtype.order + dtype.code))[0].item()


_REBUILDERS: dict[Name, Callable[..., Any]] = _names(
    {
        "torch._utils._rebuild_tensor": _rebuild_tensor,
        "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
        "torch._utils._rebuild_parameter": _rebuild_parameter,
        "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
        "torch.Size": _size,
        "torch.device": _device,
        "collections.OrderedDict": _ordered_dict,
        "builtins.set": as_set,
        "builtins.frozenset": as_set,
        "__builtin__.set": as_set,
        "__builtin__.frozenset": as_set,
        "builtins.bytes": _empty_bytes,
        "__builtin__.bytes": _empty_bytes,
        "_codecs.encode": _latin_bytes,
        "numpy.dtype": _numpy_dtype,
        "numpy.core.multiarray.scalar": _numpy_scalar,
        "numpy._core.multiarray.scalar": _numpy_scalar,
    }
)
