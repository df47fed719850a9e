"""Reads an ONNX file of a detector and makes its layers what repq knows as layers.

Nothing in a file is run. What the graph computes stays; what changes is told: half precision becomes single, a batch
normalization behind a convolution is folded into it, and the weights of layers are named after them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import (
    AttributeProto,
    ModelProto,
    TensorProto,
    ValueInfoProto,
    checker,
    helper,
    inliner,
    numpy_helper,
    shape_inference,
    version_converter,
)  # fmt: skip

from repq.errors import GraphError, reason
from repq.layers import CONVOLUTIONS
from repq.model.onnx_graph.constants import Constants, wiring
from repq.model.onnx_graph.naming import name_layers
from repq.model.onnx_graph.operators import TORCH_TYPES
from repq.model.onnx_graph.program import opset_of, title, unknown_operators
from repq.onnx_file import (
    attributes_of,
    fix_inputs,
    given_inputs,
    metadata_of,
    read_model,
    refusing,
    set_apart,
    with_shapes,
)

OPSETS = (11, 24)
PER_CHANNEL = 13
QUANTIZED_OPS = frozenset({
    "QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger",
    "DynamicQuantizeLinear",
})  # fmt: skip
_HALF: dict[int, str] = {TensorProto.FLOAT16: "FP16", TensorProto.BFLOAT16: "BF16", TensorProto.DOUBLE: "FP64"}
_CONTROL = frozenset({"If", "Loop", "Scan", "SequenceMap"})
_OF_ONNX_RUNTIME = "com.microsoft"
"""What the domains of operators begin with that ONNX Runtime writes where it fuses."""


@dataclass(frozen=True, eq=False)
class GraphFile:
    """A graph that was read.

    Attributes:
        model: in float32, every layer's weight ``<LayerId>.weight`` and bias ``<LayerId>.bias``.
        input: name of the image input.
        imgsz: height and width of the input.
        metadata: what the file says about itself.
        notes: what was converted.
    """

    model: ModelProto
    input: str
    imgsz: tuple[int, int]
    metadata: dict[str, str]
    notes: tuple[str, ...]


def read_graph(path: Path, imgsz: tuple[int, int] | None = None) -> GraphFile:
    """Read a float detector.

    Args:
        imgsz: height and width, for a graph of any size.

    Raises:
        GraphError: the file cannot be read, or its graph cannot be quantized here; the message says why.
    """
    model, notes = _inlined(load(path), path)
    demand_float(model, path)
    if problems := _refusals(model):
        optimized = any(node.domain.startswith(_OF_ONNX_RUNTIME) for node in model.graph.node)
        fix = (
            "give the file as it was before ONNX Runtime optimized it" if optimized
            else "export the detector alone, with opset 11 to 24"
        )  # fmt: skip
        raise GraphError(f"{path.name} cannot be run as a torch model", found="; ".join(problems), fix=fix)
    with refusing(f"{path.name} is no valid ONNX model", "export it again", GraphError):
        model, changed = _up_to_date(model, path)
        notes += changed
        notes += _to_float32(model)
        notes += fix_inputs(model, imgsz)
        name, size = _image_input(model, path, imgsz)
        notes += _fold_batch_norms(model)
        notes += _fold_biases(model)
        notes += name_layers(model, path)
        notes += _check_shapes(model)
    return GraphFile(model, name, size, metadata_of(model), tuple(notes))


def load(path: Path) -> ModelProto:
    """Load and check a file with all its weights, in itself or beside it.

    Raises:
        GraphError: it cannot be read, or is no valid ONNX model.
    """
    return read_model(path, beside=True, error=GraphError)[0]


def demand_float(model: ModelProto, path: Path) -> None:
    """Refuse a graph that is quantized.

    Raises:
        GraphError: it is.
    """
    counts = Counter(node.op_type for node in model.graph.node if node.op_type in QUANTIZED_OPS)
    if counts:
        raise GraphError(
            f"{path.name} is quantized already",
            found=", ".join(f"{kind} ({count})" for kind, count in sorted(counts.items())),
            fix="give the float model that it was made from; `repq eval`, `lint` and `bench` take it as it is",
        )


def _refusals(model: ModelProto) -> list[str]:
    found: list[str] = []
    opset = opset_of(model)
    if not OPSETS[0] <= opset <= OPSETS[1]:
        found.append(f"opset {opset}, known are {OPSETS[0]} to {OPSETS[1]}")
    control = sorted({node.op_type for node in model.graph.node if node.op_type in _CONTROL})
    if control:
        found.append(f"control flow: {', '.join(control)}")
    unknown = [name for name in unknown_operators(model.graph) if name.split(" ")[0] not in _CONTROL]
    if unknown:
        found.append(f"operators that repq does not know: {', '.join(unknown)}")
    types = Counter(tensor.data_type for tensor in _all_tensors(model) if tensor.data_type not in TORCH_TYPES)
    if types:
        listed = (f"{TensorProto.DataType.Name(kind)} ({count})" for kind, count in sorted(types.items()))
        found.append(f"tensors of types that torch does not have: {', '.join(listed)}")
    if model.graph.sparse_initializer:
        found.append(f"sparse weights ({len(model.graph.sparse_initializer)})")
    if training := [title(node) for node in model.graph.node if attributes_of(node).get("training_mode", 0)
                    and node.op_type == "BatchNormalization"]:  # fmt: skip
        found.append(f"batch normalizations that were exported for training: {', '.join(training)}")
    return found


# --- the input -------------------------------------------------------------------------------------------------------


def _image_input(model: ModelProto, path: Path, imgsz: tuple[int, int] | None) -> tuple[str, tuple[int, int]]:
    inputs = given_inputs(model)
    shapes = [[max(d.dim_value, 0) or d.dim_param or "?" for d in v.type.tensor_type.shape.dim] for v in inputs]
    found = ", ".join(f"{value.name} {tuple(shape)}" for value, shape in zip(inputs, shapes, strict=True)) or "none"
    if len(inputs) != 1:
        raise GraphError(f"{path.name} needs exactly one input", found=found, fix="export the detector alone")
    shape = shapes[0]
    if len(shape) != 4 or (shape[1] not in (3, "?") and isinstance(shape[1], int)):
        raise GraphError(f"{path.name} takes no images (batch, 3, height, width)", found=found,
                         fix="export it for channels first")  # fmt: skip
    if isinstance(shape[0], int) and shape[0] != 1:
        raise GraphError(f"{path.name} takes {shape[0]} images at once", found=found,
                         fix="export it for a batch of 1, or of any size")  # fmt: skip
    if inputs[0].type.tensor_type.elem_type != TensorProto.FLOAT:
        raise GraphError(f"{path.name} takes no float images", found=found, fix="export it for float32 images")
    own = shape[2], shape[3]
    if imgsz is None:
        if isinstance(own[0], int) and isinstance(own[1], int):
            return inputs[0].name, (own[0], own[1])
        raise GraphError(f"{path.name} takes images of any size", found=found, fix="give --imgsz")
    if any(isinstance(side, int) and side != given for side, given in zip(own, imgsz, strict=True)):
        raise GraphError(f"{path.name} takes images of {own[0]}x{own[1]}", found=f"--imgsz {imgsz[0]}x{imgsz[1]}",
                         fix="give the model's own size, or export it again for this one")  # fmt: skip
    return inputs[0].name, imgsz


# --- functions --------------------------------------------------------------------------------------------------------


def _inlined(model: ModelProto, path: Path) -> tuple[ModelProto, list[str]]:
    """The nodes of the file's own functions in the place of their calls.

    Raises:
        GraphError: a function is damaged.
    """
    called = {(function.domain, function.name) for function in model.functions}
    count = sum((node.domain, node.op_type) in called for node in model.graph.node)
    if not count:
        return model, []
    with refusing(f"{path.name} is no valid ONNX model", "export it again without functions", GraphError):
        model = inliner.inline_local_functions(model, convert_version=True)
    set_apart(model.graph)
    used = {"", *(node.domain for node in model.graph.node)}
    for entry in [entry for entry in model.opset_import if entry.domain not in used]:
        model.opset_import.remove(entry)
    return model, [f"put the nodes of functions in the place of {count} calls"]


# --- types and versions ----------------------------------------------------------------------------------------------


def _up_to_date(model: ModelProto, path: Path) -> tuple[ModelProto, list[str]]:
    """At least opset 13, from which on weights can have a scale per channel; what the file says of shapes is dropped.

    Axes of length 0 or -1 are free, which is what some exporters mean by them; the file format is at least that which
    the opset needs, where weights are no inputs.

    Raises:
        GraphError: the graph cannot be converted.
    """
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if axis.HasField("dim_value") and axis.dim_value < 1:
                axis.ClearField("dim_value")
    oldest = helper.find_min_ir_version_for([helper.make_opsetid("", max(opset_of(model), PER_CHANNEL))])
    model.ir_version = max(model.ir_version, oldest)
    if (opset := opset_of(model)) >= PER_CHANNEL:
        return model, []
    try:
        converted = version_converter.convert_version(model, PER_CHANNEL)
    except RuntimeError as error:
        raise GraphError(
            f"{path.name} has opset {opset}, which has no scales per channel",
            found=reason(error),
            fix=f"export it with opset {PER_CHANNEL} or later",
        ) from None
    if not converted.metadata_props:
        converted.metadata_props.MergeFrom(model.metadata_props)
    return converted, [f"converted opset {opset} to {PER_CHANNEL}: scales per channel need it"]


def _to_float32(model: ModelProto) -> Iterator[str]:
    """Make every tensor of half or double precision one of single precision, in place."""
    kinds: set[str] = set()
    for tensor in _all_tensors(model):
        if tensor.data_type in _HALF:
            kinds.add(_HALF[tensor.data_type])
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i in _HALF and node.op_type in ("Cast", "EyeLike"):
                attribute.i = TensorProto.FLOAT
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        if value.type.tensor_type.elem_type in _HALF:
            kinds.add(_HALF[value.type.tensor_type.elem_type])
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    if kinds:
        yield f"converted {' and '.join(sorted(kinds))} to float32"


def _all_tensors(model: ModelProto) -> Iterator[TensorProto]:
    yield from model.graph.initializer
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t


def _check_shapes(model: ModelProto) -> Iterator[str]:
    """Check that all shapes fit together; what the file says of an output and is wrong is mended, in place."""
    try:
        checker.check_model(model, full_check=True)
        return
    except shape_inference.InferenceError:
        said = [_shape(value) for value in model.graph.output]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    found = {value.name: value for value in with_shapes(model).graph.output}
    for value, before in zip(model.graph.output, said, strict=True):
        value.CopyFrom(found[value.name])
        if (after := _shape(value)) != before:
            yield f"the output {value.name} is {after}, not {before} as the file says"
    checker.check_model(model, full_check=True)


def _shape(value: ValueInfoProto) -> tuple[int | str, ...]:
    return tuple(axis.dim_value or axis.dim_param or "?" for axis in value.type.tensor_type.shape.dim)


# --- folding ----------------------------------------------------------------------------------------------------------


def _fold_batch_norms(model: ModelProto) -> Iterator[str]:
    """Fold batch normalizations into the convolutions that they alone read, in place."""
    constants, folded = Constants(model), 0
    readers, makers = wiring(model)
    for node in [node for node in model.graph.node if node.op_type == "BatchNormalization"]:
        conv = makers.get(node.input[0])
        if conv is None or conv.op_type not in CONVOLUTIONS or readers[node.input[0]] != 1:
            continue
        weight = constants.value(conv.input[1])
        norm = [constants.value(name) for name in node.input[1:5]]
        bias = constants.value(conv.input[2]) if len(conv.input) > 2 and conv.input[2] else np.zeros(1, np.float32)
        if weight is None or bias is None or any(value is None for value in norm):
            continue
        scale, shift, mean, variance = (np.asarray(value, np.float64) for value in norm)
        groups = attributes_of(conv).get("group", 1)
        if conv.op_type == "ConvTranspose" and groups != 1:
            continue
        epsilon = attributes_of(node).get("epsilon", 1e-5)
        factor = scale / np.sqrt(variance + epsilon)
        view = (1, -1) if conv.op_type == "ConvTranspose" else (-1, 1)
        stem = node.output[0]
        for name, value in (
            (f"{stem}/folded_weight", weight * factor.reshape(*view, *(1,) * (weight.ndim - 2))),
            (f"{stem}/folded_bias", (bias - mean) * factor + shift),
        ):
            model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
        conv.input[:] = [conv.input[0], f"{stem}/folded_weight", f"{stem}/folded_bias"]
        conv.output[0] = node.output[0]
        model.graph.node.remove(node)
        folded += 1
    if folded:
        yield f"folded {folded} batch normalizations into the convolutions before them"


def _fold_biases(model: ModelProto) -> Iterator[str]:
    """Fold constants per channel into the biases of the convolutions that they are added to, in place."""
    constants, folded = Constants(model), 0
    readers, makers = wiring(model)
    for node in [node for node in model.graph.node if node.op_type == "Add"]:
        for own, other in (node.input, node.input[::-1]):
            conv, added = makers.get(own), constants.value(other)
            if conv is None or conv.op_type not in CONVOLUTIONS or len(conv.input) > 2 or readers[own] != 1:
                continue
            if added is None or added.ndim != 4 or added.shape != (1, added.shape[1], 1, 1):
                continue
            name = f"{node.output[0]}/folded_bias"
            weight = constants.value(conv.input[1])
            if weight is None or weight.ndim != 4 or conv.op_type == "ConvTranspose" or len(weight) != added.shape[1]:
                continue
            model.graph.initializer.append(numpy_helper.from_array(added.reshape(-1).astype(np.float32), name))
            conv.input.append(name)
            conv.output[0] = node.output[0]
            model.graph.node.remove(node)
            folded += 1
            break
    if folded:
        yield f"folded {folded} additions of constants into the convolutions before them"
