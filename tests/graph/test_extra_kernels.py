"""The kernel estimate on small graphs, each with the one reason that it is about."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from graph_views import predict_extra_kernels
from small_graphs import graph, normal

from repq.graph import count_qdq

CONSTANTS = {
    "s": np.float32(0.03),
    "t": np.float32(0.05),
    "z": np.int8(0),
    "w8": np.clip(np.rint(normal(0, 4, 4, 1, 1) * 40), -127, 127).astype(np.int8),
    "v8": np.clip(np.rint(normal(1, 4, 8, 1, 1) * 40), -127, 127).astype(np.int8),
    "w32": normal(2, 4, 4, 1, 1),
    "gains": np.array([1, 0.5, 0.2, 1], np.float32).reshape(1, 4, 1, 1),
    "axes": np.array([2, 3]),
}
INT8_CONV = "wd = DequantizeLinear(w8, s, z)\n"


def kernels(body: str, outputs: str = "float[1,4,8,8] y") -> Counter:
    text = f"g (float[1,4,8,8] x) => ({outputs}) {{\n{body}\n}}"
    names = {name: value for name, value in CONSTANTS.items() if f"{name}," in body or f"{name})" in body}
    found = predict_extra_kernels(graph(text, **names))
    return Counter((kernel.kind, kernel.cause) for kernel in found)


def pair(tensor: str, result: str, scale: str = "s") -> str:
    return f"q_{result} = QuantizeLinear({tensor}, {scale}, z)\n{result} = DequantizeLinear(q_{result}, {scale}, z)\n"


INPUT = ("quantize", "network input")
START = INT8_CONV + pair("x", "d") + "c = Conv(d, wd)\nr = Relu(c)\n"


def test_a_chain_of_int8_layers_costs_only_its_entrance() -> None:
    assert kernels(START + pair("r", "e") + "y = Conv(e, wd)") == {INPUT: 1}


def test_a_float_reader_makes_the_quantizer_a_kernel() -> None:
    body = START + pair("r", "e") + "o = Conv(e, wd)\ny = Add(o, r)"
    assert kernels(body) == {INPUT: 1, ("quantize", "float reader"): 1}
    assert kernels(body.replace("Add(o, r)", "Add(o, e)")) == {INPUT: 1}


def test_a_layer_that_stays_in_float_makes_it_one_that_no_placement_saves() -> None:
    body = START + pair("r", "e") + "o = Conv(e, wd)\np = Conv(r, w32)\ny = Add(o, p)"
    assert kernels(body) == {INPUT: 1, ("quantize", "float layer"): 1}


def test_channels_that_one_reader_wants_scaled_cost_a_kernel_that_is_part_of_the_plan() -> None:
    body = START + pair("r", "e") + "m = Mul(r, gains)\n" + pair("m", "f", "t") + "o = Conv(e, wd)\np = Conv(f, wd)\n"
    assert kernels(body + "y = Add(o, p)") == {INPUT: 1, ("quantize", "channel factors"): 1}
    read_twice = kernels(body + "h = Add(o, m)\ny = Add(h, p)")
    assert read_twice["quantize", "float reader"] > 0 and ("quantize", "channel factors") not in read_twice


def test_two_scales_on_one_tensor() -> None:
    body = START + pair("r", "e") + pair("r", "f", "t") + "o = Conv(e, wd)\np = Conv(f, wd)\ny = Add(o, p)"
    assert kernels(body) == {INPUT: 1, ("requantize", "unequal scales"): 1}


@pytest.mark.parametrize(("scale", "expected"), [("s", {}), ("t", {("requantize", "unequal scales"): 1})])
def test_a_concat_rescales_each_side_that_differs(scale: str, expected: dict) -> None:
    body = START + pair("r", "e", scale) + "k = Concat<axis=1>(d, e)\n" + pair("k", "l")
    body += "vd = DequantizeLinear(v8, s, z)\ny = Conv(l, vd)"
    assert kernels(body) == {INPUT: 1, **expected}


def test_a_float_layer_cannot_write_integers() -> None:
    body = "w = DequantizeLinear(w8, s, z)\nc = Conv(x, w)\nr = Relu(c)\n" + pair("r", "e") + "y = Conv(e, w)"
    assert kernels(body) == {("quantize", "float operator"): 1}


def test_a_reduction_reads_float() -> None:
    assert kernels(START + pair("r", "e") + "y = ReduceMean(e, axes)", "float[1,4,1,1] y") == {
        INPUT: 1,
        ("dequantize", "float operator"): 1,
    }


def test_integers_that_leave_the_network() -> None:
    assert kernels(START + pair("r", "y")) == {INPUT: 1, ("dequantize", "network output"): 1}


def test_a_silu_belongs_to_its_layer() -> None:
    body = INT8_CONV + pair("x", "d") + "c = Conv(d, wd)\ng0 = Sigmoid(c)\nr = Mul(c, g0)\n" + pair("r", "e")
    assert kernels(body + "y = Conv(e, wd)") == {INPUT: 1}


def test_weights_do_not_count() -> None:
    body = START + "y = Neg(r)"
    text = f"g (float[1,4,8,8] x) => (float[1,4,8,8] y) {{\n{body}\n}}"
    counts = count_qdq(graph(text, **{name: CONSTANTS[name] for name in ("s", "z", "w8")}))
    assert (counts.quantize, counts.dequantize, counts.extra_kernels, counts.avoidable) == (1, 1, 1, 0)
