"""Everything between Q and DQ, with 16-bit activations: what ONNX Runtime's provider for Qualcomm's QNN takes whole.

Before::

    x -> Q (INT8) -> DQ -> Conv -> y -> Sigmoid -> …
    W (INT8) ------> DQ --/

after::

    x -> Q (UINT16) -> DQ -> Conv -> Q (UINT16) -> DQ -> Sigmoid -> Q -> DQ -> …
    W (INT8) --------------> DQ --/

ONNX Runtime's own helpers for QNN write it: they know which types and scales its operators demand. They get repq's
integers of the weights with their scales, and the range of every tensor as calibration measured it. 16 bits leave the
weights' rounding alone as error, so the file is a little more exact than the simulation of INT8. The Concat of boxes
and scores at the end stays float: in one scale with pixels, scores would have steps of hundredths.

Source: ONNX Runtime, ``onnxruntime.quantization.execution_providers.qnn``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import ModelProto, TensorProto, helper

from repq.errors import GraphError
from repq.files import scratch_folder
from repq.graph.anchors import anchors_of
from repq.graph.integer_concat import restore_pairs
from repq.graph.integers import activation_pairs
from repq.graph.metadata import GraphMetadata, read_metadata
from repq.graph.surgeon import array, element_type, export_graph, import_graph, is_constant, redirect, title
from repq.log import without_warnings
from repq.onnx_file import metadata_of
from repq.recipe import PreprocessConfig

_LIMIT = 32768
_ROOM = 1.125
"""Rounded weights go beyond the maxima of the float model; of 16 bits there is a part to spare for that."""
Overrides = dict[str, list[dict[str, Any]]]


def lower(model: ModelProto) -> ModelProto:
    """Return a symmetric Q/DQ ``model`` with all its tensors in UINT16 and its weights in INT8 (see above).

    Raises:
        GraphError: it is not quantized, has a free axis, does not know its ranges, or holds the work of a service.
    """
    metadata = read_metadata(model)
    if metadata is None or metadata.precision != "int8" or not metadata.maxima:
        raise GraphError(
            "QNN needs INT8 weights and the range of every tensor",
            found="a graph without them",
            fix="quantize with --scheme symmetric, which measures the ranges, and export without --fp16",
        )
    if metadata.nms is not None or metadata.preprocess != PreprocessConfig():
        raise GraphError("QNN runs the network alone", fix="export without --nms and preprocessing inside")
    graph = import_graph(model, shapes=True)
    if any(isinstance(size, str) for size in graph.inputs[0].shape):
        raise GraphError(
            "QNN takes graphs of one size",
            found=f"the input {tuple(graph.inputs[0].shape)}",
            fix="export with --batch 1",
        )
    restore_pairs(graph)
    overrides = _float_weights(graph) | _ranges(graph, metadata)
    _drop_pairs(graph)
    joins = [title(tensor.inputs[0]) for tensor in graph.outputs if tensor.inputs and tensor.inputs[0].op == "Concat"]
    return _quantized(export_graph(graph), overrides, joins, model)


def _float_weights(graph: gs.Graph) -> Overrides:
    """Store every weight as what its integers stand for, in place; return its scales."""
    from onnxruntime.quantization import QuantType

    overrides: Overrides = {}
    for node in graph.nodes:
        integers, scale = (array(node, slot) for slot in (0, 1)) if node.op == "DequantizeLinear" else (None, None)
        if integers is None or scale is None:
            continue
        axis = node.attrs.get("axis", 1)
        shape = [-1 if place == axis else 1 for place in range(integers.ndim)] if scale.size > 1 else ()
        weight = node.inputs[0]
        weight.values = np.asarray(integers.astype(np.float32) * scale.reshape(shape), np.float32)
        rows: list[dict[str, Any]] = [
            {"quant_type": QuantType.QInt8, "scale": step, "zero_point": np.array(0, np.int8)}
            for step in scale.astype(np.float32).reshape(-1)
        ]
        if scale.size > 1:
            rows[0]["axis"] = axis
        overrides[weight.name] = rows
        redirect(node.outputs[0], weight)
    return overrides


def _ranges(graph: gs.Graph, metadata: GraphMetadata) -> Overrides:
    """The scale of every float tensor that the quantizer does not prescribe itself.

    Raises:
        GraphError: calibration did not see one of them.
    """
    anchors, bounds = anchors_of(graph), _bounds(graph)
    images = {tensor.name for tensor in graph.inputs}
    overrides: Overrides = {}
    for tensor in (*graph.inputs, *(output for node in graph.nodes for output in node.outputs)):
        node = tensor.inputs[0] if tensor.inputs else None
        if element_type(tensor) != TensorProto.FLOAT or (node is not None and _needs_none(node)):
            continue
        measured = metadata.maxima.get(anchors.get(tensor.name, ""))
        largest = bounds.get(tensor.name) if measured is None or tensor.name in images else measured
        if largest is None:
            raise GraphError(
                "the range of a tensor is not known at this size", found=tensor.name,
                fix="export for the size at which the model was quantized, or quantize it again at this one",
            )  # fmt: skip
        scale = np.float32((_ROOM * largest or 1.0) / (_LIMIT - 1))  # one that is always zero: as if its maximum were 1
        overrides[tensor.name] = [{"scale": np.asarray(scale), "zero_point": np.array(_LIMIT, np.uint16)}]
    return overrides


def _needs_none(node: gs.Node) -> bool:
    """Whether the helpers prescribe the scale of what a node writes, or it is no activation of the float graph."""
    return node.op in {"Sigmoid", "Tanh", "QuantizeLinear", "DequantizeLinear"} or all(map(is_constant, node.inputs))


def _bounds(graph: gs.Graph) -> Mapping[str, float]:
    """The largest magnitude of what layers read with a scale: of images, and of what only the quantized graph has."""
    return {pair.source.name: pair.parameters.range[1] for pair in activation_pairs(graph)}


def _drop_pairs(graph: gs.Graph) -> None:
    for pair in activation_pairs(graph):
        redirect(pair.result, pair.source)
    graph.cleanup(recurse_functions=False)


def _quantized(plain: ModelProto, overrides: Overrides, kept: list[str], like: ModelProto) -> ModelProto:
    """What ONNX Runtime's quantizer makes of a float graph with these scales; the rest as in ``like``.

    Args:
        kept: names of nodes that stay float.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize
    from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config

    known = {name for node in plain.graph.node for name in (*node.input, *node.output)}

    class OneImage(CalibrationDataReader):
        """It demands one, and takes no range from it: every tensor has its scale."""

        def __init__(self) -> None:
            shape = [max(axis.dim_value, 1) for axis in plain.graph.input[0].type.tensor_type.shape.dim]
            self._feeds = iter([{plain.graph.input[0].name: np.zeros(shape, np.float32)}])

        def get_next(self) -> dict[str, Any] | None:
            return next(self._feeds, None)

    with scratch_folder() as scratch:
        written = scratch / "qnn.onnx"
        with without_warnings():
            config = get_qnn_qdq_config(
                plain,
                OneImage(),
                activation_type=QuantType.QUInt16,
                weight_type=QuantType.QInt8,
                per_channel=True,
                init_overrides={name: rows for name, rows in overrides.items() if name in known},
                keep_removable_activations=True,
                nodes_to_exclude=kept,
            )
            quantize(plain, str(written), config)
        result = onnx.load(str(written))
    result.producer_name, result.producer_version = like.producer_name, like.producer_version
    helper.set_model_props(result, metadata_of(like))
    return result
