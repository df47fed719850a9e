"""The engine inspector's JSON in the forms of TensorRT 8.5, 10 and 11, as NVIDIA's guides and tools show them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from repq.engine.tensorrt_inspection import conversions, executed_layers, node_times, read_kernels
from repq.errors import EngineError
from repq.layers import LayerId
from repq.results import EngineDescription, Expectation

FP32, INT8, INT8X32 = (
    "Row major linear FP32",
    "Row major Int8 format",
    "Thirty-two wide channel vectorized row major Int8 format",
)
STEM, BODY, HEAD = LayerId("backbone.stem"), LayerId("backbone.body.0"), LayerId("detect.head")
I8_TACTIC = "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c_32kcrs_vect_c_32"


def tensor(name: str, words: str, version: int) -> dict[str, Any]:
    base = {"Name": name, "Location": "Device", "Dimensions": [1, 64, 56, 56]}
    if version < 11:
        return {**base, "Format/Datatype": words}
    kind = "Int8" if "Int8" in words else "Half" if "FP16" in words else "Float"
    return {**base, "Format": words, "Datatype": kind}


def kernel(name: str, kind: str, before: str, after: str, nodes: tuple[str, ...], version: int, **more: Any) -> dict:
    metadata = "\x1e".join(f"[ONNX Layer: {node}]" for node in nodes)
    return {
        "Name": name,
        "LayerType": kind,
        "Inputs": [tensor("a", before, version)],
        "Outputs": [tensor("b", after, version)],
        **({"Metadata": metadata} if version >= 10 else {}),
        **more,
    }


def engine(version: int) -> str:
    weights = {"Type": "Int8", "Count": 36864}
    half = "Channel major FP16 format where channel % 8 == 0"
    layers = [
        kernel("images.Q", "Reformat", FP32, INT8, ("stem.input/QuantizeLinear",), version, Origin="QDQ"),
        kernel(f"w + {STEM} + pool", "ConvActPool", INT8, INT8X32, (STEM, "pool"), version, ConvWeights=weights),
        kernel(f"w + {BODY} + relu", "CaskConvolution", INT8X32, INT8X32,
               (f"{BODY}.weight/DequantizeLinear", BODY, "relu"), version, Weights=weights, TacticName=I8_TACTIC),
        kernel("s/QuantizeLinear", "Reformat", INT8X32, INT8X32, ("s/QuantizeLinear",), version, Origin="QDQ"),
        kernel("h/DequantizeLinear", "Reformat", INT8X32, half, ("h/DequantizeLinear",), version, Origin="QDQ"),
        kernel(f"Reformatting CopyNode for Input Tensor 0 to {HEAD}", "Reformat", half, half, (), version,
               Origin="REFORMAT"),
        kernel(HEAD, "CaskConvolution", half, "Row major linear FP16 format", (HEAD,), version,
               Weights={"Type": "Half", "Count": 10}),
        kernel("__myl_Mul", "kgen", "Half", FP32, ("decode",), version),
    ]  # fmt: skip
    edge = {"Bindings": ["images"]} if version < 11 else {"I/O Tensors": [{"Name": "images", "DataType": "Float"}]}
    return json.dumps({"Layers": layers, **edge})


@pytest.mark.parametrize("version", [8, 10, 11])
def test_layers_are_found_by_their_id_with_their_precision(version: int) -> None:
    rows = {row.layer: row for row in executed_layers(read_kernels(engine(version)), [STEM, BODY, HEAD, LayerId("no")])}
    assert {layer: row.precision for layer, row in rows.items()} == {
        STEM: "int8", BODY: "int8", HEAD: "float16", "no": "unknown",
    }  # fmt: skip
    assert rows[BODY].kernel == I8_TACTIC
    assert rows[STEM].kernel == "ConvActPool"


@pytest.mark.parametrize("version", [8, 10, 11])
def test_kernels_that_only_convert_are_counted(version: int) -> None:
    assert conversions(read_kernels(engine(version))) == {
        "dequantize": 1,
        "quantize": 1,
        "reformat": 1,
        "requantize": 1,
    }


def test_types_hidden_by_dynamic_shapes_come_from_weights_and_tactics() -> None:
    free = "N/A due to dynamic shapes"
    layers = [
        kernel(STEM, "CaskConvolution", free, free, (STEM,), 10, Weights={"Type": "Int8", "Count": 1}),
        kernel(BODY, "fusion", free, free, (BODY,), 10, TacticName="sm80_xmma_gemm_f16f16_f16f16_f16_nn"),
        kernel(HEAD, "CaskConvolution", FP32, FP32, (HEAD,), 10, Weights={"Type": "Float", "Count": 1},
               TacticName="sm80_xmma_fprop_implicit_gemm_indexed_tf32f32_tf32f32_f32_nhwckrsc_nhwc"),
    ]  # fmt: skip
    rows = executed_layers(read_kernels(json.dumps({"Layers": layers})), [STEM, BODY, HEAD])
    assert [row.precision for row in rows] == ["int8", "float16", "tf32"]


def test_a_float_convolution_between_integers_is_no_int8() -> None:
    layers = [kernel(STEM, "CaskConvolution", INT8, INT8, (STEM,), 10, Weights={"Type": "Float", "Count": 1})]
    assert executed_layers(read_kernels(json.dumps({"Layers": layers})), [STEM])[0].precision == "float32"


@pytest.mark.parametrize("text", ["", "{}", '{"Layers": ["conv + relu"]}'])
def test_what_tells_nothing_is_refused(text: str) -> None:
    with pytest.raises(EngineError):
        read_kernels(text)


def test_what_lint_expected_is_compared_with_what_runs() -> None:
    kernels = read_kernels(engine(11))
    description = EngineDescription(
        engine="tensorrt", version="11.4", device="T4", input_name="images", input_shape=(1, 3, 64, 64),
        output_names=("detections",), size_bytes=1, layers=executed_layers(kernels, [STEM, BODY, HEAD]),
        expected=Expectation(layers={STEM: "int8", BODY: "float16", HEAD: "float16"}, extra_kernels=1),
    )  # fmt: skip
    assert description.surprises() == ((BODY, "float16", "int8"),)


@pytest.mark.parametrize("version", [10, 11])
def test_times_of_kernels_belong_to_layers(version: int) -> None:
    kernels = {kernel.name: kernel for kernel in read_kernels(engine(version))}
    times = dict.fromkeys(kernels, 0.5) | {"not in the inspector": 1.0}
    rows = {row.name: row for row in node_times(times, kernels, (STEM, BODY, HEAD))}
    assert {row.layer for row in rows.values()} == {STEM, BODY, HEAD, None}
    assert [row.layer for row in rows.values() if row.kind == "Reformat"] == [None] * 4
    assert rows[f"w + {BODY} + relu"].precision == "int8" and sum(row.ms for row in rows.values()) == 1 + 0.5 * 8
