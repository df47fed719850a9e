"""Reading ONNX files: what onnx, its checker and its look-ups raise on a damaged one is an error with a reason."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from repq.errors import RepqError
from repq.printable import printable
from repq.reading import MIB, read_bytes

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, TensorProto

LIMIT = 4096 * MIB  # protobuf itself ends at 2 GiB


def read_model(path: Path, *, beside: bool, error: type[RepqError]) -> tuple[ModelProto, bytes]:
    """Read and check an ONNX file; return the model with all its weights, and the file's bytes.

    Every tensor in it can be turned into an array, and every input and output is a tensor of a known type.

    Args:
        beside: weights may lie in other files beside it.

    Raises:
        RepqError: of class ``error``: the file cannot be read, is no ONNX model, invalid, or has weights elsewhere.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    content = read_bytes(path, LIMIT, error=error)
    fix = "export it again, for example with `repq export`"
    with refusing(f"{path} is no valid ONNX model", fix, error):
        model = onnx.load_model_from_string(content)
    if not model.graph.node:
        raise error(f"{printable(path)} is no valid ONNX model", found="no graph with nodes", fix=fix)
    outside = [tensor.name for tensor in _tensors(model.graph) if tensor.data_location == TensorProto.EXTERNAL]
    if outside and not beside:
        raise error(
            f"{printable(path)} keeps weights in other files",
            found=f"{len(outside)} tensors, such as {outside[0]}",
            fix="save it in one file: onnx.save(onnx.load(path), path)",
        )
    with refusing(f"{path} is no valid ONNX model", f"{fix}; weights in other files must lie beside it", error):
        onnx.load_external_data_for_model(model, str(path.parent))
        onnx.checker.check_model(model)
        for tensor in _tensors(model.graph):
            numpy_helper.to_array(tensor)
        for value in (*model.graph.input, *model.graph.output):
            helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    return model, content


@contextmanager
def refusing(what: str, fix: str, error: type[RepqError]) -> Iterator[None]:
    """What onnx and onnx-graphsurgeon raise in the block says that a file is no good.

    They raise a dozen types, from protobuf's ``DecodeError`` to ``KeyError``, so that all are taken for that.

    Raises:
        RepqError: of class ``error``.
    """
    try:
        yield
    except (RepqError, MemoryError):
        raise
    except Exception as problem:
        text = (str(problem).strip().splitlines() or [""])[0]
        named = isinstance(problem, (ValueError, OSError)) or type(problem).__module__.split(".")[0] != "builtins"
        raise error(what, found=text if text and named else f"{type(problem).__name__} {text}", fix=fix) from None


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Every tensor of a graph and of the graphs in its nodes."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors) if attribute.HasField("t") else attribute.tensors
            for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                yield from _tensors(inner)
