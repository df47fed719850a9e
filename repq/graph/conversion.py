"""A graph that came from a file, with the opset and the batch that an export asks for."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import ModelProto, helper, version_converter

from repq.errors import GraphError, reason
from repq.onnx_file import with_shapes
from repq.recipe import ExportConfig

FP16_SCALES = 19
"""The opset from which on scales of Q/DQ may be FP16."""


def as_asked(
    model: ModelProto, config: ExportConfig, imgsz: tuple[int, int], shapes: Sequence[tuple[int, ...]]
) -> ModelProto:
    """The graph with at least the opset that was asked for or that FP16 needs, and with the batch that was asked for.

    Suppression inside needs to know how many rows there are, a letterbox how large its images get: a graph of any size
    becomes one of ``imgsz``. What nobody asked for stays as it is.

    Args:
        imgsz: height and width in pixels.
        shapes: of the outputs for one image of this size.

    Raises:
        GraphError: the graph cannot be converted, or is for another batch.
    """
    wanted = config.opset if "opset" in config.model_fields_set else 0
    wanted = max(wanted, FP16_SCALES if config.float16 else 0)
    if opset_of(model) < wanted:
        model = _converted(model, wanted)
    if config.nms is not None or config.preprocess.letterbox is not None:
        model = _of_size(model, imgsz, shapes)
    return _with_batch(model, config.batch) if "batch" in config.model_fields_set else model


def opset_of(model: ModelProto) -> int:
    """The version of ONNX's own operators; 0: there is none."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def batch_of(model: ModelProto) -> int | None:
    """The batch of the first input; None: it is free."""
    return model.graph.input[0].type.tensor_type.shape.dim[0].dim_value or None


def _converted(model: ModelProto, opset: int) -> ModelProto:
    try:
        converted = version_converter.convert_version(model, opset)
    except RuntimeError as error:
        raise GraphError(
            f"the graph cannot be converted from opset {opset_of(model)} to {opset}",
            found=reason(error), fix=f"export the float model again, with opset {opset}",
        ) from None  # fmt: skip
    if not converted.metadata_props:
        converted.metadata_props.MergeFrom(model.metadata_props)
    own = helper.make_opsetid("", opset_of(converted))  # a file may list domains that onnx does not know
    converted.ir_version = max(model.ir_version, helper.find_min_ir_version_for([own]))
    return converted


def _of_size(model: ModelProto, imgsz: tuple[int, int], shapes: Sequence[tuple[int, ...]]) -> ModelProto:
    """The graph for images of this height and width, whose outputs say how long all axes but the first are."""
    fixed = ModelProto()
    fixed.CopyFrom(model)
    wanted = zip((fixed.graph.input[0], *fixed.graph.output), ((1, 3, *imgsz), *shapes), strict=False)
    axes = [
        pair for value, shape in wanted for pair in zip(value.type.tensor_type.shape.dim[1:], shape[1:], strict=False)
    ]
    if all(axis.dim_value == size for axis, size in axes):
        return model
    for axis, size in axes:
        axis.dim_value = size
    del fixed.graph.value_info[:]
    return _inferred(fixed, f"the graph takes no images of {imgsz[0]}x{imgsz[1]}", "give another --imgsz")


def _inferred(model: ModelProto, what: str, fix: str) -> ModelProto:
    try:
        return with_shapes(model, strict=True)
    except onnx.shape_inference.InferenceError as error:
        raise GraphError(what, found=reason(error), fix=fix) from None


def _with_batch(model: ModelProto, batch: int | None) -> ModelProto:
    own = batch_of(model)
    if own == batch:
        return model
    if own is not None:
        asked = "a batch of any size" if batch is None else f"batches of {batch}"
        raise GraphError(f"the graph takes batches of {own} only", found=f"{asked} asked for",
                         fix="export the float model again, with a free batch axis")  # fmt: skip
    fixed = ModelProto()
    fixed.CopyFrom(model)
    axis = fixed.graph.input[0].type.tensor_type.shape.dim[0]
    free = axis.dim_param
    axis.dim_value = batch or 0
    del fixed.graph.value_info[:]
    for output in fixed.graph.output:
        for each in output.type.tensor_type.shape.dim:
            if free and each.dim_param == free:
                each.dim_value = batch or 0
    return _inferred(fixed, f"the graph takes no batch of {batch}", "leave its batch axis free")
