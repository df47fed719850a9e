"""The work of kernels counted by hand, and what must hold of any estimate."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from few_blocks import few_blocks
from graph_views import for_serving
from onnx import ModelProto, helper, numpy_helper
from small_graphs import graph

from repq.cli import main
from repq.errors import GraphError, RepqError
from repq.estimate import DEVICES, Efficiency, estimate, find_device, kernels_of
from repq.estimate.roofline import utilization
from repq.export import export_float, save_onnx
from repq.graph import insert_qdq, to_fp16
from repq.graph.lowering_onnxruntime import lower
from repq.layers import LayerId
from repq.model import build
from repq.recipe import LetterboxConfig, NmsConfig, PreprocessConfig
from repq.scales import LayerScales, TensorScale

FULL = Efficiency(1, 1, 0, "test")


def convolution(size: str = "1,3,32,32", channels: int = 64) -> ModelProto:
    """Conv -> Relu -> MaxPool."""
    nodes = [
        helper.make_node("Conv", ["x", "c.weight", "c.bias"], ["y"], "c", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["y"], ["r"], "relu"),
        helper.make_node("MaxPool", ["r"], ["p"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
    ]
    dims = [int(part) if part.isdigit() else part for part in size.split(",")]
    weight = np.ones((channels, dims[1], 3, 3), np.float32)
    constants = [
        numpy_helper.from_array(weight, "c.weight"), numpy_helper.from_array(np.zeros(channels, np.float32), "c.bias")
    ]  # fmt: skip
    inputs = [helper.make_tensor_value_info("x", 1, dims)]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("p", 1, None)], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])


def quantized(model: ModelProto) -> ModelProto:
    weight = TensorScale(np.full(64, 0.01, np.float32), np.zeros(64, np.int8), "int8", 0)
    scales = LayerScales(TensorScale(np.array(0.1, np.float32), np.array(0, np.int8)), weight)
    return insert_qdq(model, {LayerId("c"): scales})


@pytest.fixture(scope="module")
def detector() -> ModelProto:
    return export_float(build(few_blocks("yolov6n_v2", 3), deploy=True).eval(), (64, 64))


def test_work_counted_by_hand() -> None:
    conv, pool = kernels_of(convolution()).kernels
    assert (conv.kind, pool.kind) == ("Conv", "MaxPool")
    assert conv.flops == 2 * 32 * 32 * 64 * 27
    assert conv.weight_bytes == 4 * (64 * 27 + 64)
    assert conv.activation_bytes == 4 * (3 + 64) * 32 * 32, "the Relu's result, not the convolution's, is written"
    assert pool.activation_bytes == 4 * 64 * (32 * 32 + 16 * 16)
    assert conv.gemm == (32 * 32, 64, 27)


@pytest.mark.parametrize("transposed", [0, 1])
def test_the_depth_of_a_product_is_that_of_its_input(transposed: int) -> None:
    shape = (16, 48) if transposed else (48, 16)
    node = helper.make_node("Gemm", ["x", "w"], ["y"], "g", transB=transposed)
    ends = [helper.make_tensor_value_info(name, 1, dims) for name, dims in (("x", (10, 48)), ("y", None))]
    weight = numpy_helper.from_array(np.ones(shape, np.float32), "w")
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [weight])
    (kernel,) = kernels_of(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])).kernels
    assert kernel.gemm == (10, 16, 48) and kernel.flops == 2 * 10 * 16 * 48


def test_int8_moves_bytes_and_its_extra_kernel_is_counted() -> None:
    work = kernels_of(quantized(convolution()))
    conv = work.kernels[0]
    assert conv.precision == "int8"
    assert conv.weight_bytes == 64 * 27 + 4 * 64
    assert conv.activation_bytes == 3 * 32 * 32 + 4 * 64 * 32 * 32
    assert [(kernel.kind, kernel.activation_bytes) for kernel in work.extra] == [("quantize", 5 * 3 * 32 * 32)]
    found = estimate(quantized(convolution()), DEVICES["t4"])
    assert found.extra_kernels_ms > 0 and found.kernels[-1].kind == "quantize"


def test_time_is_the_larger_limit_plus_the_start() -> None:
    device = DEVICES["t4"]
    row = estimate(convolution(), device, batch=4, efficiency=Efficiency(0.5, 0.25, 3.0, "test")).kernels[1]
    assert row.memory_us == pytest.approx(4 * 4 * 64 * (1024 + 256) / (320e3 * 0.25))
    assert row.total_us == pytest.approx(max(row.memory_us, row.compute_us) + 3)
    assert row.bound == "memory"


def test_a_full_device_and_an_empty_one() -> None:
    (conv, _) = kernels_of(convolution("1,64,512,640", 128)).kernels
    assert utilization(conv, DEVICES["t4"], 1) == pytest.approx(1.0)  # 1280 tiles of 256x128 are 32 waves of 40
    (small, _) = kernels_of(convolution("1,64,8,8", 128)).kernels
    assert utilization(small, DEVICES["t4"], 1) < 0.1
    assert utilization(small, DEVICES["t4"], 32) > utilization(small, DEVICES["t4"], 1)


def test_what_must_hold_of_any_estimate(detector: ModelProto) -> None:
    half, _ = to_fp16(detector)
    for device in DEVICES.values():
        one, many = (estimate(half, device, batch=batch) for batch in (1, 32))
        assert one.roofline_ms < one.latency_ms < many.latency_ms
        assert many.images_per_s > one.images_per_s
        assert one.latency_ms <= estimate(detector, device).latency_ms, "FP16 is not slower than FP32"
        assert one.images_per_s == pytest.approx(1e3 / one.latency_ms)
        assert sum(kernel.total_us for kernel in one.kernels) == pytest.approx(1e3 * one.latency_ms)


def test_the_batch_of_the_graph_does_not_matter_if_it_is_free() -> None:
    assert estimate(convolution("N,3,32,32"), DEVICES["t4"], batch=8) == estimate(convolution(), DEVICES["t4"], batch=8)
    with pytest.raises(GraphError, match="batch 4"):
        estimate(convolution("4,3,32,32"), DEVICES["t4"])


def test_sizes_that_only_the_run_knows(detector: ModelProto) -> None:
    anything = PreprocessConfig(uint8=True, letterbox=LetterboxConfig())
    found = estimate(for_serving(detector, anything, NmsConfig()), DEVICES["t4"])
    assert "NonMaxSuppression" in found.notes[0] and "MatMul" in found.notes[0]
    assert {kernel.kind for kernel in estimate(detector, DEVICES["t4"]).kernels} <= {k.kind for k in found.kernels}
    with pytest.raises(GraphError, match="the work of c is not known"):
        estimate(convolution("1,3,H,W"), DEVICES["t4"])


def test_operators_of_others_are_named_where_sizes_behind_them_are_not_known() -> None:
    model = convolution()
    node = next(node for node in model.graph.node if node.op_type == "Conv")
    odd = helper.make_node("Odd", [node.input[0]], ["odd"], domain="of.others")
    node.input[0] = "odd"
    model.graph.node.insert(0, odd)
    model.opset_import.append(helper.make_opsetid("of.others", 1))
    with pytest.raises(GraphError, match="the work of c is not known") as raised:
        kernels_of(model)
    assert "of.others.Odd" in str(raised.value.found) and "ONNX's own operators" in str(raised.value.fix)


@pytest.mark.parametrize("name", ["t4", "T4", "Tesla T4", "nvidia-t4"])
def test_devices_by_name(name: str) -> None:
    assert find_device(name) is DEVICES["t4"]


def test_unknown_devices_and_missing_units() -> None:
    with pytest.raises(RepqError, match="did you mean orin-nano"):
        find_device("orin nano 8gb")
    with pytest.raises(RepqError, match="no matrix unit for int8"):
        estimate(quantized(convolution()), DEVICES["v100"])
    assert all(device.source for device in DEVICES.values())


def test_the_command_line(detector: ModelProto, tmp_path) -> None:
    save_onnx(tmp_path / "m.onnx", detector)
    command = ["estimate", str(tmp_path / "m.onnx"), "--device", "t4", "--device", "l4", "--batch", "1", "--fp16"]
    text = CliRunner().invoke(main, command)
    assert text.exit_code == 0 and "ESTIMATED, not measured" in text.stdout
    values = json.loads(CliRunner().invoke(main, [*command, "--json"]).stdout)
    assert values["estimated"] is True
    assert [row["device"] for row in values["estimates"]] == ["NVIDIA T4", "NVIDIA L4"]
    wrong = CliRunner().invoke(main, ["estimate", str(tmp_path / "m.onnx"), "--device", "t44"])
    assert wrong.exit_code == 2 and "did you mean t4" in wrong.stderr


def test_a_quantizer_of_a_size_that_only_the_run_knows() -> None:
    """Coordinates of what is not zero, quantized for a product: neither of them can be counted."""
    text = """g (float[1,4] x) => (float y) {
        n = NonZero(x)
        t = Transpose(n)
        f = Cast<to=1>(t)
        e = Softmax(f)
        q = QuantizeLinear(e, s, z)
        d = DequantizeLinear(q, s, z)
        v = DequantizeLinear(w, s, z)
        p = MatMul(d, v)
        y = ReduceMax<keepdims=0>(p)
    }"""
    model = graph(text, s=np.float32(0.1), z=np.int8(0), w=np.ones((2, 3), np.int8))
    found = estimate(model, DEVICES["t4"])
    assert found.extra_kernels_ms == 0 and "quantize" in found.notes[0] and "MatMul" in found.notes[0]


def test_integer_operators_are_no_work_that_it_knows() -> None:
    with pytest.raises(GraphError, match="ConvInteger"):
        estimate(lower(quantized(convolution()), integer_sums=None), DEVICES["t4"])


def test_quantizers_of_onnxruntimes_own_domain_are_those_of_onnx() -> None:
    model = quantized(convolution())
    own = ModelProto()
    own.CopyFrom(model)
    own.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    for node in own.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            node.domain = "com.microsoft"
    assert kernels_of(own) == kernels_of(model)
