"""Where a Q/DQ graph holds integers: the parameters of a Q or DQ, and which tensors reach a reader quantized."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto

from repq.graph.copying import copies_values, value_slots
from repq.graph.index import GraphIndex

WEIGHTED_OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


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


def parameters_of(node: NodeProto, index: GraphIndex) -> Parameters | None:
    """Parameters of a Q or DQ node; None: they are computed or per channel."""
    scale = _array(node, 1, index)
    if scale is None or scale.size != 1:
        return None
    if len(node.input) < 3 or not node.input[2]:  # ONNX: without a zero point the type is output_dtype, else UINT8
        chosen = next((a.i for a in node.attribute if a.name == "output_dtype"), 0)
        return Parameters(float(scale.item()), 0, "int8" if chosen == TensorProto.INT8 else "uint8")
    zero_point = _array(node, 2, index)
    if zero_point is None or zero_point.size != 1:
        return None
    return Parameters(float(scale.item()), int(zero_point.item()), str(zero_point.dtype))


def arriving_parameters(tensor: str, index: GraphIndex) -> Parameters | None:
    """Parameters of the integers that ``tensor`` comes from, through operators that copy values.

    None: it is computed in float, or its parts have unequal parameters.
    """
    producer = index.producers.get(tensor)
    if producer is None:
        return None
    if producer.op_type == "DequantizeLinear":
        return parameters_of(producer, index)
    if not copies_values(producer, index):
        return None
    sides = {arriving_parameters(producer.input[slot], index) for slot in value_slots(producer)}
    return sides.pop() if len(sides) == 1 else None


def has_int8_weight(node: NodeProto, index: GraphIndex) -> bool:
    """Whether ``node`` is a Conv, ConvTranspose, Gemm or MatMul whose weight is dequantized from integers."""
    if node.op_type not in WEIGHTED_OPS or len(node.input) < 2:
        return False
    producer = index.producers.get(node.input[1])
    return producer is not None and producer.op_type == "DequantizeLinear"


def is_int8_layer(node: NodeProto, index: GraphIndex) -> bool:
    """Whether a layer reads integers on both sides."""
    return has_int8_weight(node, index) and arriving_parameters(node.input[0], index) is not None


def _array(node: NodeProto, slot: int, index: GraphIndex) -> Any:
    return index.array(node.input[slot]) if len(node.input) > slot else None
