"""Small Q/DQ graphs with numbers of any type between Q and DQ."""

from __future__ import annotations

from itertools import product

import numpy as np
from onnx import ModelProto, TensorProto, helper
from small_graphs import graph, normal

FLOATS, NARROW, WIDE = ("FLOAT8E4M3FN", "FLOAT8E5M2"), ("INT4", "UINT4"), ("INT16", "UINT16")
EIGHT_BITS = ("INT8", "UINT8")
PAIRS = [*product((*FLOATS, "INT8"), (*FLOATS, *NARROW, *EIGHT_BITS)), *product(WIDE, ("INT8", "INT4"))]

BODY = """
q = QuantizeLinear(x, s, z)
d = DequantizeLinear(q, s, z)
wd = DequantizeLinear(w, ws, wz)
c = Conv<pads=[1,1,1,1]>(d, wd)
r = Relu(c)
q2 = QuantizeLinear(r, s, z)
d2 = DequantizeLinear(q2, s, z)
vd = DequantizeLinear(v, ws, wz)
e = Conv<pads=[1,1,1,1]>(d2, vd)
a = Add(e, r)
q3 = QuantizeLinear(a, s, z)
d3 = DequantizeLinear(q3, s, z)
y = Conv<pads=[1,1,1,1]>(d3, vd)
"""


def typed(activations: str, weights: str) -> ModelProto:
    """Two convolutions, a residual and a third one, with numbers of these types between Q and DQ."""
    of_x, of_w = (helper.tensor_dtype_to_np_dtype(TensorProto.DataType.Value(name)) for name in (activations, weights))
    steps = 3 if weights in NARROW else 60
    w, v = (np.clip(np.rint(normal(seed, 3, 3, 3, 3) * steps / 3), 0 if weights[0] == "U" else -steps, steps)
            .astype(of_w) for seed in (0, 1))  # fmt: skip
    constants = {"s": np.float32(0.05), "z": np.zeros((), of_x), "ws": np.float32(0.02), "wz": np.zeros((), of_w)}
    text = f"g (float[1,3,8,8] x) => (float[1,3,8,8] y) {{\n{BODY}\n}}"
    return graph(text, opset=21, **constants, w=w, v=v)
