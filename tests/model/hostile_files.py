"""Checkpoint files that try to run something, or to use up memory or time."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def zip_checkpoint(path: Path, graph: bytes, storages: dict[str, bytes] | None = None, compress: bool = False) -> Path:
    """The container that torch.save writes, around any object graph."""
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("archive/data.pkl", graph)
        archive.writestr("archive/version", "3\n")
        for key, raw in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", raw)
    return path


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def name(module: str, attribute: str) -> bytes:
    """GLOBAL."""
    return f"c{module}\n{attribute}\n".encode()


def stack_name(module: str, attribute: str) -> bytes:
    """STACK_GLOBAL."""
    return text(module) + text(attribute) + b"\x93"


def call(callee: bytes, *arguments: bytes) -> bytes:
    """REDUCE."""
    return callee + b"(" + b"".join(arguments) + b"tR"


def new(callee: bytes, *arguments: bytes) -> bytes:
    """NEWOBJ."""
    return callee + b"(" + b"".join(arguments) + b"t\x81"


def mapping(**items: bytes) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def storage(key: str = "0", numel: int = 4, kind: str = "FloatStorage") -> bytes:
    return b"(" + text("storage") + name("torch", kind) + text(key) + text("cpu") + number(numel) + b"tQ"


def number(value: int) -> bytes:
    raw = value.to_bytes(9, "little", signed=True)
    return b"\x8a\x09" + raw


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(number(value) for value in values) + b"t"


def tensor(stored: bytes, offset: int, size: bytes, stride: bytes) -> bytes:
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    return call(rebuild, stored, number(offset), size, stride, b"\x89", call(name("collections", "OrderedDict")))


def stream(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def running(marker: Path) -> dict[str, bytes]:
    """Object graphs each of which creates ``marker`` when a careless reader loads it."""
    shell = text(f"touch {marker}")
    system = name("os", "system")
    touch = call(system, shell)
    opened = call(name("builtins", "open"), text(str(marker)), text("w"))
    node = new(name("yolov6.models.yolo", "Model"))
    python = text(f"open({str(marker)!r}, 'w').close()")
    ordered = call(name("collections", "OrderedDict"))
    ema = mapping(model=node + mapping(_parameters=ordered, _buffers=ordered, _modules=ordered) + b"b", ema=touch)
    return {
        "call of os.system": touch,
        "call of posix.system": call(name("posix", "system"), shell),
        "call of open": opened,
        "call of open in Python 2's name": call(name("__builtin__", "open"), text(str(marker)), text("w")),
        "call of eval": call(name("builtins", "eval"), python),
        "call of exec": call(name("builtins", "exec"), python),
        "call by STACK_GLOBAL": call(stack_name("os", "system"), shell),
        "dotted name below a module class": call(stack_name("torch.nn", "modules.module.os.system"), shell),
        "getattr": call(call(name("builtins", "getattr"), name("os", "path"), text("os")), shell),
        "import": call(name("builtins", "__import__"), text("antigravity")),
        "object made by NEWOBJ": new(name("subprocess", "Popen"), shell),
        "object made by INST": b"(" + shell + b"ios\nsystem\n",
        "object made by OBJ": b"(" + system + shell + b"o",
        "extension registry": b"\x82\xf0(" + shell + b"tR",
        "state of a module": node + mapping(_modules=touch) + b"b",
        "state that is a call": node + touch + b"b",
        "under ema": ema,
        "second key": mapping(epoch=number(1), optimizer=touch),
        "class of the detector with arguments": new(name("yolov6.models.yolo", "Model"), shell),
        "function of the detector": call(name("yolov6.utils.general", "download_ckpt"), shell),
        "function of torch.nn": call(name("torch.nn.modules.utils", "_pair"), shell),
        "attributes for a function": name("torch._utils", "_rebuild_tensor_v2") + mapping(__code__=touch) + b"b",
        "attributes for a class": name("torch.nn", "Module") + mapping(forward=system) + b"b",
        "hooks of a parameter": call(name("torch._utils", "_rebuild_parameter"), touch, b"\x88", ordered),
        "tensor of another type": call(name("torch._tensor", "_rebuild_from_type_v2"), system, node, shell, b"}"),
        "nested file": call(name("torch.storage", "_load_from_bytes"), b"C\x03abc"),
        "torch.load": call(name("torch", "load"), text(str(marker))),
        "torch.hub": call(name("torch.hub", "load"), text(str(marker))),
        "numpy array": call(name("numpy.core.multiarray", "_reconstruct"), system, b"(K\x00t", b"C\x01b"),
        "numpy.load": call(name("numpy", "load"), text(str(marker))),
        "numpy dtype of objects": call(
            name("numpy.core.multiarray", "scalar"), call(name("numpy", "dtype"), text("O8"))
        ),
        "codec that runs": call(name("_codecs", "encode"), text("x"), text("rot13")),
        "defaultdict": call(name("collections", "defaultdict"), system),
        "partial": call(call(name("functools", "partial"), system, shell)),
        "reconstructor": call(
            name("copyreg", "_reconstructor"), name("subprocess", "Popen"), name("builtins", "object")
        ),
        "storage of another class": b"(" + text("storage") + system + text("0") + text("cpu") + number(4) + b"tQ",
        "class as a reference": b"(" + text("module") + system + text("a.py") + text("code") + b"tQ",
        "reference that is a call": touch + b"Q",
    }


def exhausting() -> dict[str, bytes]:
    """Object graphs that ask for much more memory or time than their length is worth."""
    plain = numbers(4)
    return {
        "memo index of four thousand million": b"Nr\xff\xff\xff\xff0N",
        "text longer than the file": b"X\xff\xff\xff\x7fabc",
        "bytes longer than any memory": b"\x8e" + b"\xff" * 7 + b"\x7fabc",
        "number longer than the file": b"\x8b\xff\xff\xff\x7fabc",
        "decimal number of many digits": b"L" + b"9" * 100_000 + b"L\n",
        "very deep dictionary key": b"}" + b")" + b"\x85" * 200_000 + b"Ns",
        "large storage that is not there": mapping(a=tensor(storage("0", 2**40), 0, numbers(2**40), numbers(1))),
        "elements beyond the storage": mapping(a=tensor(storage(), 1, plain, numbers(1))),
        "negative offset": mapping(a=tensor(storage(), -1, plain, numbers(1))),
        "negative stride": mapping(a=tensor(storage(), 3, plain, numbers(-1))),
        "negative size": mapping(a=tensor(storage(), 0, numbers(-4, -1), numbers(1, 1))),
        "one number repeated for ever": mapping(a=tensor(storage(), 0, numbers(2**40), numbers(0))),
        "sizes without strides": mapping(a=tensor(storage(), 0, numbers(2, 2), numbers(1))),
        "storage with a path as its key": mapping(a=tensor(storage("../../version"), 0, plain, numbers(1))),
        "endless copying": text("x" * 100_000)
        + b"q\x000"
        + call(name("_codecs", "encode"), b"h\x00", text("latin1")) * 50,
        "shared modules, doubled forty times": _doubled_modules(40),
        "module that contains itself": _own_child(),
        "out-of-band buffer": b"\x97",
        "unknown operation": b"\xfe",
        "stack that runs empty": b"R",
        "no value at all": b"",
    }


def _doubled_modules(times: int) -> bytes:
    kind = name("torch.nn.modules.container", "Sequential")
    body = new(kind) + mapping(_modules=b"}") + b"bq\x01"
    for _ in range(times):
        body = body + b"0" + new(kind) + mapping(_modules=mapping(a=b"h\x01", b=b"h\x01")) + b"bq\x01"
    return body


def _own_child() -> bytes:
    return (
        new(name("torch.nn.modules.container", "Sequential")) + b"q\x01" + mapping(_modules=mapping(a=b"h\x01")) + b"b"
    )


class Touch:
    """A plain Python object whose unpickling creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def legacy_checkpoint(path: Path, graph: bytes, protocol: int = 2) -> Path:
    """The flat form from before torch 1.6, around any object graph."""
    content = io.BytesIO()
    for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True, "protocol_version": 1001, "type_sizes": {}}):
        pickle.dump(value, content, protocol)
    content.write(graph)
    pickle.dump([], content, protocol)
    path.write_bytes(content.getvalue())
    return path
