r"""Q/DQ insertion: from a float graph and a scale table to an explicitly quantized graph.

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

A weight may be the sum of two INT8 tensors, coarse and fine. Then the layer is two convolutions on one input::

    x -> Q -> DQ -> Conv(DQ(W), b) -----> Add -> y
                \--> Conv(DQ(W_fine)) --/

A depthwise layer may have one input scale ``s_c`` per channel. The channels are then brought to one range first, and
the weight's scales take the factors back: an activation has one scale in the graph, which is all that TensorRT and ONNX
Runtime's integer convolution take. The factors often fuse into the activation function before them::

    x -> Mul(s / s_c) -> QuantizeLinear(s) -> DequantizeLinear(s) -> Conv -> y          s = max s_c
    W (INT8) -------------------------> DequantizeLinear(s_w s_c / s) --/
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
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
        if layer not in scales:
            continue
        scale, factors = scales[layer].input, _channel_factors(scales[layer].input)
        if _is_quantized(index, layer, node, scales[layer].weight.scale * factors):
            continue
        fine = scales[layer].fine
        residual = None if fine is None else _residual(index, node, scales[layer].weight)
        _quantize_weight(result, index, layer, node, scales[layer].weight, factors)
        key = (node.input[0], scale.scale.tobytes(), scale.zero_point.tobytes(), scale.dtype)
        if key not in pairs:
            tensor = node.input[0]
            if factors.size > 1:
                tensor = _add_factors(result, tensor, f"{layer}.input", np.reciprocal(factors))
                scale = TensorScale(scale.scale.max(), scale.zero_point.max(), scale.dtype)
            pairs[key] = add_pair(result, tensor, f"{layer}.input", scale)
        node.input[0] = pairs[key]
        if fine is not None and residual is not None:
            _add_fine(result, node, f"{layer}.fine", quantized_integers(residual, fine), fine, factors)
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


def _channel_factors(scale: TensorScale) -> NDArray[np.float32]:
    """``s_c / max s_c`` of an input with a scale per channel; 1 for any other."""
    if scale.axis is None:
        return np.ones((), np.float32)
    return np.asarray(scale.scale / scale.scale.max(), np.float32)


def _is_quantized(index: GraphIndex, layer: LayerId, node: NodeProto, weight: NDArray[np.float32]) -> bool:
    dequantize = index.producers.get(node.input[1])
    if dequantize is None:
        return False
    present = index.array(dequantize.input[1])
    if present is None or not np.array_equal(present, weight):
        raise GraphError(f"the layer {layer} is quantized already, with other scales", fix="start from the float graph")
    return True


def _quantize_weight(
    model: ModelProto, index: GraphIndex, layer: LayerId, node: NodeProto, scale: TensorScale, factors: NDArray[Any]
) -> None:
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
    node.input[1] = _add_dequantize(model, name, name, replace(scale, scale=scale.scale * factors))


def _residual(index: GraphIndex, node: NodeProto, scale: TensorScale) -> NDArray[np.float32]:
    """What rounding a weight to its coarse integers leaves of it."""
    values = numpy_helper.to_array(index.initializers[node.input[1]])
    steps = scale.scale.reshape(_broadcast_shape(values.ndim, scale))
    return np.asarray(values - quantized_integers(values, scale).astype(np.float32) * steps, np.float32)


def _add_fine(
    model: ModelProto, node: NodeProto, name: str, integers: NDArray[Any], scale: TensorScale, factors: NDArray[Any]
) -> None:
    """Add the convolution of the fine weight and sum both."""
    weight = f"{name}.weight"
    model.graph.initializer.append(numpy_helper.from_array(integers, weight))
    dequantized = _add_dequantize(model, weight, weight, replace(scale, scale=scale.scale * factors))
    output, coarse, fine = node.output[0], f"{node.output[0]}_coarse", f"{node.output[0]}_fine"
    node.output[0] = coarse
    second = NodeProto()
    second.CopyFrom(node)
    second.name = name
    del second.input[:], second.output[:]
    second.input.extend([node.input[0], dequantized])
    second.output.append(fine)
    model.graph.node.extend([second, helper.make_node("Add", [coarse, fine], [output], f"{name}/Add")])


def _add_factors(model: ModelProto, tensor: str, name: str, factors: NDArray[np.float32]) -> str:
    """Multiply each channel of ``tensor`` (B, C, H, W) and return the result's name."""
    constant, result = f"{name}_factors", f"{name}_scaled"
    model.graph.initializer.append(numpy_helper.from_array(factors.reshape(1, -1, 1, 1), constant))
    model.graph.node.append(helper.make_node("Mul", [tensor, constant], [result], f"{name}/Mul"))
    return result


def add_pair(model: ModelProto, tensor: str, name: str, scale: TensorScale) -> str:
    """Add Quantize and Dequantize of ``tensor`` and return the name of the dequantized tensor."""
    parameters = _add_parameters(model, name, scale)
    integers, result = f"{name}_quantized", f"{name}_dequantized"
    for kind, source, output in (("Quantize", tensor, integers), ("Dequantize", integers, result)):
        inputs, title = [source, *parameters], f"{name}/{kind}Linear"
        model.graph.node.append(helper.make_node(f"{kind}Linear", inputs, [output], title))
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
