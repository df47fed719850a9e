"""Equal Q/DQ graphs that OpenVINO runs right and without zero points.

OpenVINO (seen with 2026.4) computes wrong sums where a Concat of signed INT8 activations feeds a convolution. The same
numbers as UINT8 come out right. So, with ``q(x) = clip(round(x / s), -128, 127)``, the symmetric pair becomes

- for values that are never negative (everything after Relu), before::

      Conv -> Relu -> Q (INT8, s, 0) -> DQ

  after::

      Conv -> Clip(0, 127 s) -> Q (UINT8, s, 0) -> DQ

  since ``q(x) = round(min(x, 127 s) / s)`` for x >= 0. No zero point is left to correct for, and Clip fuses into Conv.
- for others, Q/DQ with UINT8 and zero point 128, since ``q(x) + 128 = clip(round(x / s) + 128, 0, 255)``;
- unless only ConvTranspose reads it, directly: its kernel takes INT8, and no zero point.

Pairs that meet in a Concat get one form, so that it stays one tensor of integers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

_COPIES = frozenset(
    {"MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Resize", "Identity"}
)
_NEVER_NEGATIVE = frozenset({"Relu", "Sigmoid", "HardSigmoid", "Softmax", "Abs", "Exp", "Sqrt"})


@dataclass(frozen=True)
class _Pair:
    """A symmetric INT8 Q/DQ pair with one scale."""

    quantize: onnx.NodeProto
    dequantize: onnx.NodeProto
    scale: np.float32

    @property
    def source(self) -> str:
        return self.quantize.input[0]

    @property
    def result(self) -> str:
        return self.dequantize.output[0]


def lower(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of ``model`` with its symmetric activation pairs in UINT8, equal in every value (see above)."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = _Graph(result.graph)
    for group in graph.groups():
        if graph.only_transposed_convolutions_read(group):
            continue
        if all(graph.never_negative(pair.source) for pair in group):
            for pair in group:
                graph.clip_above(pair)
                graph.retype(pair, 0)
        else:
            for pair in group:
                graph.retype(pair, 128)
    graph.write()
    return result


class _Graph:
    """A graph with its pairs and who makes and reads each tensor."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        self._producers = {output: node for node in graph.node for output in node.output}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for tensor in node.input:
                self._readers.setdefault(tensor, []).append(node)
        self._outputs = {output.name for output in graph.output}
        self._pairs = {pair.result: pair for node in graph.node if (pair := self._pair(node)) is not None}
        self._clips: dict[str, onnx.NodeProto] = {}  # output of the QuantizeLinear that it stands before -> Clip
        self._constants: dict[str, onnx.TensorProto] = {}

    def groups(self) -> list[list[_Pair]]:
        """Pairs that meet in a Concat, directly or through operators that copy values; most are alone."""
        group_of = {result: {result} for result in self._pairs}
        for node in self._graph.node:
            if node.op_type != "Concat":
                continue
            met = [origin for origin in map(self._origin, node.input) if origin in group_of]
            if met:
                merged = set().union(*(group_of[result] for result in met))
                for result in merged:
                    group_of[result] = merged
        unique = {id(group): group for group in group_of.values()}
        return [[self._pairs[result] for result in self._pairs if result in group] for group in unique.values()]

    def only_transposed_convolutions_read(self, group: list[_Pair]) -> bool:
        """Whether the group is one pair that ConvTranspose alone reads and that does not come from a Concat."""
        if len(group) > 1:
            return False
        source = self._producers.get(group[0].source)
        readers = {reader.op_type for reader in self._readers.get(group[0].result, [])}
        return readers == {"ConvTranspose"} and (source is None or source.op_type != "Concat")

    def never_negative(self, tensor: str) -> bool:
        """Whether the operators before a tensor rule out negative values."""
        node = self._producers.get(tensor)
        if node is None:
            return False
        if node.op_type in _NEVER_NEGATIVE:
            return True
        if node.op_type == "Resize" and _text(node, "mode", "nearest") != "nearest":
            return False
        if node.op_type == "Concat":
            return all(self.never_negative(part) for part in node.input)
        if tensor in self._pairs:
            return self.never_negative(self._pairs[tensor].source)
        return node.op_type in _COPIES and self.never_negative(node.input[0])

    def retype(self, pair: _Pair, zero_point: int) -> None:
        """Make a pair UINT8 with this zero point."""
        name = f"uint8_zero_point_{zero_point}"
        self._constants[name] = numpy_helper.from_array(np.array(zero_point, np.uint8), name)
        for node in (pair.quantize, pair.dequantize):
            node.input[2] = name

    def clip_above(self, pair: _Pair) -> None:
        """Put Clip(0, 127 scale) before a pair, in place of the Relu there if nobody else reads that."""
        before = self._producers[pair.source]
        source = pair.source
        if before.op_type == "Relu" and len(self._readers[source]) == 1 and source not in self._outputs:
            source = before.input[0]
        limit = f"clip_{pair.scale.view(np.uint32):08x}"
        self._constants[limit] = numpy_helper.from_array(np.asarray(pair.scale * np.float32(127)), limit)
        self._constants["clip_zero"] = numpy_helper.from_array(np.float32(0).reshape(()), "clip_zero")
        output = f"{pair.quantize.name or pair.quantize.output[0]}_clip"
        self._clips[pair.quantize.output[0]] = helper.make_node(
            "Clip", [source, "clip_zero", limit], [output], name=output
        )
        pair.quantize.input[0] = output

    def write(self) -> None:
        """Put the new nodes and constants in place; drop what nobody reads any more."""
        nodes: list[onnx.NodeProto] = []
        for node in self._graph.node:
            clip = self._clips.get(node.output[0])
            nodes.extend([clip, node] if clip is not None else [node])
        read = {tensor for node in nodes for tensor in node.input} | self._outputs
        kept = []
        for node in nodes:
            if node.op_type != "Relu" or node.output[0] in read:
                copy = onnx.NodeProto()
                copy.CopyFrom(node)
                kept.append(copy)
        del self._graph.node[:]
        self._graph.node.extend(kept)
        self._graph.initializer.extend(self._constants.values())

    def _pair(self, dequantize: onnx.NodeProto) -> _Pair | None:
        quantize = self._producers.get(dequantize.input[0]) if dequantize.op_type == "DequantizeLinear" else None
        if quantize is None or quantize.op_type != "QuantizeLinear" or len(self._readers[quantize.output[0]]) != 1:
            return None
        scales = [self._symmetric_scale(node) for node in (quantize, dequantize)]
        return _Pair(quantize, dequantize, scales[0]) if scales[0] is not None and scales[0] == scales[1] else None

    def _symmetric_scale(self, node: onnx.NodeProto) -> np.float32 | None:
        if len(node.input) < 3 or any(name not in self._initializers for name in node.input[1:3]):
            return None
        scale, zero_point = (numpy_helper.to_array(self._initializers[name]) for name in node.input[1:3])
        if scale.size != 1 or scale.dtype != np.float32 or zero_point.dtype != np.int8 or zero_point.any():
            return None
        return np.float32(scale.reshape(()))

    def _origin(self, tensor: str) -> str:
        while tensor not in self._pairs and tensor in self._producers and self._producers[tensor].op_type in _COPIES:
            tensor = self._producers[tensor].input[0]
        return tensor


def _text(node: onnx.NodeProto, attribute: str, default: str) -> str:
    return next((a.s.decode() for a in node.attribute if a.name == attribute), default)
