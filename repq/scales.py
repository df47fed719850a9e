"""Quantization scales as plain values: the one definition that torch, ONNX and the engines share.

``q = clip(round_half_even(x / scale) + zero_point, q_min, q_max)`` and ``x' = (q - zero_point) * scale``
(ONNX operators QuantizeLinear and DequantizeLinear, opset 19).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from repq.layers import LayerId

IntegerType = Literal["int8", "uint8"]


@dataclass(frozen=True)
class TensorScale:
    """The scale of one tensor.

    Attributes:
        scale: float32, shape () per tensor or (C,) per channel; positive and finite.
        zero_point: integers of ``dtype``, the same shape as ``scale``; all zero in the symmetric scheme.
        dtype: ``int8`` (-128..127) or ``uint8`` (0..255).
        axis: the channel axis of a per-channel scale, else None.
    """

    scale: NDArray[np.float32]
    zero_point: NDArray[np.integer]
    dtype: IntegerType = "int8"
    axis: int | None = None

    @property
    def q_min(self) -> int:
        return int(np.iinfo(self.dtype).min)

    @property
    def q_max(self) -> int:
        return int(np.iinfo(self.dtype).max)


@dataclass(frozen=True)
class LayerScales:
    """The scales of one quantized layer: its input activation and its weight.

    ``fine`` is that of what rounding the weight leaves, if the layer runs as two.
    """

    input: TensorScale
    weight: TensorScale
    fine: TensorScale | None = None


ScaleTable = Mapping[LayerId, LayerScales]
