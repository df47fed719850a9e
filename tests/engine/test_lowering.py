"""The rewritten graphs equal the Q/DQ graphs that they come from."""

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from sample_graphs import LAYERS, calibrated_scales, detector

from repq.engine.onnxruntime import open_session
from repq.engine.source import name_layers
from repq.graph import lowering_onnxruntime, lowering_openvino
from repq.machine.cpu import has_dot_products

IMAGES = np.random.default_rng(1).uniform(0, 1, (1, 3, 32, 32)).astype(np.float32)


def plain_run(model: onnx.ModelProto, images: np.ndarray = IMAGES) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})[0]


def engine_run(model: onnx.ModelProto, images: np.ndarray = IMAGES) -> np.ndarray:
    """In the session that the engine opens: exact integer sums on every CPU."""
    return open_session(model.SerializeToString(), 1, "cpu").run(None, {"images": images})[0]


def quantized(layers: tuple[str, ...] = LAYERS, *, asymmetric: bool = False) -> onnx.ModelProto:
    scales = calibrated_scales(detector(), IMAGES, asymmetric=asymmetric)
    return detector(layers, asymmetric=asymmetric, scales=scales)


@settings(deadline=None, max_examples=15)
@given(layers=st.sets(st.sampled_from(LAYERS)), clipped=st.floats(0.3, 1.5))
def test_openvino_form_is_equal_bit_by_bit(layers, clipped):
    scales = {
        tensor: (scale * clipped, 0)
        for tensor, (scale, _) in calibrated_scales(detector(), IMAGES, asymmetric=False).items()
    }
    model = detector(tuple(layers), scales=scales)
    lowered = lowering_openvino.lower(model)
    onnx.checker.check_model(lowered, full_check=True)
    np.testing.assert_array_equal(plain_run(lowered), plain_run(model))


def test_openvino_form_has_no_zero_point_after_relu():
    lowered = lowering_openvino.lower(quantized(("body.0.conv", "body.1.conv", "neck.dw")))
    kinds = [node.op_type for node in lowered.graph.node]
    assert kinds.count("Clip") == 3
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in lowered.graph.initializer}
    zero_points = [constants[node.input[2]] for node in lowered.graph.node if node.op_type == "QuantizeLinear"]
    assert all(point.dtype == np.uint8 and point == 0 for point in zero_points)


def masked_tokens() -> onnx.ModelProto:
    """Tokens of maps (1, 4, 2, 2), masked, in INT8, times a matrix whose sums in pairs saturate on no CPU."""
    rng, kinds = np.random.default_rng(0), {"s": np.float32(0.02), "z": np.int8(0), "ws": np.full(4, 0.01, np.float32)}
    values = {
        **kinds, "w": rng.integers(-31, 32, (4, 4)).astype(np.int8), "wz": np.zeros(4, np.int8),
        "mask": (np.arange(8) % 3 > 0).astype(np.float32).reshape(1, 8, 1), "rows": np.array([1, 4, 4]),
    }  # fmt: skip
    node = onnx.helper.make_node
    nodes = [
        node("Reshape", ["images", "rows"], ["a"]), node("Transpose", ["a"], ["b"], perm=[0, 2, 1]),
        node("Relu", ["b"], ["c"]), node("Concat", ["b", "c"], ["d"], axis=1), node("Mul", ["mask", "d"], ["e"]),
        node("QuantizeLinear", ["e", "s", "z"], ["f"]), node("DequantizeLinear", ["f", "s", "z"], ["g"]),
        node("DequantizeLinear", ["w", "ws", "wz"], ["h"], axis=1), node("MatMul", ["g", "h"], ["y"]),
    ]  # fmt: skip
    stored = [onnx.numpy_helper.from_array(value, name) for name, value in values.items()]
    shapes = {"images": [1, 4, 2, 2], "y": [1, 8, 4]}
    ends = [onnx.helper.make_tensor_value_info(name, 1, shape) for name, shape in shapes.items()]
    graph = onnx.helper.make_graph(nodes, "tokens", ends[:1], ends[1:], stored)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)


def test_openvino_runs_products_of_signed_integers_right():
    openvino = pytest.importorskip("openvino")
    model = masked_tokens()
    assert lowering_openvino.lower(model) == model
    images = np.random.default_rng(1).normal(0, 1, (1, 4, 2, 2)).astype(np.float32)
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU")
    np.testing.assert_allclose(compiled([images])[0], plain_run(model, images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lower", [lowering_openvino.lower, lowering_onnxruntime.lower])
def test_float_graph_stays_as_it_is(lower):
    model = detector()
    assert lower(model) == model


@pytest.mark.parametrize("lower", [lowering_openvino.lower, lowering_onnxruntime.lower])
@pytest.mark.parametrize("asymmetric", [False, True])
def test_lowering_twice_is_lowering_once(lower, asymmetric):
    once = lower(quantized(asymmetric=asymmetric))
    twice = lower(once)
    assert _parts(twice.graph.node) == _parts(once.graph.node)
    assert _parts(twice.graph.initializer) == _parts(once.graph.initializer)


def _parts(messages) -> list[bytes]:
    return sorted(message.SerializeToString(deterministic=True) for message in messages)


@pytest.mark.parametrize("asymmetric", [False, True])
def test_onnxruntime_form_differs_by_rounding_only(asymmetric):
    # An integer bias moves few values by one step: rarely, and by little. Every further integer layer adds such values,
    # so the share is that of a chain of five; what a transposed convolution adds has a test of its own.
    for layers, share in ((tuple(layer for layer in LAYERS if layer != "neck.up"), 0.5), (LAYERS, 1.0)):
        model = quantized(layers, asymmetric=asymmetric)
        lowered = lowering_onnxruntime.lower(model)
        onnx.checker.check_model(lowered, full_check=True)
        wanted, found = plain_run(model), engine_run(lowered)
        assert np.mean(np.abs(wanted - found) > 1e-6) < share
        assert np.abs(wanted - found).max() < 0.02


def test_onnxruntime_form_convolves_twice_for_two_scales_rather_than_in_float():
    model = quantized(("body.0.conv", "body.1.conv", "neck.lateral.conv"), asymmetric=True)
    counts: dict[str, int] = {}
    for node in lowering_onnxruntime.lower(model).graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    # body.0 is read by body.1 with one scale and, through the Concat, by neck.lateral with another
    assert counts["QLinearConv"] == 2
    assert {node.name for node in lowering_onnxruntime.lower(model).graph.node if node.op_type == "QLinearConv"} == {
        "body.0.conv",
        "body.0.conv/2",
    }


@settings(deadline=None, max_examples=15)
@given(
    channels=st.integers(1, 5), kernel=st.integers(1, 3), groups=st.sampled_from([1, 2, "depthwise"]),
    largest=st.integers(20, 127), seed=st.integers(0, 1000),
)  # fmt: skip
def test_only_weights_whose_pairs_can_leave_16_bits_are_unsigned(channels, kernel, groups, largest, seed):
    """The bound is tried with the instruction's own sums: pairs in the order of kernel place, then channel."""
    rng = np.random.default_rng(seed)
    group = channels if groups == "depthwise" else groups
    inside = 1 if groups == "depthwise" else channels
    outputs = 2 * group if groups != "depthwise" else group
    weight = rng.integers(-largest, largest, (outputs, inside, kernel, kernel), np.int8, endpoint=True)
    model = one_convolution(weight, group)
    lowered = lowering_onnxruntime.lower(model, every_cpu=True)
    rows = weight.transpose(0, 2, 3, 1).reshape(outputs, -1).astype(int)
    rows = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2)))
    least, most = (255 * part(rows, 0).reshape(outputs, -1, 2).sum(-1) for part in (np.minimum, np.maximum))
    leaves = groups != "depthwise" and bool((least < -(2**15)).any() or (most > 2**15 - 1).any())
    assert lowering_onnxruntime.with_unsigned_weights(lowered) == (("conv",) if leaves else ())
    images = rng.uniform(0, 1, (1, inside * group, 5, 5)).astype(np.float32)
    np.testing.assert_array_equal(
        engine_run(lowered, images), engine_run(lowering_onnxruntime.lower(model), images), "the integers are the same"
    )


def one_convolution(weight: np.ndarray, group: int) -> onnx.ModelProto:
    """x -> Q -> DQ -> Conv "conv" -> Q -> DQ -> y."""
    model = onnx.parser.parse_model(f"""<ir_version: 9, opset_import: ["" : 19]>
        g (float[1,{weight.shape[1] * group},5,5] images) => (float[1,{len(weight)},h,w] y) {{
            q = QuantizeLinear(images, s, z)
            d = DequantizeLinear(q, s, z)
            k = DequantizeLinear<axis=0>(conv_weight, ws, wz)
            c = Conv<group={group}>(d, k)
            r = QuantizeLinear(c, s, z)
            y = DequantizeLinear(r, s, z)
        }}""")
    model.graph.node[3].name = "conv"
    constants = {
        "s": np.float32(0.02), "z": np.uint8(100), "ws": np.full(len(weight), 0.01, np.float32),
        "wz": np.zeros(len(weight), np.int8), "conv_weight": weight,
    }  # fmt: skip
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items())
    return model


def plane_convolution(shape: tuple[int, ...], strides: list[int], pads: list[int], height: object, width: object,
                      seed: int, batch: int = 2) -> onnx.ModelProto:  # fmt: skip
    """`one_convolution` with a bias, over batches of other sizes; a name as height or width leaves it free."""
    rng = np.random.default_rng(seed)
    model = one_convolution(rng.integers(-127, 128, shape, np.int8), 1)
    [conv] = [node for node in model.graph.node if node.op_type == "Conv"]
    conv.attribute.extend([onnx.helper.make_attribute("strides", strides), onnx.helper.make_attribute("pads", pads)])
    conv.input.append("bias")
    model.graph.initializer.append(onnx.numpy_helper.from_array(rng.normal(0, 1, shape[0]).astype(np.float32), "bias"))
    for value, dims in (
        (model.graph.input[0], [batch, shape[1], height, width]),
        (model.graph.output[0], list("nchw")),
    ):
        value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, 1, dims))
    return model


@settings(deadline=None, max_examples=40)
@given(
    channels=st.integers(1, 5), kernel=st.tuples(st.integers(1, 4), st.integers(1, 6)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 4)), pads=st.lists(st.integers(0, 3), min_size=4, max_size=4),
    width=st.sampled_from([8, 10, 12, 16, 20]), same=st.booleans(), every_cpu=st.booleans(), free=st.booleans(),
    seed=st.integers(0, 100),
)  # fmt: skip
def test_neighbours_of_few_channels_are_convolved_at_once_with_equal_sums(
    channels, kernel, strides, pads, width, same, every_cpu, free, seed
):
    """Free height and batch or not; where the width is free, nothing is known to divide it."""
    shape = (5, channels, *kernel)
    pads = [min(pad, size - 1) for pad, size in zip(pads, (*kernel, *kernel), strict=True)]
    if same and kernel[1] >= strides[1]:  # as many outputs as strides
        pads[1] = min(pads[1], kernel[1] - strides[1])
        pads[3] = kernel[1] - strides[1] - pads[1]
    known, unknown = (
        plane_convolution(shape, list(strides), pads, "h" if free else 7, last, seed, "n" if free else 2)
        for last in (width, "w")
    )
    images = np.random.default_rng(seed).uniform(-1, 2, (2, channels, 7, width)).astype(np.float32)
    wide, plain = (lowering_onnxruntime.lower(model, every_cpu=every_cpu) for model in (known, unknown))
    onnx.checker.check_model(wide, full_check=True)
    np.testing.assert_array_equal(engine_run(wide, images), engine_run(plain, images))
    divides = width % 4 == 0 and 4 % strides[1] == 0
    kept = (width + pads[1] + pads[3] - kernel[1]) // strides[1] + 1 == width // strides[1]
    reshaped = any(node.op_type == "Reshape" for node in wide.graph.node)
    assert reshaped == (channels < 4 and kernel != (1, 1) and divides and kept)
    assert all(node.op_type != "Reshape" for node in plain.graph.node)


@pytest.mark.parametrize("asymmetric", [False, True])
def test_the_engine_computes_the_onnxruntime_form_exactly(asymmetric):
    """Integer sums do not saturate, and the weights of layers that stay float stay float."""
    lowered = lowering_onnxruntime.lower(quantized(asymmetric=asymmetric))
    wanted = ReferenceEvaluator(lowered).run(None, {"images": IMAGES})[0]
    np.testing.assert_allclose(engine_run(lowered), wanted, rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=15)
@given(layers=st.sets(st.sampled_from(LAYERS), min_size=1), asymmetric=st.booleans(), signed=st.booleans())
def test_integer_sums_are_the_float_convolutions(layers, asymmetric, signed):
    signed = signed and has_dot_products()  # they saturate without
    model = quantized(tuple(layers), asymmetric=asymmetric)
    candidates = lowering_onnxruntime.float_results(model)
    assert set(candidates) <= layers - {"neck.up"}
    plain = lowering_onnxruntime.lower(model)
    sums = lowering_onnxruntime.lower(model, integer_sums=candidates, signed_sums=signed)
    onnx.checker.check_model(sums, full_check=True)
    kinds = {node.name: node.op_type for node in sums.graph.node if node.name in candidates}
    assert list(kinds) == sorted(candidates, key=LAYERS.index)
    pointwise = {"neck.lateral.conv", "head.pred"}
    assert all(kinds[name] == ("MatMulIntegerToFloat" if name in pointwise else "ConvInteger") for name in kinds)
    assert sums == lowering_onnxruntime.lower(model, integer_sums=None, signed_sums=signed)
    if signed and len(layers) == 1:  # no QLinearConv before it makes UINT8
        assert lowering_onnxruntime.saturates_without_dot_products(sums) == ("ConvInteger" in kinds.values())
    assert signed or not lowering_onnxruntime.saturates_without_dot_products(sums)
    # Floats round otherwise, so a later integer may be one step off where a value lies on the edge.
    difference = np.abs(engine_run(sums) - engine_run(plain))
    assert np.mean(difference > 1e-5) < 0.06 and difference.max() < 0.004
    if len(layers) == 1:
        assert difference.max() < 1e-5
    assert lowering_onnxruntime.float_results(detector()) == ()


@settings(deadline=None, max_examples=15)
@given(
    layers=st.sets(st.sampled_from(LAYERS), min_size=1), factors=st.lists(st.floats(0.8, 1.2), min_size=8, max_size=8)
)
def test_onnxruntime_form_runs_on_every_cpu(layers, factors):
    """ONNX Runtime rewrites the integer weights on x86 without dot product instructions: no two nodes may share one."""
    scales = calibrated_scales(detector(), IMAGES, asymmetric=True)
    scaled = {t: (scale * factors[i % 8], point) for i, (t, (scale, point)) in enumerate(scales.items())}
    model = detector(tuple(layers), asymmetric=True, scales=scaled)
    lowered = lowering_onnxruntime.lower(model)
    used = [
        name
        for node in lowered.graph.node
        if node.op_type == "QLinearConv"
        for name in (*node.input[3:6], node.input[8])
    ]
    assert len(used) == len(set(used))
    np.testing.assert_allclose(engine_run(lowered), plain_run(model), rtol=0, atol=0.05)


def test_onnxruntime_form_stands_a_bias_that_32_bits_do_not_hold():
    model = quantized(("stem.conv", "body.0.conv"))
    for tensor in model.graph.initializer:
        if tensor.name == "stem.conv.weight_scale":
            scale = onnx.numpy_helper.to_array(tensor).copy()
            scale[3] = 1e-12  # a dead channel
            tensor.CopyFrom(onnx.numpy_helper.from_array(scale, tensor.name))
    lowered = lowering_onnxruntime.lower(model)
    assert "QLinearConv" in {node.op_type for node in lowered.graph.node}
    assert np.abs(plain_run(model) - engine_run(lowered)).max() < 0.02


def test_two_convolutions_of_one_weight_are_refused():
    model = detector()
    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    convs[2].input[1] = convs[1].input[1]
    with pytest.raises(Exception, match=r"body\.0\.conv"):
        name_layers(model)


@settings(deadline=None, max_examples=10)
@given(
    stride=st.integers(1, 3), kernel=st.integers(1, 3), pad=st.integers(0, 1), every_cpu=st.booleans(),
    free=st.booleans(), seed=st.integers(0, 100),
)  # fmt: skip
def test_onnxruntime_form_of_a_transposed_convolution(stride, kernel, pad, every_cpu, free, seed):
    """In INT8 where its kernel is its stride, and equal to a step of the output's scale; else float, and equal."""
    rng = np.random.default_rng(seed)
    before = onnx.parser.parse_model(f"""<ir_version: 9, opset_import: ["" : 19]>
        g (float[1,4,5,{"w" if free else 6}] images) => (float[1,2,h,v] y) {{
            q = QuantizeLinear(images, s, z)
            d = DequantizeLinear(q, s, z)
            k = DequantizeLinear<axis=1>(up_weight, ws, wz)
            c = ConvTranspose<strides=[{stride},{stride}], pads=[{pad},{pad},{pad},{pad}]>(d, k, up_bias)
            r = QuantizeLinear(c, s, z)
            y = DequantizeLinear(r, s, z)
        }}""")
    before.graph.node[3].name = "up"
    constants = {
        "s": np.float32(0.02), "z": np.uint8(100), "ws": np.array([0.01, 0.02], np.float32), "wz": np.zeros(2, np.int8),
        "up_weight": rng.integers(-100, 100, (4, 2, kernel, kernel), np.int8, endpoint=True),
        "up_bias": rng.normal(0, 0.1, 2).astype(np.float32),
    }  # fmt: skip
    before.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items())
    images = rng.uniform(-1, 1, (1, 4, 5, 6)).astype(np.float32)
    wanted = plain_run(before, images)
    lowered = lowering_onnxruntime.lower(before, every_cpu=every_cpu)
    found = engine_run(lowered, images)
    kinds = {node.op_type for node in lowered.graph.node}
    assert ("QLinearConv" in kinds) == (stride == kernel and pad == 0)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=0.0201)


@pytest.mark.parametrize("between", ["Relu", "Sigmoid"])
def test_integers_are_pooled_after_a_convolution_that_makes_them_only(between):
    """In NCHW the kernel for integers takes fifty times as long as that for floats."""
    weight = np.random.default_rng(0).integers(-20, 20, (4, 4, 3, 3), np.int8)
    model = one_convolution(weight, 1)
    [conv] = [node for node in model.graph.node if node.op_type == "Conv"]
    model.graph.node.remove(conv)
    index = [node.op_type for node in model.graph.node].index("QuantizeLinear", 1)
    conv.output[0] = "sums"
    chain = [
        conv,
        onnx.helper.make_node(between, ["sums"], ["active"]),
        onnx.helper.make_node("MaxPool", ["active"], ["c"], kernel_shape=[3, 3], pads=[1] * 4),
    ]
    for place, node in enumerate(chain):
        model.graph.node.insert(index + place, node)
    onnx.checker.check_model(model)
    lowered = onnx.shape_inference.infer_shapes(lowering_onnxruntime.lower(model))
    [pool] = [node for node in lowered.graph.node if node.op_type == "MaxPool"]
    types = {value.name: value.type.tensor_type.elem_type for value in lowered.graph.value_info}
    expected = onnx.TensorProto.UINT8 if between == "Relu" else onnx.TensorProto.FLOAT
    assert types[pool.output[0]] == expected
    images = np.random.default_rng(1).uniform(0, 1, (1, 4, 5, 5)).astype(np.float32)
    np.testing.assert_allclose(engine_run(lowered, images), plain_run(model, images), rtol=0, atol=0.0201)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("kernel", "kind"), [(1, "MatMulIntegerToFloat"), (2, "ConvInteger")])
@pytest.mark.parametrize("after", ["Reshape", "Transpose", "Sigmoid"])
def test_sums_become_floats_whatever_reads_them(channels, kernel, kind, after):
    """With one channel there is one scale, and ONNX Runtime moves what it takes for a quantizer past a Reshape."""
    shape = (channels, 4, kernel, kernel)
    model = one_convolution(np.random.default_rng(0).integers(-90, 90, shape, np.int8), 1)
    graph = model.graph
    conv = next(place for place, node in enumerate(graph.node) if node.op_type == "Conv")
    del graph.node[conv + 1 :]
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, -1], np.int64), "flat"))
    settings = {"Transpose": {"perm": [0, 2, 3, 1]}}.get(after, {})
    inputs = ["c", "flat"] if after == "Reshape" else ["c"]
    graph.node.append(onnx.helper.make_node(after, inputs, ["y"], **settings))
    graph.output[0].type.tensor_type.ClearField("shape")
    images = np.random.default_rng(1).uniform(0, 3, (1, 4, 5, 5)).astype(np.float32)
    lowered = lowering_onnxruntime.lower(model, integer_sums=None)
    assert kind in {node.op_type for node in lowered.graph.node}
    np.testing.assert_allclose(engine_run(lowered, images), plain_run(model, images), rtol=1e-5, atol=1e-5)
