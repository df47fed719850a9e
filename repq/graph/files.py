"""Read and write ONNX files: one file, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto

from repq.errors import GraphError
from repq.files import replacing


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
        raise GraphError(f"cannot write {path}", found=error.strerror or str(error), fix="check the folder") from None


def load_onnx(path: Path) -> ModelProto:
    """Read and check an ONNX file that holds its weights itself.

    Raises:
        GraphError: the file is missing, no ONNX model, invalid, or keeps its weights in other files.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise GraphError(f"cannot read {path}", found=error.strerror or str(error), fix="check the path") from None
    fix = "export the model again with `repq export`"
    try:
        model = onnx.load_from_string(content)
    except DecodeError as error:
        raise GraphError(f"{path} is no ONNX model", found=str(error) or "other content", fix=fix) from None
    if not model.graph.node:
        raise GraphError(f"{path} is no ONNX model", found="no graph with nodes", fix=fix)
    outside = [tensor.name for tensor in model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL]
    if outside:
        raise GraphError(
            f"{path} keeps weights in other files",
            found=f"{len(outside)} tensors, such as {outside[0]}",
            fix="save it in one file: onnx.save(onnx.load(path), path)",
        )
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        first_line = str(error).strip().splitlines()[0]
        raise GraphError(f"{path} is no valid ONNX model", found=first_line, fix=fix) from None
    return model
