"""Q/DQ graphs in forms that repq itself does not write give in the engines what the file says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper

from repq.engine import build
from repq.errors import RepqError
from repq.graph import lint, lowering_openvino, merge_scales

X = np.random.default_rng(9).normal(0, 1, (1, 8, 12, 12)).astype(np.float32)
TYPES = {"int8": np.int8, "uint8": np.uint8, "int16": np.int16, "uint16": np.uint16}
ACTIVATIONS = [("int8", 0), ("int8", -17), ("int8", -128), ("uint8", 0), ("uint8", 114),
               ("int16", 0), ("uint16", 0), ("uint16", 31000)]  # fmt: skip
WEIGHTS = [("int8", 0), ("int8", 7), ("uint8", 128), ("uint8", 120), ("uint8", 0), ("int16", 0)]
UP = "up = ConvTranspose<strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]>(d, wd, b)"
LAYERS = {
    "conv": "up = Conv<pads=[1,1,1,1]>(d, wd, b)",
    "transposed": UP,
    "concat": "t = Concat<axis=1>(d, d2)\n sl = Slice(t, first, last, one)\n up = Conv<pads=[1,1,1,1]>(sl, wd, b)",
}


def run(model: ModelProto) -> NDArray[np.float32]:
    """As the graph is written."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, {"x": X})[0]


def quantized(layer: str, activations: tuple[str, int], weights: tuple[str, int], per_channel: bool) -> ModelProto:
    """A layer and a convolution with numbers of these types and zero points between Q and DQ.

    Integers of 16 bits are a range of 6 as those of 8 bits, so that values leave it.
    """
    (kind, zero_point), (of_weights, middle) = activations, weights
    body = f"""
    q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)
    q2 = QuantizeLinear(x, s2, z)  d2 = DequantizeLinear(q2, s2, z)
    wd = DequantizeLinear<axis={int(layer == "transposed")}>(w, ws, wz)
    {LAYERS[layer]}
    q3 = QuantizeLinear(up, s3, z)  d3 = DequantizeLinear(q3, s3, z)
    vd = DequantizeLinear<axis=0>(v, ws, wz)
    y = Conv(d3, vd)
    """
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21]> g (float[1,8,12,12] x) => (float[1,8,a,c] y) {{ {body} }}'
    )
    limits, steps = np.iinfo(kind), np.iinfo(of_weights)
    step, rng = 6 / (int(limits.max) - int(limits.min)), np.random.default_rng(0)
    width = 2 / (int(steps.max) - int(steps.min))
    scale = np.full(8, width) * np.exp(rng.normal(0, 0.3, 8)) if per_channel else np.array(width)

    def integers(*shape: int) -> NDArray[np.generic]:
        values = np.rint(rng.normal(0, 0.3, shape) / width) + middle
        return values.clip(steps.min, steps.max).astype(of_weights)

    constants = {
        "s": np.float32(step), "s2": np.float32(step * 0.7), "s3": np.float32(step * 2), "z": TYPES[kind](zero_point),
        "w": integers(8, 8, 3, 3), "v": integers(8, 8, 1, 1), "ws": scale.astype(np.float32),
        "wz": np.full(scale.shape, middle, of_weights), "b": rng.normal(0, 0.5, 8).astype(np.float32),
        "first": np.array([0, 4]), "last": np.array([1, 12]), "one": np.array([0, 1]),
    }  # fmt: skip
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items())
    onnx.checker.check_model(model)
    return model


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("activations", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("layer", LAYERS)
def test_openvino_form_of_other_types_is_equal(
    layer: str, activations: tuple[str, int], weights: tuple[str, int], per_channel: bool
) -> None:
    model = quantized(layer, activations, weights, per_channel)
    lowered = lowering_openvino.lower(model)
    np.testing.assert_array_equal(run(lowered), run(model))
    assert lowering_openvino.lower(lowered) == lowered


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize(
    ("layer", "activations", "weights"),
    [
        *(("concat", kind, ("int8", 0)) for kind in ACTIVATIONS),
        *(("transposed", kind, weights) for kind in (("uint8", 0), ("int8", -17)) for weights in WEIGHTS),
        ("conv", ("uint8", 114), ("uint8", 120)),
    ],
    ids=str,
)
def test_engines_compute_what_the_file_says(
    layer: str, activations: tuple[str, int], weights: tuple[str, int], per_channel: bool, engine: str, tmp_path: Path
) -> None:
    model = quantized(layer, activations, weights, per_channel)
    onnx.save(model, tmp_path / "m.onnx")
    wanted, found = run(model), build(engine, tmp_path / "m.onnx").infer(X)["y"]
    assert np.abs(found - wanted).mean() < 0.005 * wanted.std()


def written(body: str, **constants: NDArray[np.generic]) -> ModelProto:
    """A graph of this text with two weights and scales for them; its nodes are named after what they give."""
    rng = np.random.default_rng(1)
    own = {
        "s": np.float32(0.02), "z": np.uint8(120), "zi": np.int8(-8), "s2": np.float32(0.03),
        "w": rng.integers(-100, 100, (8, 8, 3, 3), np.int8), "v": rng.integers(-100, 100, (12, 12), np.int8),
        "ws": np.geomspace(0.001, 0.01, 8).astype(np.float32), "w1": np.float32(0.003), "wz": np.zeros(8, np.int8),
    }  # fmt: skip
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21]> g (float[1,8,12,12] x) => (float[1,8,a,c] y) {{ {body} }}'
    )
    read = {name for node in model.graph.node for name in node.input}
    for node in model.graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    stored = [(name, np.asarray(value)) for name, value in (own | constants).items() if name in read]
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in stored)
    onnx.checker.check_model(model)
    return model


QUANTIZED = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)"
BEHIND = "c = Conv(d, wd) p = QuantizeLinear(c, s2, z) y = DequantizeLinear(p, s2, z)"
FORMS = {
    "weights by input channels": f"{QUANTIZED} wd = DequantizeLinear<axis=1>(w, ws, wz) {BEHIND}",
    "weights by the axis that ONNX takes": f"{QUANTIZED} wd = DequantizeLinear(w, ws) {BEHIND}",
    "no zero point of weights, an axis from behind": (
        f"{QUANTIZED} wd = DequantizeLinear<axis=-4>(w, ws) y = Conv(d, wd)"
    ),
    "a product by blocks": f"{QUANTIZED} vd = DequantizeLinear<axis=0, block_size=4>(v, blocks) y = MatMul(d, vd)",
    "as many blocks as channels": (
        f"{QUANTIZED} vd = DequantizeLinear<axis=1, block_size=12>(v, rows) y = MatMul(d, vd)"
    ),
    "two DQ": """q = QuantizeLinear(x, s, zi) a = DequantizeLinear(q, s, zi) b = DequantizeLinear(q, s, zi)
        p = QuantizeLinear(x, s2, zi) c = DequantizeLinear(p, s2, zi) t = Concat<axis=2>(a, c) u = Concat<axis=2>(b, c)
        wd = DequantizeLinear<axis=0>(w, ws, wz) e = Conv(t, wd) f = Conv(u, wd) y = Add(e, f)""",
    "types that no zero point says": """q = QuantizeLinear<output_dtype=4>(x, s2) d = DequantizeLinear(q, s2)
        wd = DequantizeLinear(w, w1) y = Conv(d, wd)""",
    "weights of 0 with the scale 0": f"""{QUANTIZED} wd = DequantizeLinear<axis=0>(w0, ws0, wz) c = Conv(d, wd)
        p = QuantizeLinear(c, s2, z) e = DequantizeLinear(p, s2, z) wf = DequantizeLinear(w, w1) y = Conv(e, wf)""",
}
BLOCKS = np.geomspace(0.001, 0.01, 36).reshape(3, 12).astype(np.float32)
ROWS = np.geomspace(0.001, 0.01, 12).reshape(12, 1).astype(np.float32)
W0 = (
    np.random.default_rng(2).integers(-100, 100, (8, 8, 3, 3), np.int8)
    * (np.arange(8) % 2).astype(np.int8)[:, None, None, None]
)
WS0 = (np.geomspace(0.001, 0.01, 8) * (np.arange(8) % 2)).astype(np.float32)


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("form", FORMS)
def test_engines_compute_forms_that_are_rare(form: str, engine: str, tmp_path: Path) -> None:
    model = written(FORMS[form], blocks=BLOCKS, rows=ROWS, w0=W0, ws0=WS0)
    onnx.save(model, tmp_path / "m.onnx")
    wanted, found = run(model), build(engine, tmp_path / "m.onnx").infer(X)["y"]
    assert np.abs(found - wanted).mean() < 0.01 * wanted.std()


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("scale", [0, -0.02, np.inf, np.nan])
def test_scales_that_are_no_positive_numbers_are_refused(scale: float, weights: bool, tmp_path: Path) -> None:
    which = {"w1": np.float32(scale)} if weights else {"s": np.float32(scale)}
    model = written(f"{QUANTIZED} wd = DequantizeLinear(w, w1) y = Conv(d, wd)", **which)
    onnx.save(model, tmp_path / "m.onnx")
    named = "DequantizeLinear_wd" if weights else "QuantizeLinear_q"
    found = [finding.where for finding in lint(model).findings if finding.rule == "unusable-scale"]
    if weights and scale == 0:
        assert not found
        build("onnxruntime", tmp_path / "m.onnx")
        return
    assert named in found
    with pytest.raises(RepqError, match="scales must be positive, finite numbers") as raised:
        build("onnxruntime", tmp_path / "m.onnx")
    assert named in str(raised.value.found)


@pytest.mark.parametrize("kind", [TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16])
def test_a_type_that_no_zero_point_says_counts(kind: int) -> None:
    model = written(f"""q = QuantizeLinear<output_dtype={kind}>(x, s) d = DequantizeLinear(q, s)
        wd = DequantizeLinear(w, w1) c = Conv<pads=[1,1,1,1]>(d, wd) t = Concat<axis=1>(c, d)
        q2 = QuantizeLinear<output_dtype={kind}>(t, s2) d2 = DequantizeLinear(q2, s2) y = Identity(d2)""")
    rules = {finding.rule for finding in lint(model, "tensorrt").findings}
    assert ("unsigned-integers" in rules) == (kind == TensorProto.UINT8)
    merged, report = merge_scales(model)
    assert [len(group.before) for group in report.groups] == [2]
    run(merged)


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("q = QuantizeLinear<axis=1>(x, ws, wz) d = DequantizeLinear<axis=1>(q, ws, wz)", "several"),
        ("k = ReduceMax<keepdims=0>(x) q = QuantizeLinear(x, k, zi) d = DequantizeLinear(q, k, zi)", "computes it"),
        ("q = QuantizeLinear(x, s, z0) d = DequantizeLinear(q, s, z0)", "has others"),
        ("q = QuantizeLinear(x, s, z0) d = Cast<to=1>(q)", "QuantizeLinear_q"),
        ("q, k, p = DynamicQuantizeLinear(x) d = DequantizeLinear(q, k, p)", "DynamicQuantizeLinear"),
    ],
)
def test_ncnn_refuses_scales_that_it_has_not(body: str, found: str, tmp_path: Path) -> None:
    model = written(f"{body} wd = DequantizeLinear<axis=1>(w, ws) y = Conv(d, wd)", z0=np.int8(0))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(RepqError, match="NCNN has") as raised:
        build("ncnn", tmp_path / "m.onnx")
    assert found in str(raised.value.found)
