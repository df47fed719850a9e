"""From a Q/DQ graph to the integer operators that ONNX Runtime really runs in INT8 on a CPU.

ONNX Runtime fuses a convolution only if a QuantizeLinear follows it directly and is its only reader, and drops a Relu
in between only where the zero point is the smallest integer. A graph with Q/DQ on the inputs of its convolutions alone,
or with symmetric INT8, falls outside: its convolutions run in float, slower than the float model. Here, before::

    x -> Q -> DQ -> Conv -> Relu -> MaxPool -> Q -> DQ -> Conv -> …
    W (INT8) -> DQ --/

after::

    x -> Q -> QLinearConv -> Clip(min = zero point) -> MaxPool -> QLinearConv -> …

What makes it exact, with ``q(x) = clip(round(x / s) + z, 0, 255)``:

- INT8 with zero point z is UINT8 with zero point z + 128; ONNX Runtime's fast kernels take UINT8 activations.
- ``q`` never decreases, so ``q(max(x, 0)) = max(q(x), z)``: Relu becomes Clip, and vanishes where z is 0. MaxPool
  commutes likewise, and operators that copy values (Concat, Reshape …) commute with every function.
- A tensor that two readers want with two scales is convolved twice: cheaper than once in float. Each convolution has
  weights of its own: on x86 without dot product instructions ONNX Runtime makes them UINT8, and fails where two nodes
  share one initializer ("AddInitializedOrtValue Attempt to replace the existing tensor").

QLinearConv sums integers where float convolution rounds each sum, and its bias is an integer multiple of the product of
input and weight scale; so an output may differ from the Q/DQ graph by one quantization step where a value lies on the
edge. A convolution that somebody reads in float (a prediction layer, an addition) stays a float convolution, with its
dequantized weight stored; ConvTranspose has no integer kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

_MOVERS = frozenset({"MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Concat"})
"""Operators that commute with quantization and have a UINT8 kernel. Concat moves all its inputs, others the first."""

_BIAS_LIMIT = float(2**31 - 2**8)


@dataclass(frozen=True)
class _Params:
    """Per-tensor UINT8 quantization."""

    scale: float
    zero_point: int


@dataclass(frozen=True)
class _IntegerConv:
    """A convolution whose input and weight are quantized: (weight - 0) * scale[c], INT8, zero point 0."""

    node: onnx.NodeProto
    weight: NDArray[np.int8]
    scale: NDArray[np.float32]
    bias: NDArray[np.float32]

    def float_weight(self) -> NDArray[np.float32]:
        channels = 1 if self.node.op_type == "ConvTranspose" else 0
        shape = [-1 if axis == channels else 1 for axis in range(self.weight.ndim)]
        return (self.weight.astype(np.float32) * self.scale.reshape(shape)).astype(np.float32)


def lower(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of ``model`` whose quantized convolutions are integer ones where that is exact (see above).

    A graph without Q/DQ, or with subgraphs, comes back unchanged.
    """
    kinds = {node.op_type for node in model.graph.node}
    nested = any(a.HasField("g") or a.graphs for node in model.graph.node for a in node.attribute)
    if "DequantizeLinear" not in kinds or nested:
        return model
    # The first round shows which tensors are needed in float anyway: quantizing those is cheaper than convolving twice.
    needed_in_float = _Lowering(model, frozenset()).run().float_tensors
    return _Lowering(model, frozenset(needed_in_float)).run().result()


class _Lowering:
    """Emits the new graph in one walk; convolutions, Relu and movers wait until somebody asks for their result."""

    def __init__(self, model: onnx.ModelProto, needed_in_float: frozenset[str]) -> None:
        self._model = model
        self._needed_in_float = needed_in_float
        self._producers = {output: node for node in model.graph.node for output in node.output}
        self._initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self._constants: dict[str, onnx.TensorProto] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._integers: dict[tuple[str, _Params], str] = {}
        self._convs = {node.output[0]: conv for node in model.graph.node if (conv := self._integer_conv(node))}
        self._names: dict[str, int] = {}
        self.float_tensors: set[str] = set()

    def run(self) -> _Lowering:
        for node in self._model.graph.node:
            if not self._waits(node):
                self._emit_float(node)
        for output in self._model.graph.output:
            self._float(output.name)
        return self

    def result(self) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        used = {name for node in self._nodes for name in node.input}
        kept = [t for t in self._model.graph.initializer if t.name in used and t.name not in self._constants]
        del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
        model.graph.node.extend(self._nodes)
        model.graph.initializer.extend([*kept, *self._constants.values()])
        return model

    # --- the float side

    def _waits(self, node: onnx.NodeProto) -> bool:
        kind, output = node.op_type, node.output[0]
        if kind in _MOVERS or kind in {"Relu", "QuantizeLinear"}:
            return True
        return output in self._convs or self._pair(output) is not None or self._is_weight(node)

    def _is_weight(self, node: onnx.NodeProto) -> bool:
        return node.op_type == "DequantizeLinear" and node.input[0] in self._initializers

    def _float(self, tensor: str) -> str:
        """Make sure that the tensor exists in the new graph as it was in the old one."""
        node = self._producers.get(tensor)
        if node is not None and tensor not in self.float_tensors:
            self._emit_float(node)
        return tensor

    def _emit_float(self, node: onnx.NodeProto) -> None:
        self.float_tensors.update(node.output)
        pair = self._pair(node.output[0])
        if pair is not None:
            integers, params = self._quantized(*pair), pair[1]
            inputs = [integers, *self._pair_constants(params)]
            name = self._unique(node.name or node.output[0])
            self._nodes.append(helper.make_node("DequantizeLinear", inputs, node.output, name=name))
            return
        conv = self._convs.get(node.output[0])
        new = onnx.NodeProto()
        new.CopyFrom(node)
        new.name = self._unique(node.name or node.output[0])
        inputs = list(node.input)
        if conv is not None:
            inputs[1] = self._constant(f"{node.name}.weight", conv.float_weight())
        for tensor in inputs:
            self._float(tensor)
        del new.input[:]
        new.input.extend(inputs)
        self._nodes.append(new)

    # --- the integer side

    def _carried(self, tensor: str) -> tuple[str, _Params] | None:
        """The integers behind a float tensor that holds dequantized values, or None."""
        pair = self._pair(tensor)
        if pair is not None:
            return self._quantized(*pair), pair[1]
        node = self._producers.get(tensor)
        if node is None or not self._moves(node):
            return None
        parts = [self._carried(source) for source in self._value_inputs(node)]
        if None in parts or len({part[1] for part in parts if part}) != 1:
            return None
        params = next(part[1] for part in parts if part)
        return self._quantized(tensor, params), params

    def _quantized(self, tensor: str, params: _Params) -> str:
        """Name of the UINT8 tensor that holds the quantized values of a float tensor."""
        key = (tensor, params)
        if key not in self._integers:
            self._integers[key] = self._quantize(tensor, params)
        return self._integers[key]

    def _quantize(self, tensor: str, params: _Params) -> str:
        pair = self._pair(tensor)
        if pair is not None and pair[1] == params:
            return self._quantized(*pair)
        node = self._producers.get(tensor)
        if node is not None and self._moves(node):
            return self._move(node, params)
        rectified = node is not None and node.op_type == "Relu"
        source = node.input[0] if node is not None and rectified else tensor
        conv = self._convs.get(source)
        if conv is not None and not self._needed_in_float & {tensor, source}:
            integers = self._convolve(conv, params)
            if integers is not None:
                return self._clip(integers, params) if rectified and params.zero_point > 0 else integers
        inputs = [self._float(tensor), *self._pair_constants(params)]
        return self._append("QuantizeLinear", f"{tensor}_quantize", inputs)

    def _move(self, node: onnx.NodeProto, params: _Params) -> str:
        values = self._value_inputs(node)
        moved = [self._quantized(source, params) for source in values]
        others = [self._float(source) if source else "" for source in node.input[len(values) :]]
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        return self._append(node.op_type, node.name or node.output[0], [*moved, *others], **attributes)

    def _clip(self, integers: str, params: _Params) -> str:
        least = self._constant(f"zero_point_{params.zero_point}", np.uint8(params.zero_point))
        return self._append("Clip", f"{integers}_relu", [integers, least])

    def _convolve(self, conv: _IntegerConv, params: _Params) -> str | None:
        carried = self._carried(conv.node.input[0])
        if carried is None or conv.node.op_type != "Conv":
            return None
        integers, source = carried
        name = self._unique(conv.node.name)
        weight, scale = _room_for_bias(conv, source.scale)
        bias = np.rint(conv.bias.astype(np.float64) / (np.float64(source.scale) * scale)).astype(np.int32)
        inputs = [
            integers,
            *self._pair_constants(source),
            self._constant(f"{name}.weight_int8", weight),
            self._constant(f"{name}.weight_scale", scale),
            self._constant(f"{name}.weight_zero_point", np.zeros_like(scale, np.int8)),
            *self._pair_constants(params),
            self._constant(f"{name}.bias_int32", bias),
        ]
        attributes = {a.name: helper.get_attribute_value(a) for a in conv.node.attribute}
        output = f"{name}_uint8"
        self._nodes.append(helper.make_node("QLinearConv", inputs, [output], name=name, **attributes))
        return output

    # --- reading the old graph

    def _moves(self, node: onnx.NodeProto) -> bool:
        return (
            node.op_type in _MOVERS and len(node.output) == 1 and self._value_inputs(node)[0] not in self._initializers
        )

    def _value_inputs(self, node: onnx.NodeProto) -> list[str]:
        return list(node.input) if node.op_type == "Concat" else [node.input[0]]

    def _pair(self, tensor: str) -> tuple[str, _Params] | None:
        """Source and parameters of the Q/DQ pair that ends in ``tensor``; None if there is no whole, constant pair."""
        dequantize = self._producers.get(tensor)
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            return None
        quantize = self._producers.get(dequantize.input[0])
        if quantize is None or quantize.op_type != "QuantizeLinear":
            return None
        params = self._params(quantize)
        return (quantize.input[0], params) if params is not None and params == self._params(dequantize) else None

    def _params(self, node: onnx.NodeProto) -> _Params | None:
        if len(node.input) < 3 or any(name not in self._initializers for name in node.input[1:3]):
            return None
        scale, zero_point = (numpy_helper.to_array(self._initializers[name]) for name in node.input[1:3])
        if scale.size != 1 or scale.dtype != np.float32 or zero_point.dtype not in (np.int8, np.uint8):
            return None
        shift = 128 if zero_point.dtype == np.int8 else 0
        return _Params(float(scale.reshape(())), int(zero_point.reshape(())) + shift)

    def _integer_conv(self, node: onnx.NodeProto) -> _IntegerConv | None:
        if node.op_type not in {"Conv", "ConvTranspose"}:
            return None
        source = self._producers.get(node.input[1])
        if source is None or not self._is_weight(source):
            return None
        parts = [self._initializers.get(name) for name in source.input]
        if None in parts:
            return None
        weight, scale, *rest = (numpy_helper.to_array(part) for part in parts if part is not None)
        if weight.dtype != np.int8 or scale.dtype != np.float32 or any(part.any() for part in rest):
            return None
        axis = next((a.i for a in source.attribute if a.name == "axis"), 1)
        transposed = node.op_type == "ConvTranspose"
        if scale.size > 1 and axis % weight.ndim != (1 if transposed else 0):
            return None
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        channels = weight.shape[1] if transposed else weight.shape[0]
        bias = self._bias(node, channels * groups if transposed else channels)
        if bias is None:
            return None
        return _IntegerConv(node, weight, np.broadcast_to(scale.reshape(-1), (channels,)).copy(), bias)

    def _bias(self, node: onnx.NodeProto, channels: int) -> NDArray[np.float32] | None:
        if len(node.input) < 3 or not node.input[2]:
            return np.zeros(channels, np.float32)
        tensor = self._initializers.get(node.input[2])
        return numpy_helper.to_array(tensor).astype(np.float32) if tensor is not None else None

    # --- writing the new graph

    def _append(self, kind: str, name: str, inputs: list[str], **attributes: Any) -> str:
        unique = self._unique(name)
        output = f"{unique}_uint8"
        self._nodes.append(helper.make_node(kind, inputs, [output], name=unique, **attributes))
        return output

    def _unique(self, name: str) -> str:
        count = self._names[name] = self._names.get(name, 0) + 1
        return name if count == 1 else f"{name}/{count}"

    def _pair_constants(self, params: _Params) -> list[str]:
        scale = np.float32(params.scale)
        return [
            self._constant(f"scale_{scale.view(np.uint32):08x}", scale),
            self._constant(f"zero_point_{params.zero_point}", np.uint8(params.zero_point)),
        ]

    def _constant(self, name: str, values: NDArray | np.generic) -> str:
        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(np.asarray(values), name)
        return name


def _room_for_bias(conv: _IntegerConv, input_scale: float) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Weight and scale with coarser steps in channels whose bias would not fit 32 bits in units of both scales.

    Such a channel is all but dead: its weights are about 2**-31 of its bias, and so is what the coarser steps lose.
    """
    least = np.abs(conv.bias) / np.float32(_BIAS_LIMIT * input_scale)
    scale = np.maximum(conv.scale, least).astype(np.float32)
    shrink = (conv.scale / scale).reshape(-1, *[1] * (conv.weight.ndim - 1))
    return np.rint(conv.weight * shrink).astype(np.int8), scale
