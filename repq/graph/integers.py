"""Where a Q/DQ graph holds integers: parameters of Q and DQ, and the operators that integers pass unchanged.

With ``f(x) = dequantize(quantize(x))``, one scale for the whole tensor:

- Concat, Reshape, Transpose, Split, Slice, nearest Resize … copy values, so ``f(op(x)) = op(f(x))``.
- ``f`` never decreases, so ``f(max(x)) = max(f(x))``: MaxPool. An average does not commute with rounding, so
  AveragePool, linear Resize and everything that computes are no such operators.

Source: NVIDIA TensorRT Developer Guide, "Working with Quantized Types", on commuting layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import TensorProto, helper

from repq.graph.surgeon import array, element_type, is_constant, is_output, producer
from repq.layers import CONVOLUTIONS, PRODUCTS

WEIGHTED_OPS = CONVOLUTIONS | PRODUCTS
VIEWS = frozenset({"Concat", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Unsqueeze"})
"""Operators that copy values and need no kernel: layers write to where they are read."""
COPYING = VIEWS | {"DepthToSpace", "MaxPool", "Resize", "SpaceToDepth", "Transpose"}


def copies_values(node: gs.Node) -> bool:
    """Whether all outputs of ``node`` hold values of its computed inputs (``value_slots``) only."""
    if node.op not in COPYING or any(is_constant(tensor) for tensor in values_of(node)):
        return False
    if node.op == "Resize":
        # tf_crop_and_resize fills the outside with a constant that would not be quantized
        cropped = node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize"
        return bool(node.attrs.get("mode", "nearest") == "nearest") and not cropped
    # of MaxPool, indices of the maximum may differ where rounding makes values equal
    return node.op != "MaxPool" or len(node.outputs) == 1


def value_slots(node: gs.Node) -> range:
    """The input slots of a copying operator that hold values; the others hold shapes, axes or sizes."""
    return range(len(node.inputs) if node.op == "Concat" else min(1, len(node.inputs)))


def values_of(node: gs.Node) -> list[gs.Tensor]:
    return [node.inputs[slot] for slot in value_slots(node)]


@dataclass(frozen=True)
class Parameters:
    """Scale, zero point and integer type of a tensor that is quantized as a whole; the float type does not matter."""

    scale: float
    zero_point: int
    dtype: str

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and largest value that the integers stand for."""
        limits = np.iinfo(self.dtype)
        return (int(limits.min) - self.zero_point) * self.scale, (int(limits.max) - self.zero_point) * self.scale

    @classmethod
    def covering(cls, several: list[Parameters]) -> Parameters:
        """Parameters of the narrowest range that holds all of ``several``.

        Symmetric: the largest scale. Else ``scale = (high - low) / 255`` over the union of the ranges, in UINT8 if
        any of them is.
        """
        widest = max(several, key=lambda parameters: parameters.scale)
        if all(p.zero_point == 0 and p.dtype == "int8" for p in several):
            return widest
        dtype = several[0].dtype if len({p.dtype for p in several}) == 1 else "uint8"
        limits = np.iinfo(dtype)
        low, high = min(p.range[0] for p in several), max(p.range[1] for p in several)
        steps = int(limits.max) - int(limits.min)
        scale = float(np.float32((high - low) / steps))
        zero_point = int(np.clip(np.rint(int(limits.min) - low / scale), limits.min, limits.max))
        return cls(scale, zero_point, dtype)


def parameters_of(node: gs.Node) -> Parameters | None:
    """Parameters of a Q or DQ node; None: they are computed or per channel, or their type is no integer of numpy's."""
    scale = array(node, 1)
    if scale is None or scale.size != 1:
        return None
    if len(node.inputs) < 3 or node.inputs[2].is_empty():
        kind = np.dtype(helper.tensor_dtype_to_np_dtype(quantized_type(node) or TensorProto.UINT8))
        return Parameters(float(scale.item()), 0, str(kind)) if np.issubdtype(kind, np.integer) else None
    zero_point = array(node, 2)
    if zero_point is None or zero_point.size != 1 or not np.issubdtype(zero_point.dtype, np.integer):
        return None
    return Parameters(float(scale.item()), int(zero_point.item()), str(zero_point.dtype))


def arriving_parameters(tensor: gs.Tensor) -> Parameters | None:
    """Parameters of the integers that ``tensor`` comes from, through operators that copy values.

    None: it is computed in float, or its parts have unequal parameters.
    """
    node = producer(tensor)
    if node is None:
        return None
    if node.op == "DequantizeLinear":
        return parameters_of(node)
    if not copies_values(node):
        return None
    sides = {arriving_parameters(side) for side in values_of(node)}
    return sides.pop() if len(sides) == 1 else None


def has_int8_weight(node: gs.Node) -> bool:
    """Whether ``node`` is a Conv, ConvTranspose, Gemm or MatMul whose weight is dequantized from integers of 8 bits."""
    return weight_type(node) in (TensorProto.INT8, TensorProto.UINT8)


def weight_type(node: gs.Node) -> int | None:
    """The ONNX type that the weight of a layer is dequantized from; None: it is not, or the node is no layer."""
    source = producer(node.inputs[1]) if node.op in WEIGHTED_OPS and len(node.inputs) > 1 else None
    return quantized_type(source) if source is not None and source.op == "DequantizeLinear" else None


def quantized_type(node: gs.Node) -> int:
    """The ONNX type that a Q node writes and a DQ node reads."""
    if len(node.inputs) > 2 and not node.inputs[2].is_empty():
        return element_type(node.inputs[2])
    if node.op == "QuantizeLinear":
        return int(node.attrs.get("output_dtype", 0)) or int(TensorProto.UINT8)
    source = producer(node.inputs[0])
    if source is not None and source.op == "QuantizeLinear":
        return quantized_type(source)
    return element_type(node.inputs[0])


def dequantized_constant(node: gs.Node) -> NDArray[Any]:
    """What a DequantizeLinear of constants gives: with one scale, one for each place of an axis, or one for a block."""
    scale = array(node, 1)
    assert scale is not None, "all inputs are constants"
    return np.asarray((without_zero_point(node) * _spread(node, scale)).astype(scale.dtype))


def without_zero_point(node: gs.Node) -> NDArray[np.float32]:
    """The numbers that a DequantizeLinear of constants multiplies by its scales."""
    values, zero_point = array(node, 0), array(node, 2)
    assert values is not None, "all inputs are constants"
    differences = values.astype(np.float32)
    return differences if zero_point is None else differences - _spread(node, zero_point)


def _spread(node: gs.Node, part: NDArray[Any]) -> NDArray[np.float32]:
    """Scales or zero points of a DequantizeLinear of constants, to compute with its values."""
    shape, axis, block = node.inputs[0].values.shape, node.attrs.get("axis", 1), node.attrs.get("block_size", 0)
    if block:
        part = np.repeat(part, block, axis)[tuple(map(slice, shape))]
    elif part.size > 1:
        part = part.reshape([-1 if place == axis % len(shape) else 1 for place in range(len(shape))])
    else:
        part = part.reshape([])
    return part.astype(np.float32)


def output_axis(node: gs.Node) -> int:
    """The axis of a layer's weight along which its output channels lie."""
    return 1 if node.op in ("ConvTranspose", "MatMul") or (node.op == "Gemm" and not node.attrs.get("transB", 0)) else 0


def has_scales_elsewhere(node: gs.Node) -> bool:
    """Whether a layer's weight is dequantized with scales of blocks, or along another axis than its output channels."""
    source = producer(node.inputs[1]) if node.op in WEIGHTED_OPS else None
    if source is None or source.op != "DequantizeLinear" or not all(map(is_constant, source.inputs)):
        return False
    weight, scale = source.inputs[0].values, source.inputs[1].values
    return bool(scale.size > 1 and (scale.ndim > 1 or source.attrs.get("axis", 1) % weight.ndim != output_axis(node)))


def has_unusable_scale(node: gs.Node) -> bool:
    """Whether a Q or DQ node has a scale that is not positive or not finite; weights of 0 may have the scale 0."""
    found = array(node, 1)
    if found is None:
        return False
    scale, stored = found.astype(np.float32), node.op == "DequantizeLinear" and is_constant(node.inputs[0])
    return not bool(np.all(np.isfinite(scale) & ((scale >= 0) if stored else (scale > 0))))


def is_int8_layer(node: gs.Node) -> bool:
    """Whether a layer reads integers on both sides."""
    return has_int8_weight(node) and arriving_parameters(node.inputs[0]) is not None


def is_integer_operator(node: gs.Node) -> bool:
    """Whether a node computes with integers by itself, as ONNX Runtime's forms have it, without Q and DQ around it."""
    return bool(node.op.startswith(("QLinear", "ConvInteger", "MatMulInteger", "DynamicQuantize")))


def quantized_value(tensor: gs.Tensor) -> gs.Tensor:
    """The tensor that ``tensor`` is a quantized or dequantized form of; ``tensor`` itself if it is neither."""
    while (node := producer(tensor)) is not None and node.op in ("QuantizeLinear", "DequantizeLinear"):
        tensor = node.inputs[0]
    return tensor


def quantizers(graph: gs.Graph) -> list[gs.Node]:
    """All Q and DQ nodes."""
    return [node for node in graph.nodes if node.op in ("QuantizeLinear", "DequantizeLinear")]


def activation_quantizers(graph: gs.Graph) -> list[gs.Node]:
    """The Q and DQ nodes of computed tensors."""
    return [node for node in quantizers(graph) if not is_constant(quantized_value(node.inputs[0]))]


@dataclass(frozen=True, eq=False)
class Pair:
    """A QuantizeLinear and its only reader, a DequantizeLinear with equal parameters: scale, zero point, types."""

    quantize: gs.Node
    dequantize: gs.Node
    key: tuple[Parameters, Any]

    @property
    def parameters(self) -> Parameters:
        return self.key[0]

    @property
    def source(self) -> gs.Tensor:
        return self.quantize.inputs[0]

    @property
    def result(self) -> gs.Tensor:
        return self.dequantize.outputs[0]


def activation_pairs(graph: gs.Graph) -> list[Pair]:
    """The Q/DQ pairs of computed tensors with one explicit, constant scale and zero point, in graph order."""
    pairs = []
    for quantize in graph.nodes:
        if quantize.op != "QuantizeLinear" or is_constant(quantize.inputs[0]):
            continue
        integers = quantize.outputs[0]
        if len(integers.outputs) != 1 or integers.outputs[0].op != "DequantizeLinear" or is_output(graph, integers):
            continue
        dequantize = integers.outputs[0]
        keys = [_key(node) for node in (quantize, dequantize)]
        if keys[0] is not None and keys[0] == keys[1]:
            pairs.append(Pair(quantize, dequantize, keys[0]))
    return pairs


def _key(node: gs.Node) -> tuple[Parameters, Any] | None:
    parameters = parameters_of(node) if array(node, 2) is not None else None
    return None if parameters is None else (parameters, node.inputs[1].dtype)
