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
  commutes likewise, and operators that copy values (Concat, Reshape …) commute with every function. MaxPool of integers
  is fast after a QLinearConv only, where ONNX Runtime pools in NHWC; elsewhere it stays in float.
- A tensor that two readers want with two scales is convolved twice: cheaper than once in float. Each convolution has
  weights of its own: on x86 without dot product instructions ONNX Runtime makes them UINT8, and fails where two nodes
  share one initializer ("AddInitializedOrtValue Attempt to replace the existing tensor").

QLinearConv sums integers where float convolution rounds each sum, and its bias is an integer multiple of the product of
input and weight scale; so an output may differ from the Q/DQ graph by one quantization step where a value lies on the
edge. ConvTranspose has no integer kernel; one whose kernel is its stride s, as in upsampling, becomes a 1x1 convolution
to ``O s s`` channels whose values are put in their places in NHWC, as the kernel has them: whole rows of bytes move.

A convolution that somebody reads in float (a prediction layer, an addition, SiLU) stays a float convolution, with its
dequantized weight stored, unless it is among ``integer_sums``: then ConvInteger sums integers, and DequantizeLinear
makes floats of the sums, with the product of both scales. ONNX Runtime's ConvInteger multiplies weights by activations,
in this order, and its fast kernel takes UINT8 by INT8: weights are UINT8, and with ``signed_sums`` activations INT8.
With dot product instructions that takes half the time of the float convolution; without, it depends on the layer. In
NHWC a 1x1 convolution is a product by a matrix, which takes less time still.

A product by a stored matrix (MatMul, Gemm) becomes ONNX Runtime's own MatMulIntegerToFloat, which multiplies integers
and writes ``scale[c] sum + bias[c]`` in float. ONNX Runtime finds it by itself for a MatMul alone, not for one with a
bias.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from repq.graph.integer_concat import restore_pairs
from repq.graph.integer_shapes import widened
from repq.graph.integers import (
    COPYING,
    Pair,
    Parameters,
    activation_pairs,
    copies_values,
    dequantized_constant,
    has_scales_elsewhere,
    output_axis,
    values_of,
)
from repq.graph.layer_join import INTEGER_OPS
from repq.graph.surgeon import array, export_graph, import_graph, is_constant, producer, title
from repq.layers import CONVOLUTIONS, PLAIN_GEMM, PRODUCTS, has_defaults

_MOVERS = COPYING - {"DepthToSpace", "SpaceToDepth"}
"""Copying operators that have a UINT8 kernel."""

_BIAS_LIMIT = float(2**31 - 2**8)

_SIGNED, _UNSIGNED = np.array(0, np.int8), np.array(128, np.uint8)
"""Zero points of weights."""

_BLOCK_ROWS = (0, 1, 3, 2, 4)
"""From (N, H, W, rows of a block, rest) to (N, H, rows of a block, W, rest)."""

OF_SUMS = "/sums/"
"""Between the name of a convolution of ``integer_sums`` and that of a node which makes floats of its sums."""

OWN_DOMAIN = "com.microsoft"
"""Of ONNX Runtime's own operators."""


@dataclass(frozen=True, eq=False)
class _IntegerLayer:
    """A layer whose weight is quantized: (weight - 0) * scale[c], INT8, zero point 0."""

    node: gs.Node
    weight: NDArray[np.int8]
    scale: NDArray[np.float32]
    bias: NDArray[np.float32]

    def float_weight(self) -> NDArray[np.float32]:
        channels = output_axis(self.node)
        shape = [-1 if axis == channels else 1 for axis in range(self.weight.ndim)]
        return (self.weight.astype(np.float32) * self.scale.reshape(shape)).astype(np.float32)


def lower(
    model: onnx.ModelProto,
    *,
    every_cpu: bool = False,
    integer_sums: Collection[str] | None = (),
    signed_sums: bool = False,
) -> onnx.ModelProto:
    """Return ``model`` with its quantized layers as integer ones where that is exact (see above).

    A graph without Q/DQ, or with subgraphs, comes back unchanged.

    Args:
        every_cpu: write what a session as it is by default computes exactly on every CPU. There, sums of two products
            saturate at 16 bits on x86 without dot product instructions. So a layer whose weights are large enough for
            that stores them as UINT8 with zero point 128, which the exact kernel takes; it is slower on all CPUs.
        integer_sums: of `float_results`, those that sum integers; None: all of them.
        signed_sums: of these, activations are INT8 where a QuantizeLinear makes them: much faster on CPUs with dot
            product instructions. Without, such sums saturate.
    """
    sums = None if integer_sums is None else frozenset(integer_sums)
    lowered = _lowered(model, every_cpu, sums, signed_sums)
    return model if lowered is None else export_graph(lowered.result())


def float_results(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the convolutions that `lower` leaves in float though they could sum integers; grouped ones never pay."""
    lowered = _lowered(model, False, frozenset(), False)
    return () if lowered is None else tuple(lowered.float_results)


def saturates_without_dot_products(model: onnx.ModelProto) -> bool:
    """Whether a graph of `lower` holds integer sums that are exact only on CPUs with INT8 dot products."""
    zero_points = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    sums = (node for node in model.graph.node if node.op_type == "ConvInteger")
    return any(zero_points.get(node.input[2]) == onnx.TensorProto.INT8 for node in sums)


def with_unsigned_weights(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the layers of a graph of `lower` whose weights ``every_cpu`` stored as UINT8."""
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    layers = (node for node in model.graph.node if node.op_type in ("QLinearConv", "MatMulIntegerToFloat"))
    return tuple(node.name for node in layers if types[node.input[INTEGER_OPS[node.op_type]]] == onnx.TensorProto.UINT8)


def _lowered(
    model: onnx.ModelProto, every_cpu: bool, integer_sums: frozenset[str] | None, signed_sums: bool
) -> _Lowering | None:
    """What `lower` makes of a graph; None: it has no Q/DQ, or subgraphs."""
    graph = import_graph(model)
    if all(node.op != "DequantizeLinear" for node in graph.nodes) or any(graph.subgraphs()):
        return None
    restore_pairs(graph)
    # The first round shows which tensors are needed in float anyway: quantizing those is cheaper than convolving twice.
    first = _Lowering(graph, frozenset(), every_cpu, integer_sums, signed_sums).run()
    return _Lowering(graph, frozenset(first.float_tensors), every_cpu, integer_sums, signed_sums).run()


class _Lowering:
    """Emits the new graph in one walk; convolutions, Relu and movers wait until somebody asks for their result."""

    def __init__(
        self,
        graph: gs.Graph,
        needed_in_float: frozenset[str],
        every_cpu: bool,
        integer_sums: frozenset[str] | None,
        signed_sums: bool,
    ) -> None:
        self._graph = graph
        self._every_cpu, self._integer_sums, self._signed_sums = every_cpu, integer_sums, signed_sums
        self._needed_in_float = needed_in_float
        self._pairs = {pair.result.name: pair for pair in activation_pairs(graph) if _as_uint8(pair) is not None}
        self._layers = {node.outputs[0].name: layer for node in graph.nodes if (layer := _integer_layer(node))}
        self._convs = {name: layer for name, layer in self._layers.items() if layer.node.op in CONVOLUTIONS}
        self._tensors: dict[str, gs.Tensor] = {}
        self._constants: dict[str, gs.Constant] = {}
        self._nodes: list[gs.Node] = []
        self._integers: dict[tuple[str, Parameters], gs.Tensor] = {}
        self._names: dict[str, int] = {}
        self.float_tensors: set[str] = set()
        self.float_results: list[str] = []

    def run(self) -> _Lowering:
        for node in self._graph.nodes:
            if not self._waits(node):
                self._emit_float(node)
        for output in self._graph.outputs:
            self._float(output)
        return self

    def result(self) -> gs.Graph:
        ends = ([self._new(tensor) for tensor in side] for side in (self._graph.inputs, self._graph.outputs))
        inputs, outputs = ends
        graph = gs.Graph(self._nodes, inputs, outputs, name=self._graph.name, opset=self._graph.opset)
        graph.import_domains = self._graph.import_domains
        graph.head, graph.properties = self._graph.head, self._graph.properties
        domains = {entry.domain for entry in graph.head.opset_import}
        if any(node.domain == OWN_DOMAIN for node in self._nodes) and OWN_DOMAIN not in domains:
            graph.head.opset_import.add(domain=OWN_DOMAIN, version=1)
        return graph

    # --- the float side

    def _waits(self, node: gs.Node) -> bool:
        name = node.outputs[0].name
        return (
            self._moves(node)
            or node.op in {"Relu", "QuantizeLinear"}
            or name in self._convs
            or name in self._pairs
            or _is_weight(node)
        )

    def _float(self, tensor: gs.Tensor) -> gs.Tensor:
        """The tensor in the new graph as it was in the old one."""
        node = producer(tensor)
        if node is not None and tensor.name not in self.float_tensors:
            self._emit_float(node)
        return self._new(tensor)

    def _emit_float(self, node: gs.Node) -> None:
        self.float_tensors.update(tensor.name for tensor in node.outputs)
        pair, layer = self._pairs.get(node.outputs[0].name), self._layers.get(node.outputs[0].name)
        source = None if layer is None else self._carried_parameters(node.inputs[0])
        if layer is not None and source is not None and node.op in PRODUCTS:
            self._emit_product(layer, self._quantized(node.inputs[0], source), source)
            return
        if layer is not None and source is not None and node.op == "Conv" and node.attrs.get("group", 1) == 1:
            self.float_results.append(title(node))
            if self._integer_sums is None or title(node) in self._integer_sums:
                if _is_pointwise(layer):
                    self._emit_pointwise(layer, self._quantized(node.inputs[0], source), source)
                    return
                params = _signed(source) if self._signed_sums and not self._convolved(node.inputs[0]) else source
                self._emit_sums(layer, self._quantized(node.inputs[0], params), params)
                return
        if pair is not None:
            inputs = [self._quantized(pair.source, _uint8(pair)), *self._pair_constants(_uint8(pair))]
        else:
            inputs = list(node.inputs)
            if layer is not None:
                inputs[1] = self._constant(f"{title(node)}.weight", layer.float_weight())
            elif has_scales_elsewhere(node):  # ONNX Runtime 1.31 takes them for those of the output channels
                inputs[1] = self._constant(f"{title(node)}.weight", dequantized_constant(node.inputs[1].inputs[0]))
            inputs = [self._float(tensor) for tensor in inputs]
        outputs = [self._new(tensor) for tensor in node.outputs]
        name = self._unique(title(node))
        self._nodes.append(gs.Node(node.op, name, dict(node.attrs), inputs, outputs, domain=node.domain))

    def _emit_sums(self, conv: _IntegerLayer, integers: gs.Tensor, source: Parameters) -> None:
        """Emit the convolution of integers, and what makes floats of its sums."""
        name = self._unique(title(conv.node))
        _, zero_point = self._pair_constants(source)
        weight = self._constant(f"{name}.weight_integers", _integers_of(conv.weight, _UNSIGNED))
        inputs = [integers, weight, zero_point, self._constant("weight_zero_point", _UNSIGNED)]
        sums = self._add("ConvInteger", name, inputs, conv.node.attrs)
        scale = self._constant(f"{name}.sum_scale", np.float32(source.scale) * conv.scale)
        floats = gs.Variable(f"{name}_float") if conv.bias.any() else self._new(conv.node.outputs[0])
        if len(conv.scale) > 1:
            scaling = gs.Node("DequantizeLinear", f"{name}{OF_SUMS}scale", {"axis": 1}, [sums, scale], [floats])
        else:  # ONNX Runtime 1.31 moves a DequantizeLinear with one scale, and quantizes to UINT8 on the way
            cast = gs.Variable(f"{name}_cast")
            self._nodes.append(gs.Node("Cast", f"{name}{OF_SUMS}cast", {"to": onnx.TensorProto.FLOAT}, [sums], [cast]))
            scaling = gs.Node("Mul", f"{name}{OF_SUMS}scale", {}, [cast, scale], [floats])
        self._nodes.append(scaling)
        if conv.bias.any():
            bias = self._constant(f"{name}.bias_float", conv.bias.reshape(1, -1, *[1] * (conv.weight.ndim - 2)))
            outputs = [self._new(conv.node.outputs[0])]
            self._nodes.append(gs.Node("Add", f"{name}{OF_SUMS}bias", {}, [floats, bias], outputs))

    def _emit_pointwise(self, conv: _IntegerLayer, integers: gs.Tensor, source: Parameters) -> None:
        """Emit a convolution of single places as the product that it is in NHWC."""
        name, axes = self._unique(title(conv.node)), range(conv.weight.ndim)
        last, first = [0, *axes[2:], 1], [0, axes[-1], *axes[1:-1]]
        rows, product = gs.Variable(f"{name}_nhwc"), gs.Variable(f"{name}_product")
        matrix = conv.weight.reshape(conv.weight.shape[:2]).T
        outputs = [self._new(conv.node.outputs[0])]
        self._nodes.append(gs.Node("Transpose", f"{name}{OF_SUMS}nhwc", {"perm": last}, [integers], [rows]))
        self._add_product(name, replace(conv, weight=matrix), rows, source, product)
        self._nodes.append(gs.Node("Transpose", f"{name}{OF_SUMS}nchw", {"perm": first}, [product], outputs))

    def _emit_product(self, layer: _IntegerLayer, integers: gs.Tensor, source: Parameters) -> None:
        """Emit the integer product of a MatMul or Gemm."""
        matrix = layer.weight if output_axis(layer.node) else layer.weight.T
        name, output = self._unique(title(layer.node)), self._new(layer.node.outputs[0])
        self._add_product(name, replace(layer, weight=matrix), integers, source, output)

    def _add_product(
        self, name: str, layer: _IntegerLayer, integers: gs.Tensor, source: Parameters, output: gs.Tensor
    ) -> None:
        """Add the integer product that writes float, by a weight (C, O)."""
        weight, zero_points = self._stored(layer.weight, layer.scale.shape, layer.weight.T)
        scale, zero_point = self._pair_constants(source)
        inputs = [
            integers,
            self._constant(f"{name}.weight_integers", weight),
            scale,
            self._constant(f"{name}.weight_scale", layer.scale),
            zero_point,
            self._constant(f"{name}.weight_zero_point", zero_points),
        ]
        if layer.bias.any():
            inputs.append(self._constant(f"{name}.bias_float", layer.bias))
        self._nodes.append(gs.Node("MatMulIntegerToFloat", name, {}, inputs, [output], domain=OWN_DOMAIN))

    def _new(self, tensor: gs.Tensor) -> gs.Tensor:
        """The tensor of the new graph that has this tensor's name."""
        if tensor.is_empty():
            return gs.Variable.empty()
        return self._constants.get(tensor.name) or self._tensors.setdefault(tensor.name, tensor.copy())

    # --- the integer side

    def _carried_parameters(self, tensor: gs.Tensor) -> Parameters | None:
        """Those of the integers behind a float tensor that holds dequantized values; None: it does not."""
        pair = self._pairs.get(tensor.name)
        if pair is not None:
            return _uint8(pair)
        node = producer(tensor)
        if node is None or not self._moves(node):
            return None
        found = {self._carried_parameters(source) for source in values_of(node)}
        return found.pop() if len(found) == 1 else None

    def _quantized(self, tensor: gs.Tensor, params: Parameters) -> gs.Tensor:
        """The UINT8 tensor that holds the quantized values of a float tensor."""
        key = (tensor.name, params)
        if key not in self._integers:
            self._integers[key] = self._quantize(tensor, params)
        return self._integers[key]

    def _quantize(self, tensor: gs.Tensor, params: Parameters) -> gs.Tensor:
        pair = self._pairs.get(tensor.name)
        if pair is not None and _uint8(pair) == _unsigned(params):
            return self._quantized(pair.source, params)
        node = producer(tensor)
        if node is not None and self._moves(node) and (node.op != "MaxPool" or self._convolved(tensor)):
            return self._move(node, params)
        conv, rectified = self._convolution_behind(tensor)
        if conv is not None:
            integers = self._convolve(conv, params)
            if integers is not None:
                return self._clip(integers, params) if rectified and params.zero_point > 0 else integers
        return self._append(
            "QuantizeLinear", f"{tensor.name}_quantize", [self._float(tensor), *self._pair_constants(params)]
        )

    def _convolution_behind(self, tensor: gs.Tensor) -> tuple[_IntegerLayer | None, bool]:
        """The convolution, with or without a Relu, whose result the tensor is if nobody needs it in float."""
        node = producer(tensor)
        rectified = node is not None and node.op == "Relu"
        source = node.inputs[0] if node is not None and rectified else tensor
        needed = self._needed_in_float & {tensor.name, source.name}
        return (None if needed else self._convs.get(source.name)), rectified

    def _convolved(self, tensor: gs.Tensor) -> bool:
        """Whether any of the tensor's integers come out of a QLinearConv, which makes UINT8."""
        pair, node = self._pairs.get(tensor.name), producer(tensor)
        if pair is not None:
            return self._convolved(pair.source)
        if node is not None and self._moves(node):
            return any(map(self._convolved, values_of(node)))
        return self._convolution_behind(tensor)[0] is not None

    def _move(self, node: gs.Node, params: Parameters) -> gs.Tensor:
        values = values_of(node)
        moved = [self._quantized(source, params) for source in values]
        others = [self._float(source) for source in node.inputs[len(values) :]]
        return self._append(node.op, title(node), [*moved, *others], node.attrs)

    def _clip(self, integers: gs.Tensor, params: Parameters) -> gs.Tensor:
        least = self._constant(f"zero_point_{params.zero_point}", np.uint8(params.zero_point))
        return self._append("Clip", f"{integers.name}_relu", [integers, least])

    def _convolve(self, conv: _IntegerLayer, params: Parameters) -> gs.Tensor | None:
        source, block = self._carried_parameters(conv.node.inputs[0]), _block_size(conv)
        if source is None or (conv.node.op == "ConvTranspose" and block is None):
            return None
        integers, name = self._quantized(conv.node.inputs[0], source), self._unique(title(conv.node))
        size = self._size(conv.node.inputs[0])
        if block is not None:
            integers = self._add_conv(name, _unfolded(conv), integers, source, params, {})
            return self._spread(integers, name, block, conv.weight.shape[1], size)
        wide = widened(conv.weight, conv.node.attrs, size[1])
        if wide is None:
            return self._add_conv(name, conv, integers, source, params, conv.node.attrs)
        integers = self._in_nhwc(integers, f"{name}/together", [0, 0, -1, wide.weight.shape[1]])
        layer = replace(
            conv, weight=wide.weight, scale=np.tile(conv.scale, wide.outputs), bias=np.tile(conv.bias, wide.outputs)
        )
        integers = self._add_conv(name, layer, integers, source, params, wide.attributes)
        return self._in_nhwc(integers, f"{name}/apart", [0, 0, -1, len(conv.weight)])

    def _size(self, tensor: gs.Tensor) -> tuple[int | None, int | None]:
        """Height and width of a tensor (N, C, H, W), or of what it is the dequantized value of; None: not known."""
        pair = self._pairs.get(tensor.name)
        shapes = [
            known.shape for known in (tensor, *([] if pair is None else [pair.source])) if known.shape is not None
        ]
        known = next((shape for shape in shapes if len(shape) == 4), (None, None))
        height, width = (side if isinstance(side, int) else None for side in known[-2:])
        return height, width

    def _in_nhwc(self, integers: gs.Tensor, name: str, *shapes: list[int], perm: Sequence[int] = ()) -> gs.Tensor:
        """A tensor (N, C, H, W) in other shapes of NHWC, with a Transpose between two of them, and back."""
        found = self._append("Transpose", f"{name}/nhwc", [integers], {"perm": [0, 2, 3, 1]})
        for number, shape in enumerate(shapes):
            if number:
                found = self._append("Transpose", f"{name}/rows", [found], {"perm": list(perm)})
            wanted = self._constant("shape_" + "_".join(map(str, shape)), np.array(shape, np.int64))
            found = self._append("Reshape", f"{name}/shape", [found, wanted])
        return self._append("Transpose", f"{name}/nchw", [found], {"perm": [0, 3, 1, 2]})

    def _spread(
        self, integers: gs.Tensor, name: str, block: int, channels: int, size: tuple[int | None, int | None]
    ) -> gs.Tensor:
        """A tensor (N, block block channels, H, W) as (N, channels, block H, block W)."""
        if block == 1:
            return integers
        height, width = size
        if height is None or width is None:
            layout = {"blocksize": block, "mode": "DCR"}
            return self._append("DepthToSpace", f"{name}/DepthToSpace", [integers], layout)
        whole = [0, block * height, block * width, channels]
        return self._in_nhwc(integers, f"{name}/blocks", [0, 0, 0, block, block * channels], whole, perm=_BLOCK_ROWS)

    def _add_conv(
        self,
        name: str,
        conv: _IntegerLayer,
        integers: gs.Tensor,
        source: Parameters,
        params: Parameters,
        attributes: dict[str, Any],
    ) -> gs.Tensor:
        signed, scale = _room_for_bias(conv, source.scale)
        # the kernel of a depthwise convolution has sums of 32 bits
        depthwise = conv.weight.shape[:2] == (attributes.get("group", 1), 1)
        weight, zero_points = self._stored(signed, scale.shape, None if depthwise else np.moveaxis(signed, 1, -1))
        bias = np.rint(conv.bias.astype(np.float64) / (np.float64(source.scale) * scale)).astype(np.int32)
        inputs = [
            integers,
            *self._pair_constants(source),
            self._constant(f"{name}.weight_integers", weight),
            self._constant(f"{name}.weight_scale", scale),
            self._constant(f"{name}.weight_zero_point", zero_points),
            *self._pair_constants(params),
            self._constant(f"{name}.bias_int32", bias),
        ]
        return self._add("QLinearConv", name, inputs, attributes)

    def _stored(
        self, weight: NDArray[np.int8], channels: tuple[int, ...], products: NDArray[np.int8] | None
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """A weight as it is stored, and its zero points. ``products``: (O, …) in the order of the products' sum."""
        unsigned = self._every_cpu and products is not None and _may_saturate(products)
        zero_point = _UNSIGNED if unsigned else _SIGNED
        return _integers_of(weight, zero_point), np.full(channels, zero_point, zero_point.dtype)

    # --- writing the new graph

    def _moves(self, node: gs.Node) -> bool:
        return node.op in _MOVERS and len(node.outputs) == 1 and copies_values(node)

    def _append(
        self, kind: str, name: str, inputs: list[gs.Tensor], attributes: dict[str, Any] | None = None
    ) -> gs.Tensor:
        return self._add(kind, self._unique(name), inputs, attributes or {})

    def _add(self, kind: str, name: str, inputs: list[gs.Tensor], attributes: dict[str, Any]) -> gs.Tensor:
        output = gs.Variable(f"{name}_uint8")
        self._nodes.append(gs.Node(kind, name, dict(attributes), inputs, [output]))
        return output

    def _unique(self, name: str) -> str:
        count = self._names[name] = self._names.get(name, 0) + 1
        return name if count == 1 else f"{name}/{count}"

    def _pair_constants(self, params: Parameters) -> list[gs.Tensor]:
        scale, zero_point = np.float32(params.scale), np.array(params.zero_point, params.dtype)
        name = f"zero_point_{params.zero_point}" if params.dtype == "uint8" else f"zero_point_int8_{params.zero_point}"
        return [self._constant(f"scale_{scale.view(np.uint32):08x}", scale), self._constant(name, zero_point)]

    def _constant(self, name: str, values: NDArray[Any] | np.generic) -> gs.Tensor:
        return self._constants.setdefault(name, gs.Constant(name, np.asarray(values)))


def _integers_of(weight: NDArray[np.int8], zero_point: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray((weight.astype(np.int16) + zero_point).astype(zero_point.dtype))


def _may_saturate(products: NDArray[np.int8]) -> bool:
    """Whether the sum of a pair of neighbours, each multiplied by a number up to 255, can leave 16 bits.

    ``255 * 128`` fits, so the integers of one sign must add up to 128 at most. ONNX Runtime lays a weight
    (O, C, kH, kW) out as (O, kH, kW, C), and its kernels for x86 add products 2i and 2i + 1 of each output channel
    (Intel's instruction ``vpmaddubsw``).
    """
    rows = products.reshape(len(products), -1).astype(np.int32)
    pairs = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2))).reshape(len(rows), -1, 2)
    return bool(np.maximum(pairs.clip(min=0).sum(-1), -pairs.clip(max=0).sum(-1)).max(initial=0) > 128)


def _as_uint8(pair: Pair) -> Parameters | None:
    """The pair's parameters for UINT8. None: another type than INT8 and UINT8, or scales in FP16."""
    found = pair.parameters
    if found.dtype not in ("int8", "uint8") or pair.quantize.inputs[1].dtype != np.float32:
        return None
    return _unsigned(found)


def _unsigned(params: Parameters) -> Parameters:
    """INT8 with zero point z is UINT8 with zero point z + 128."""
    return params if params.dtype == "uint8" else Parameters(params.scale, params.zero_point + 128, "uint8")


def _signed(params: Parameters) -> Parameters:
    """UINT8 with zero point z is INT8 with zero point z - 128."""
    return Parameters(params.scale, params.zero_point - 128, "int8")


def _uint8(pair: Pair) -> Parameters:
    found = _as_uint8(pair)
    assert found is not None, "other pairs are not among the pairs of a lowering"
    return found


def _is_weight(node: gs.Node) -> bool:
    return node.op == "DequantizeLinear" and is_constant(node.inputs[0])


def _integer_layer(node: gs.Node) -> _IntegerLayer | None:
    source = producer(node.inputs[1]) if node.op in CONVOLUTIONS | PRODUCTS else None
    if source is None or not all(map(is_constant, source.inputs)) or not _is_weight(source):
        return None
    weight, scale, *rest = (tensor.values for tensor in source.inputs)
    if weight.dtype != np.int8 or scale.dtype != np.float32 or any(part.any() for part in rest):
        return None
    if node.op in PRODUCTS and (weight.ndim != 2 or not has_defaults(node.attrs, PLAIN_GEMM)):
        return None
    channel_axis = output_axis(node)
    if has_scales_elsewhere(node):
        return None
    channels = weight.shape[channel_axis]
    outputs = channels * node.attrs.get("group", 1) if node.op == "ConvTranspose" else channels
    bias: NDArray[np.float32] | None = np.zeros(outputs, np.float32)
    if len(node.inputs) > 2 and not node.inputs[2].is_empty():
        bias = array(node, 2)
    if bias is None or bias.shape != (outputs,):
        return None
    steps = np.broadcast_to(scale.reshape(-1), (channels,)).copy()
    return _IntegerLayer(node, weight, steps, bias.astype(np.float32))


def _block_size(conv: _IntegerLayer) -> int | None:
    """The stride of a ConvTranspose whose kernel is its stride, so that no two places of its input meet."""
    node, (height, width) = conv.node, conv.weight.shape[2:]
    plain = {"group": 1, "dilations": [1, 1], "pads": [0, 0, 0, 0], "output_padding": [0, 0], "auto_pad": "NOTSET"}
    if node.op != "ConvTranspose" or "output_shape" in node.attrs or height != width:
        return None
    if node.attrs.get("strides", [1, 1]) != [height, width]:
        return None
    return int(height) if has_defaults(node.attrs, plain) else None


def _is_pointwise(conv: _IntegerLayer) -> bool:
    """Whether a convolution looks at single places, and at all of them."""
    kernel = list(conv.weight.shape[2:])
    ones = [1] * len(kernel)
    plain = {"strides": ones, "pads": [0, 0] * len(kernel), "auto_pad": "NOTSET"}
    return kernel == ones and has_defaults(conv.node.attrs, plain)


def _unfolded(conv: _IntegerLayer) -> _IntegerLayer:
    """Such a ConvTranspose (C, O, s, s) as a convolution (s s O, C, 1, 1): a block's rows, columns and channels."""
    inputs, outputs, height, width = conv.weight.shape
    weight = conv.weight.transpose(2, 3, 1, 0).reshape(height * width * outputs, inputs, 1, 1)
    places = height * width
    return replace(conv, weight=weight, scale=np.tile(conv.scale, places), bias=np.tile(conv.bias, places))


def _room_for_bias(conv: _IntegerLayer, input_scale: float) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Weight and scale with coarser steps in channels whose bias would not fit 32 bits in units of both scales.

    Such a channel is all but dead: its weights are about 2**-31 of its bias, and so is what the coarser steps lose.
    """
    least = np.abs(conv.bias) / np.float32(_BIAS_LIMIT * input_scale)
    scale = np.maximum(conv.scale, least).astype(np.float32)
    scale[scale == 0] = 1  # weights of 0 without a bias
    shrink = (conv.scale / scale).reshape(-1, *[1] * (conv.weight.ndim - 1))
    return np.rint(conv.weight * shrink).astype(np.int8), scale
