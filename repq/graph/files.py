"""Read and write ONNX files: one file, whole or not at all."""

from __future__ import annotations

from pathlib import Path

from onnx import ModelProto

from repq.errors import GraphError, reason
from repq.files import replacing
from repq.onnx_file import read_model


def save_onnx(path: Path, model: ModelProto) -> None:
    """Write ``model`` to ``path`` in one file; an interrupted write leaves no file and an older one untouched.

    Raises:
        GraphError: the folder cannot be written to.
    """
    path = Path(path)
    try:
        with replacing(path) as beside:
            beside.write_bytes(model.SerializeToString(deterministic=True))
    except OSError as error:
        raise GraphError(f"cannot write {path}", found=reason(error), fix="check the folder") from None


def load_onnx(path: Path, *, beside: bool = False) -> ModelProto:
    """Read and check an ONNX file that holds its weights itself.

    Args:
        beside: weights may lie in other files beside it.

    Raises:
        GraphError: the file is missing, no valid ONNX model, or keeps its weights elsewhere.
    """
    return read_model(Path(path), beside=beside, error=GraphError)[0]
