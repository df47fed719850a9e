"""Q/DQ graphs in forms that repq itself does not write give in the engines what the file says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from repq.engine import build
from repq.graph import lowering_openvino

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
