"""Reading ONNX files: what onnx, its checker and its look-ups raise on a damaged one is an error with a reason."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from graphlib import CycleError, TopologicalSorter
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repq.errors import EngineError, RepqError, reason
from repq.printable import printable
from repq.reading import MIB, read_bytes

if TYPE_CHECKING:
    from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

LIMIT = 4096 * MIB  # protobuf itself ends at 2 GiB


def read_model(path: Path, *, beside: bool, error: type[RepqError]) -> tuple[ModelProto, str]:
    """Read and check an ONNX file; return the model with all its weights, and its hash (`hash_model`).

    Every tensor in it can be turned into an array, and every input and output is a tensor of a known type. Nodes come
    behind what they read, which some exporters leave to the runtime, and no two have one name.

    Args:
        beside: weights may lie in other files beside it.

    Raises:
        RepqError: of class ``error``: the file cannot be read, is no ONNX model, invalid, or has weights elsewhere.
    """
    import onnx
    from onnx import helper, numpy_helper

    content = read_bytes(path, LIMIT, error=error)
    fix = "export it again, for example with `repq export`"
    if path.suffix.lower() != ".onnx":
        fix = "give an ONNX file; `repq export` makes one of a checkpoint"
    with refusing(f"{path} is no valid ONNX model", fix, error):
        model = onnx.load_model_from_string(content)
    if not model.graph.node or not model.graph.output:
        missing = "outputs" if model.graph.node else "nodes"
        raise error(f"{printable(path)} is no valid ONNX model", found=f"no graph with {missing}", fix=fix)
    if any(isinstance(text, bytes) for entry in model.metadata_props for text in (entry.key, entry.value)):
        raise error(f"{printable(path)} is no valid ONNX model", found="metadata that is no text in UTF-8", fix=fix)
    outside = _outside(model)
    if outside and not beside:
        raise error(
            f"{printable(path)} keeps weights in other files",
            found=f"{len(outside)} tensors, such as {outside[0].name}",
            fix="save it in one file: onnx.save(onnx.load(path), path)",
        )
    with refusing(f"{path} is no valid ONNX model", f"{fix}; weights in other files must lie beside it", error):
        places = _places(path, outside)  # which loading takes out of the model, and refuses where they are elsewhere
        onnx.load_external_data_for_model(model, str(path.parent))
        digest = _hash_with(content, places)
        set_apart(model.graph)
        if problem := _put_in_order(model.graph):
            raise error(f"{printable(path)} is no valid ONNX model", found=problem, fix=fix)
        onnx.checker.check_model(model)
        for tensor in _tensors(model.graph):
            numpy_helper.to_array(tensor)
        for value in (*model.graph.input, *model.graph.output):
            if kind := value.type.WhichOneof("value").removesuffix("_type").replace("tensor", ""):
                raise error(f"{printable(path)} takes or gives more than tensors", found=f"{value.name}: {kind}",
                            fix="export the detector alone, with tensors as inputs and outputs")  # fmt: skip
            helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    return model, digest


def companions(path: Path) -> list[Path]:
    """The files beside an ONNX file in which it keeps weights; none where it is no ONNX file."""
    return _companions(path, path.read_bytes())


def hash_model(path: Path) -> str:
    """SHA-256 of an ONNX file, together with that of the files in which it keeps weights.

    Raises:
        OSError: one of them cannot be read.
    """
    content = path.read_bytes()
    return _hash_with(content, _companions(path, content))


def unchanged(path: Path, sha256: str) -> Path:
    """The path of an ONNX file that was opened, which must still hold what it held then (`hash_model`).

    Raises:
        EngineError: it cannot be read, or holds something else.
    """
    try:
        found = hash_model(path)
    except OSError as problem:
        raise EngineError(f"cannot read {printable(path)}", found=reason(problem), fix="check the path") from None
    if found != sha256:
        raise EngineError(f"{printable(path)} is not what it was when it was opened", found="other content",
                          fix="open it again, and write other models to files of their own")  # fmt: skip
    return path


def _companions(path: Path, content: bytes) -> list[Path]:
    from onnx import ModelProto

    if b"location" not in content:  # what an entry on weights in another file begins with
        return []
    try:
        return _places(path, _outside(ModelProto.FromString(content)))
    except Exception:  # protobuf has a dozen: whoever loads it says what is wrong
        return []


def _outside(model: ModelProto) -> list[TensorProto]:
    """The tensors whose values lie in other files."""
    from onnx import TensorProto

    return [tensor for tensor in _tensors(model.graph) if tensor.data_location == TensorProto.EXTERNAL]


def _places(path: Path, outside: list[TensorProto]) -> list[Path]:
    names = {entry.value for tensor in outside for entry in tensor.external_data if entry.key == "location"}
    places = (path.parent / name for name in sorted(names))
    return [place for place in places if os.path.isfile(place)]  # noqa: PTH113 (Path's raises on a name too long)


def _hash_with(content: bytes, beside: list[Path]) -> str:
    digest = hashlib.sha256(content)
    for path in beside:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def given_inputs(model: ModelProto) -> list[ValueInfoProto]:
    """The inputs that a caller gives; files of old opsets list stored tensors as inputs, too."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in stored]


def attributes_of(node: NodeProto) -> dict[str, Any]:
    """The attributes of a node by name: texts as ``str``, several values as a list, tensors as arrays."""
    return {attribute.name: _attribute_value(attribute) for attribute in node.attribute}


def _attribute_value(attribute: AttributeProto) -> Any:
    from onnx import AttributeProto, helper, numpy_helper

    value = helper.get_attribute_value(attribute)
    if attribute.type == AttributeProto.TENSOR:
        return numpy_helper.to_array(value)
    if isinstance(value, bytes):
        return value.decode()
    return list(value) if attribute.type in (AttributeProto.INTS, AttributeProto.FLOATS) else value


def metadata_of(model: ModelProto) -> dict[str, str]:
    """What a file says of its model."""
    return {entry.key: entry.value for entry in model.metadata_props}


_OF_THE_IMAGE: dict[str, Callable[[int, int], tuple[int, int]]] = {
    "scale_factor": lambda height, width: (1, 1),
    "im_shape": lambda height, width: (height, width),
    "orig_target_sizes": lambda height, width: (width, height),
}
"""Inputs beside the image that say how it was scaled, or how large it was, of which boxes depend (PaddleDetection's
and RT-DETR's): what they are where boxes are to be in pixels of the network input."""


def fix_inputs(model: ModelProto, imgsz: tuple[int, int] | None = None) -> list[str]:
    """Make constants of the inputs that say how the image was scaled, in place; say which.

    Args:
        imgsz: height and width of the image input, where it is of any size; without it, such a graph stays as it is.
    """
    import numpy as np
    from onnx import helper, numpy_helper

    inputs = given_inputs(model)
    sides = [[axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in inputs]
    images = [shape[2:] for shape in sides if len(shape) == 4]
    if len(inputs) < 2 or len(images) != 1:
        return []
    height, width = (own if own > 0 else given for own, given in zip(images[0], imgsz or (0, 0), strict=True))
    if height < 1 or width < 1:
        return []
    notes = []
    for value, shape in zip(inputs, sides, strict=True):
        if value.name in _OF_THE_IMAGE and len(shape) == 2 and shape[0] < 2 and shape[1] in (0, 2):
            kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            constant = np.array([_OF_THE_IMAGE[value.name](height, width)], kind)
            model.graph.initializer.append(numpy_helper.from_array(constant, value.name))
            model.graph.input.remove(value)
            numbers = " ".join(map(str, constant[0].tolist()))
            notes.append(f"the input {value.name} became the constant {numbers}: boxes are in pixels of the input")
    return notes


_WITHOUT_INFERENCE = frozenset({"GroupNormalization"})
"""Operators that give the type and shape of what they read, which onnx (1.23) does not infer. Nor does it see that a
copy of a constant is one, such as of axes."""


def with_shapes(model: ModelProto, *, strict: bool = False) -> ModelProto:
    """A copy of a model that says type and shape of every tensor, as far as they follow from the nodes.

    Args:
        strict: what does not fit together is an error.

    Raises:
        onnx.shape_inference.InferenceError: it does not.
    """
    from onnx import helper, shape_inference

    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    constants = [node for node in model.graph.node if node.op_type == "Constant"]
    stored |= {node.output[0]: a.t for node in constants for a in node.attribute if a.name == "value"}
    stand_ins = {}
    for number, node in enumerate(model.graph.node):
        if node.op_type == "Identity" and node.input[0] in stored:
            stored[node.output[0]] = stored[node.input[0]]
            stand_ins[number] = helper.make_node("Constant", [], node.output, value=stored[node.input[0]])
        elif node.op_type in _WITHOUT_INFERENCE:
            stand_ins[number] = helper.make_node("Identity", node.input[:1], node.output)
    whole = model
    if stand_ins:
        whole = type(model)()
        whole.CopyFrom(model)
        for number, node in stand_ins.items():
            whole.graph.node[number].CopyFrom(node)
    found = shape_inference.infer_shapes(whole, check_type=strict, strict_mode=strict, data_prop=True)
    for number in stand_ins:
        found.graph.node[number].CopyFrom(model.graph.node[number])
    return found


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


def set_apart(graph: GraphProto) -> None:
    """Give nodes of one name different ones, in place: ONNX Runtime takes no others."""
    taken = {node.name for node in graph.node}
    seen = {""}
    for node in graph.node:
        if node.name in seen and node.name:
            node.name = next(name for number in count(1) if (name := f"{node.name}_{number}") not in taken)
            taken.add(node.name)
        seen.add(node.name)


def _put_in_order(graph: GraphProto) -> str | None:
    """Put every node behind those that it reads, in place; say what keeps it from that."""
    nodes = list(graph.node)
    makers = {name: number for number, node in enumerate(nodes) for name in node.output}
    reads = [list(_reads(node)) for node in nodes]
    given = {entry.name for entry in (*graph.input, *graph.initializer)}
    given |= {tensor.values.name for tensor in graph.sparse_initializer}
    for node in nodes:
        if lost := [name for name in node.input if name and name not in makers and name not in given]:
            return f"nothing gives {lost[0]!r}, which {node.name or node.op_type} reads"
    before = [[makers[name] for name in names if name in makers] for names in reads]
    if all(earlier < number for number, numbers in enumerate(before) for earlier in numbers):
        return None
    try:
        order = list(TopologicalSorter(dict(enumerate(before))).static_order())
    except CycleError as problem:
        return f"a circle through {nodes[problem.args[1][0]].name or nodes[problem.args[1][0]].op_type}"
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies[number] for number in order)
    return None


def _reads(node: NodeProto) -> Iterator[str]:
    """What a node reads, also the graphs in it."""
    yield from node.input
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
            for own in inner.node:
                yield from _reads(own)
            yield from (output.name for output in inner.output)


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Every tensor of a graph and of the graphs in its nodes."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors) if attribute.HasField("t") else attribute.tensors
            for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                yield from _tensors(inner)
