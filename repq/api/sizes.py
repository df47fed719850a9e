"""The size at which a model works: its own, unless another is asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from repq.errors import RepqError
from repq.files import in_utf8
from repq.log import Log, quiet
from repq.printable import printable

Size = tuple[int, int]
KEY = "imgsz"
FALLBACK: Size = (640, 640)


def as_metadata(imgsz: Size) -> dict[str, str]:
    """What a checkpoint says of its size."""
    return {KEY: json.dumps(imgsz)}


def from_metadata(metadata: Mapping[str, str]) -> Size | None:
    """The size that a checkpoint says; None where it says none."""
    with suppress(KeyError, ValueError, TypeError):
        height, width = map(int, json.loads(metadata[KEY]))
        return (height, width) if 0 < height <= 8192 and 0 < width <= 8192 else None
    return None


def size_for(paths: Path | Sequence[Path], asked_for: Size | None, log: Log = quiet) -> Size:
    """Height and width in pixels for the models at these paths; what was not asked for is said.

    A graph or engine of another size than ``asked_for`` is refused where it is opened; of a checkpoint, which can work
    at any, both sizes are logged.

    Raises:
        RepqError: none is asked for, and an ONNX file takes any size and says none.
    """
    models = (paths,) if isinstance(paths, Path) else tuple(paths)
    if asked_for is None:
        return _said_size(models, log)
    for path in models:
        if path.suffix == ".safetensors" and (own := own_size(path)) not in (None, asked_for):
            log(f"{printable(path.name)} works at {_text(own)}; {_text(asked_for)} is asked for")
    return asked_for


def _said_size(models: Sequence[Path], log: Log) -> Size:
    """The size that the first of the models says that says one."""
    teller, own = next(((path, size) for path in models if (size := own_size(path)) is not None), (None, FALLBACK))
    if teller == models[0] or not models[0].exists():  # of one that is not there, who opens it says so
        return own
    silent = f"{printable(models[0].name)} does not say at which size it works"
    if teller is not None:
        log(f"{silent}: {_text(own)} is taken, as of {printable(teller.name)} (--imgsz)")
    elif free := [path.name for path in models if _takes_any_size(path)]:
        raise RepqError(f"{printable(free[0])} takes images of any size", fix="give --imgsz")
    elif models[0].is_file() and models[0].suffix != ".onnx":  # of one that cannot be read, who opens it says so
        log(f"{silent}: {_text(own)} is taken (--imgsz)")
    return own


def _text(size: Size | None) -> str:
    return "x".join(map(str, size or ()))


def own_size(path: Path) -> Size | None:
    """The size that a file says of itself, read without its weights; None: it says none, or cannot be read."""
    with suppress(RepqError, OSError):
        if path.suffix == ".safetensors" and path.is_file():
            from safetensors import SafetensorError, safe_open

            with suppress(SafetensorError), in_utf8(path) as there, safe_open(there, framework="numpy") as file:
                return from_metadata(file.metadata() or {})
        elif path.suffix == ".onnx" or path.is_dir():
            from repq.api.opening import said_size

            return said_size(path)
    return None


def _takes_any_size(path: Path) -> bool:
    from repq.api.opening import said_size

    with suppress(RepqError, OSError):
        return path.suffix == ".onnx" and said_size(path) is None
    return False
