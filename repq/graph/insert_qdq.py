"""Q/DQ insertion: from a float graph and a scale table to an explicitly quantized graph.

Before::

    x ------------> Conv -> y
    W (float32) ---/

After, for every layer in the table::

    x -> QuantizeLinear -> DequantizeLinear -> Conv -> y
    W (INT8) ------------> DequantizeLinear --/

with ``QuantizeLinear(x) = clip(round_half_even(x / scale) + zero_point)``, ``DequantizeLinear(q) = (q - zero_point)
scale`` (ONNX, opset 19), and the integers of W found by the same equation, so that the file holds a quarter of the
bytes. One pair serves all layers that read one tensor with one scale. Biases, outputs and layers that are not in the
table stay float. TensorRT wants just this: inputs quantized, nothing between a convolution and its activation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from repq.errors import GraphError
from repq.graph.index import GraphIndex, remove_unused, sort_nodes
from repq.graph.layer_nodes import layer_nodes, weight_initializer
from repq.layers import LayerId
from repq.scales import LayerScales, TensorScale

_Key = tuple[str, bytes, bytes, str]


def insert_qdq(model: ModelProto, scales: Mapping[LayerId, LayerScales]) -> ModelProto:
    """Return a copy of ``model`` in which the layers of ``scales`` compute on quantized input and weight.

    A layer that is quantized already, with the same weight scale, stays as it is, so a second run changes nothing.

    Raises:
        GraphError: a layer of ``scales`` is not in the graph, its scales do not fit its weight, or it is quantized
            already with other scales.
    """
    result = ModelProto()
    result.CopyFrom(model)
    nodes = layer_nodes(result)
    unknown = [layer for layer in scales if layer not in nodes]
    if unknown:
        raise GraphError(
            "the scale table names layers that the graph does not have",
            found=", ".join(unknown[:20]),
            fix="use the scale table of this very model",
        )
    index = GraphIndex.of(result.graph)
    pairs: dict[_Key, str] = {}
    for layer, node in nodes.items():
        if layer not in scales or _is_quantized(index, layer, node, scales[layer].weight):
            continue
        _quantize_weight(result, index, layer, node, scales[layer].weight)
        scale = scales[layer].input
        key = (node.input[0], scale.scale.tobytes(), scale.zero_point.tobytes(), scale.dtype)
        if key not in pairs:
            pairs[key] = add_pair(result, node.input[0], f"{layer}.input", scale)
        node.input[0] = pairs[key]
    remove_unused(result.graph)
    sort_nodes(result.graph)
    return result


def quantized_integers(values: NDArray[np.float32], scale: TensorScale) -> NDArray[Any]:
    """``clip(round_half_even(values / scale) + zero_point)`` in ``scale.dtype``, per channel along ``scale.axis``."""
    shape = _broadcast_shape(values.ndim, scale)
    rounded = np.rint(values / scale.scale.reshape(shape)) + scale.zero_point.astype(np.float32).reshape(shape)
    return np.clip(rounded, scale.q_min, scale.q_max).astype(scale.dtype)


def _broadcast_shape(ndim: int, scale: TensorScale) -> tuple[int, ...]:
    return () if scale.axis is None else tuple(-1 if axis == scale.axis else 1 for axis in range(ndim))


def _is_quantized(index: GraphIndex, layer: LayerId, node: NodeProto, weight: TensorScale) -> bool:
    dequantize = index.producers.get(node.input[1])
    if dequantize is None:
        return False
    present = index.array(dequantize.input[1])
    if present is None or not np.array_equal(present, weight.scale):
        raise GraphError(f"the layer {layer} is quantized already, with other scales", fix="start from the float graph")
    return True


def _quantize_weight(model: ModelProto, index: GraphIndex, layer: LayerId, node: NodeProto, scale: TensorScale) -> None:
    name = weight_initializer(index, node)
    assert name is not None, "layer_nodes joined this layer through its weight"
    if len(index.uses_of(name)) > 1:
        raise GraphError(f"the weight of {layer} is read by other nodes too", fix="export the model again")
    tensor = index.initializers[name]
    values = numpy_helper.to_array(tensor)
    channels = None if scale.axis is None else values.shape[scale.axis]
    if scale.scale.shape != (() if channels is None else (channels,)):
        raise GraphError(
            f"the weight scales of {layer} do not fit its weight",
            found=f"scales of shape {scale.scale.shape} along axis {scale.axis} for a weight of {values.shape}",
            fix="use the scale table of this very model",
        )
    tensor.CopyFrom(numpy_helper.from_array(quantized_integers(values, scale), name))
    node.input[1] = _add_dequantize(model, name, name, scale)


def add_pair(model: ModelProto, tensor: str, name: str, scale: TensorScale) -> str:
    """Add Quantize and Dequantize of ``tensor`` and return the name of the dequantized tensor."""
    parameters = _add_parameters(model, name, scale)
    integers, result = f"{name}_quantized", f"{name}_dequantized"
    model.graph.node.extend(
        [
            helper.make_node("QuantizeLinear", [tensor, *parameters], [integers], f"{name}/QuantizeLinear"),
            helper.make_node("DequantizeLinear", [integers, *parameters], [result], f"{name}/DequantizeLinear"),
        ]
    )
    return result


def _add_dequantize(model: ModelProto, tensor: str, name: str, scale: TensorScale) -> str:
    inputs = [tensor, *_add_parameters(model, name, scale)]
    node = helper.make_node("DequantizeLinear", inputs, [f"{name}_dequantized"], f"{name}/DequantizeLinear")
    if scale.axis is not None:
        node.attribute.append(helper.make_attribute("axis", scale.axis))
    model.graph.node.append(node)
    return node.output[0]


def _add_parameters(model: ModelProto, name: str, scale: TensorScale) -> tuple[str, str]:
    values = {
        f"{name}_scale": scale.scale.astype(np.float32),
        f"{name}_zero_point": scale.zero_point.astype(scale.dtype),
    }
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), key) for key, v in values.items())
    first, second = values
    return first, second
