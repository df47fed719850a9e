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
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import ModelProto

from repq.errors import GraphError
from repq.graph.layer_join import fine_part, layers_of, stored_weight
from repq.graph.propagation import add_pair
from repq.graph.surgeon import add_node, array, export_graph, import_graph, producer
from repq.layers import LayerId
from repq.scales import LayerScales, TensorScale


def insert_qdq(model: ModelProto, scales: Mapping[LayerId, LayerScales]) -> ModelProto:
    """Return ``model`` with the layers of ``scales`` computing on quantized input and weight.

    A layer that is quantized already, with the same weight scale, stays as it is, so a second run changes nothing.

    Raises:
        GraphError: a layer of ``scales`` is not in the graph, its scales do not fit its weight, or it is quantized
            already with other scales.
    """
    graph = import_graph(model)
    return export_graph(graph) if insert(graph, scales) else model


def insert(graph: gs.Graph, scales: Mapping[LayerId, LayerScales]) -> bool:
    """``insert_qdq`` in place; return whether it changed anything."""
    nodes = layers_of(graph)
    unknown = [layer for layer in scales if layer not in nodes]
    if unknown:
        raise GraphError(
            "the scale table names layers that the graph does not have",
            found=", ".join(unknown[:20]),
            fix="use the scale table of this very model",
        )
    pairs: dict[tuple[Any, ...], gs.Tensor] = {}
    changed = False
    for layer, node in nodes.items():
        if layer not in scales:
            continue
        scale, weight, fine = scales[layer].input, scales[layer].weight, scales[layer].fine
        factors = _channel_factors(scale)
        if _is_quantized(layer, node, weight.scale * factors):
            continue
        changed = True
        values = _quantize_weight(graph, layer, node, weight, factors)
        tensor = node.inputs[0]
        key = (tensor.name, scale.scale.tobytes(), scale.zero_point.tobytes(), scale.dtype)
        if key not in pairs:
            if factors.size > 1:
                tensor = _scale_channels(graph, tensor, f"{layer}.input", np.reciprocal(factors))
                scale = TensorScale(scale.scale.max(), scale.zero_point.max(), scale.dtype)
            pairs[key] = add_pair(graph, tensor, f"{layer}.input", _parameters(f"{layer}.input", scale))
        node.inputs[0] = pairs[key]
        if fine is not None:
            steps = weight.scale.reshape(_broadcast_shape(values.ndim, weight))
            residual = np.asarray(values - quantized_integers(values, weight).astype(np.float32) * steps, np.float32)
            _add_fine(graph, node, fine_part(layer), quantized_integers(residual, fine), fine, factors)
    return changed


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


def _is_quantized(layer: LayerId, node: gs.Node, weight: NDArray[np.float32]) -> bool:
    dequantize = producer(node.inputs[1])
    if dequantize is None:
        return False
    present = array(dequantize, 1)
    if present is None or not np.array_equal(present, weight):
        raise GraphError(f"the layer {layer} is quantized already, with other scales", fix="start from the float graph")
    return True


def _quantize_weight(
    graph: gs.Graph, layer: LayerId, node: gs.Node, scale: TensorScale, factors: NDArray[Any]
) -> NDArray[np.float32]:
    """Store a weight as integers; return what it was."""
    weight = stored_weight(node)
    assert weight is not None, "layers_of joined this layer through its weight"
    if len(weight.outputs) > 1:
        raise GraphError(f"the weight of {layer} is read by other nodes too", fix="export the model again")
    values = np.asarray(weight.values)
    channels = None if scale.axis is None else values.shape[scale.axis]
    if scale.scale.shape != (() if channels is None else (channels,)):
        raise GraphError(
            f"the weight scales of {layer} do not fit its weight",
            found=f"scales of shape {scale.scale.shape} along axis {scale.axis} for a weight of {values.shape}",
            fix="use the scale table of this very model",
        )
    weight.values = quantized_integers(values, scale)
    node.inputs[1] = _add_dequantize(graph, weight, replace(scale, scale=scale.scale * factors))
    return values


def _add_fine(
    graph: gs.Graph, node: gs.Node, name: str, integers: NDArray[Any], scale: TensorScale, factors: NDArray[Any]
) -> None:
    """Add the convolution of the fine weight and sum both."""
    weight = _add_dequantize(
        graph, gs.Constant(f"{name}.weight", integers), replace(scale, scale=scale.scale * factors)
    )
    output = node.outputs[0]
    coarse = gs.Variable(f"{output.name}_coarse", output.dtype, output.shape)
    node.outputs = [coarse]
    fine = add_node(graph, node.op, name, [node.inputs[0], weight], f"{output.name}_fine", **node.attrs)
    graph.nodes.append(gs.Node("Add", f"{name}/Add", {}, [coarse, fine], [output]))


def _scale_channels(graph: gs.Graph, tensor: gs.Tensor, name: str, factors: NDArray[np.float32]) -> gs.Tensor:
    """Multiply each channel of ``tensor`` (B, C, H, W)."""
    constant = gs.Constant(f"{name}_factors", factors.reshape(1, -1, 1, 1))
    return add_node(graph, "Mul", f"{name}/Mul", [tensor, constant], f"{name}_scaled")


def _add_dequantize(graph: gs.Graph, weight: gs.Constant, scale: TensorScale) -> gs.Tensor:
    inputs, name = [weight, *_parameters(weight.name, scale)], weight.name
    axis = {} if scale.axis is None else {"axis": scale.axis}
    return add_node(graph, "DequantizeLinear", f"{name}/DequantizeLinear", inputs, f"{name}_dequantized", **axis)


def _parameters(name: str, scale: TensorScale) -> list[gs.Tensor]:
    return [
        gs.Constant(f"{name}_scale", np.asarray(scale.scale, np.float32)),
        gs.Constant(f"{name}_zero_point", np.asarray(scale.zero_point, scale.dtype)),
    ]
