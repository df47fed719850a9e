"""NCNN: what is written, what it computes, and what is refused. The engine's protocol is in ``test_engines``."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import replace
from functools import cache
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from few_blocks import few_blocks
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from sample_graphs import LAYERS, calibrated_scales, detector
from typed_graphs import EIGHT_BITS, PAIRS, typed

from repq.engine import availability, build, load
from repq.engine import ncnn_building as building
from repq.engine.ncnn import open_network, read_network
from repq.engine.ncnn_files import CONVOLUTIONS, Layer, in_float16, read, write
from repq.engine.ncnn_network import BIN, PARAM, run
from repq.engine.source import read_source
from repq.errors import EngineError
from repq.export import export_float, export_quantized
from repq.graph import to_fp16
from repq.layers import LayerId, QuantPlan
from repq.model import build as build_model
from repq.model import layer_ids
from repq.quant import calibrate, insert_quantizers
from repq.recipe import CalibrationConfig, PtqConfig

pytest.importorskip("ncnn", reason="needs ncnn")
if importlib.util.find_spec("pnnx") is None:  # its Python part is slow to import
    pytest.skip("needs pnnx", allow_module_level=True)

FAMILIES = ("yolov6n_v2", "yolov6lite_s", "yolox_nano")
SIZE = (64, 64)


@cache
def graphs(name: str) -> tuple[ModelProto, ModelProto]:
    """A random model in float, and with every convolution but transposed ones in INT8."""
    torch.manual_seed(0)
    model = build_model(few_blocks(name, 3), deploy=True).eval()
    layers, transposed = layer_ids(model), []
    for layer in layers:
        module = model.get_submodule(layer)
        torch.nn.init.normal_(module.weight, 0, (2 / module.weight[0].numel()) ** 0.5)
        torch.nn.init.normal_(module.bias, 0, 0.1)
        transposed += [layer] * isinstance(module, torch.nn.ConvTranspose2d)
    plan = QuantPlan.keeping_float(layers, transposed)
    settings = PtqConfig(scheme="symmetric", calibration=CalibrationConfig(method="max"))
    quantized = insert_quantizers(model, plan, settings).eval()
    calibrate(quantized, [torch.from_numpy(images(name))], settings.calibration)
    return export_float(model, SIZE), export_quantized(quantized, SIZE)


def images(name: str) -> NDArray[np.float32]:
    return np.random.default_rng(1).uniform(0, 255 if "yolox" in name else 1, (1, 3, *SIZE)).astype(np.float32)


def by_onnxruntime(model: ModelProto, values: NDArray[np.float32], *tensors: str) -> Any:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = session.run(tensors or None, {"images": values})
    return found if tensors else found[0]


@cache
def simulated(name: str) -> dict[str, NDArray[np.float32]]:
    """What ONNX Runtime computes of every convolution's input and output."""
    model = ModelProto()
    model.CopyFrom(graphs(name)[1])
    ends = dict.fromkeys(
        t for node in model.graph.node if node.op_type == "Conv" for t in (node.input[0], node.output[0])
    )
    model.graph.output.extend(helper.make_tensor_value_info(tensor, TensorProto.FLOAT, None) for tensor in ends)
    return dict(zip(ends, by_onnxruntime(model, images(name), *ends), strict=True))


def snr_db(wanted: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    return float(10 * np.log10((wanted**2).sum() / max(((wanted - found) ** 2).sum(), 1e-30)))


def converted(model: ModelProto, folder: Path) -> tuple[Layer, ...]:
    onnx.save(model, folder / "model.onnx")
    return building.convert(read_source(folder / "model.onnx"))


@cache
def in_int8(name: str) -> tuple[Layer, ...]:
    with TemporaryDirectory() as folder:
        return converted(graphs(name)[1], Path(folder))


def in_float64(model: ModelProto, node: NodeProto, given: NDArray[np.float32]) -> NDArray[np.float64]:
    """A convolution with a dequantized weight. Large products that cancel leave float32 too few digits."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    [dequantize] = [other for other in model.graph.node if other.output[0] == node.input[1]]
    integers, scale = constants[dequantize.input[0]], constants[dequantize.input[1]]
    weight = integers * scale.astype(np.float64).reshape(-1, 1, 1, 1)
    settings = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    result = torch.nn.functional.conv2d(
        torch.from_numpy(given).double(), torch.from_numpy(weight), torch.from_numpy(constants[node.input[2]]).double(),
        settings["strides"], settings["pads"][:2], groups=settings["group"],
    )  # fmt: skip
    return result.numpy()


@pytest.mark.parametrize("name", FAMILIES)
def test_float_computes_what_onnxruntime_does(name: str, tmp_path: Path) -> None:
    model, _ = graphs(name)
    onnx.save(model, tmp_path / "model.onnx")
    found = build("ncnn", tmp_path / "model.onnx").infer(images(name))["detections"]
    wanted = by_onnxruntime(model, images(name))
    assert snr_db(wanted[..., :4], found[..., :4]) > 90 and snr_db(wanted[..., 5:], found[..., 5:]) > 80


@pytest.mark.parametrize("name", FAMILIES)
def test_each_int8_layer_computes_the_simulated_convolution(name: str, tmp_path: Path) -> None:
    _, model = graphs(name)
    layers = {layer.name: layer for layer in in_int8(name) if layer.int8}
    onnx.save(model, tmp_path / "model.onnx")
    assert set(layers) == set(read_source(tmp_path / "model.onnx").int8_layers)
    nodes = {node.name: node for node in model.graph.node if node.name in layers}
    for layer, node in nodes.items():
        alone = replace(layers[layer], inputs=("in0",), outputs=("out0",))
        if alone.requantized:
            term = {8: str(alone.number(8) - 100)}
            alone = replace(alone, parameters={**alone.parameters, **term}, weights=alone.weights[:-1])
        alone = replace(alone, parameters={**alone.parameters, 9: "0"})  # the activation is a node of its own in ONNX
        given, wanted = simulated(name)[node.input[0]], simulated(name)[node.output[0]]
        if given.min() < -127.5 * alone.input_scale:
            continue  # NCNN has no -128
        [found] = run(open_network([Layer("Input", "in0", (), ("in0",)), alone], 1), given[0])
        if alone.kind == "Convolution":  # the sums are of integers: float32 is all that is rounded
            assert snr_db(wanted[0], found) > 100, layer
        else:  # on x86 the depthwise kernel divides by rcpps, with a relative error of 1.5 * 2^-12
            exact, bias = in_float64(model, node, given)[0], np.abs(alone.weights[1]).reshape(-1, 1, 1)
            assert np.all(np.abs(found - exact) <= 1.5 * 2.0**-12 * (np.abs(exact) + bias) + 1e-6), layer
            assert snr_db(exact, wanted[0]) > 100, layer


@pytest.mark.parametrize("name", FAMILIES)
def test_files_read_back_and_say_what_is_requantized(name: str) -> None:
    layers = in_int8(name)
    for network in (layers, in_float16(layers)):
        param, data = write(network)
        assert write(read(param, data)) == (param, data)
    readers = {blob: layer for layer in layers for blob in layer.inputs}

    def reached(blob: str) -> list[Layer | None]:
        reader = readers.get(blob)
        if reader is not None and reader.kind == "Split":
            return [layer for output in reader.outputs for layer in reached(output)]
        return [reader]

    for layer in layers:
        if layer.int8:
            behind = reached(layer.outputs[0])
            one_scale = all(r is not None and r.int8 for r in behind) and len({r.input_scale for r in behind}) == 1
            assert layer.requantized == one_scale
    assert any(layer.requantized for layer in layers) == (name != "yolox_nano")  # SiLU is float


@pytest.mark.parametrize("name", FAMILIES)
def test_what_pnnx_wrote_is_written_again_byte_by_byte(name: str, tmp_path: Path) -> None:
    onnx.save(graphs(name)[0], tmp_path / "model.onnx")
    command = [building.pnnx_program(), "model.onnx", f"inputshape=[1,3,{SIZE[0]},{SIZE[1]}]", "fp16=0"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    param, data = (tmp_path / PARAM).read_text(), (tmp_path / BIN).read_bytes()
    again, same = write(read(param, data))
    assert same == data and [line.split() for line in again.splitlines()] == [
        line.split() for line in param.splitlines()
    ]


def test_integers_are_those_of_the_graph() -> None:
    _, model = graphs("yolov6n_v2")
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for layer in in_int8("yolov6n_v2"):
        if layer.int8:
            np.testing.assert_array_equal(layer.weights[0], stored[f"{layer.name}.weight"].ravel())
            np.testing.assert_array_equal(layer.weights[2], np.float32(1) / stored[f"{layer.name}.weight_scale"])


def test_fp16_graph_has_fp16_weights_beside_integers(tmp_path: Path) -> None:
    half, _ = to_fp16(graphs("yolov6n_v2")[1])
    onnx.save(half, tmp_path / "model.onnx")
    build("ncnn", tmp_path / "model.onnx").save(tmp_path / "engine")
    [file] = (tmp_path / "engine").rglob(PARAM)
    kinds = {layer.weights[0].dtype.name for layer in read_network(file.parent) if layer.kind in CONVOLUTIONS}
    assert kinds == {"int8", "float16"}
    found = load(tmp_path / "engine").infer(images("yolov6n_v2"))["detections"]
    assert snr_db(by_onnxruntime(graphs("yolov6n_v2")[1], images("yolov6n_v2")), found) > 30


def test_fp16_weights_are_multiplied_as_they_were_rounded_and_fp32_weights_are_not_rounded() -> None:
    rng = np.random.default_rng(0)
    weight, image = rng.normal(0, 1, (64, 256)).astype(np.float32), rng.normal(0, 1, 256).astype(np.float32)
    parameters = {0: "64", 1: "1", 2: str(weight.size)}
    arrays = (weight.ravel(), np.zeros(64, np.float32))
    network = (
        Layer("Input", "in0", (), ("in0",)), Layer("InnerProduct", "product", ("in0",), ("out0",), parameters, arrays)
    )  # fmt: skip
    for layers, exact in ((network, weight), (in_float16(network), weight.astype(np.float16).astype(np.float32))):
        [found] = run(open_network(layers, 1), image)
        values = image if exact is weight else image.astype(np.float16).astype(np.float32)
        assert max(snr_db(exact @ given, found) for given in (image, values)) > 100


def focus() -> ModelProto:
    """Slices in steps before a convolution."""
    ints = {"starts0": [0], "starts1": [1], "ends": [1 << 30], "rows": [2], "columns": [3], "steps": [2]}
    constants = [helper.make_tensor(name, TensorProto.INT64, [1], value) for name, value in ints.items()]
    weight = np.random.default_rng(0).normal(0, 0.3, (8, 12, 3, 3)).astype(np.float32)
    constants.append(onnx.numpy_helper.from_array(weight, "conv.weight"))
    nodes, parts = [], []
    for x in (0, 1):
        for y in (0, 1):
            nodes.append(helper.make_node("Slice", ["images", f"starts{y}", "ends", "rows", "steps"], [f"row{x}{y}"]))
            nodes.append(
                helper.make_node("Slice", [f"row{x}{y}", f"starts{x}", "ends", "columns", "steps"], [f"part{x}{y}"])
            )
            parts.append(f"part{x}{y}")
    nodes.append(helper.make_node("Concat", parts, ["deep"], axis=1))
    nodes.append(helper.make_node("Conv", ["deep", "conv.weight"], ["out"], pads=[1] * 4))
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
        for n, s in (("images", [1, 3, 32, 32]), ("out", [1, 8, 16, 16]))
    ]
    graph = helper.make_graph(nodes, "focus", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def two_alike() -> ModelProto:
    model = detector()
    values = {tensor.name: tensor for tensor in model.graph.initializer}
    values["body.1.conv.weight"].raw_data = values["body.0.conv.weight"].raw_data
    return model


def computed_weight() -> ModelProto:
    model = detector()
    node = next(node for node in model.graph.node if node.op_type == "Conv")
    model.graph.node.insert(0, helper.make_node("Abs", [node.input[1]], ["computed"]))
    node.input[1] = "computed"
    return model


def wide() -> ModelProto:
    """Images in float64, and the rest of the graph in float32."""
    model = detector()
    entry = model.graph.input[0]
    model.graph.node.insert(0, helper.make_node("Cast", [entry.name], ["narrow"], to=TensorProto.FLOAT))
    for node in list(model.graph.node)[1:]:
        node.input[:] = ["narrow" if name == entry.name else name for name in node.input]
    entry.type.tensor_type.elem_type = TensorProto.DOUBLE
    return model


def asymmetric() -> ModelProto:
    image = np.random.default_rng(0).uniform(0, 1, (1, 3, 32, 32)).astype(np.float32)
    return detector(LAYERS, asymmetric=True, scales=calibrated_scales(detector(), image, asymmetric=True))


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (asymmetric, "--target ncnn"),
        (lambda: detector(batch=2), "give --batch 1, or an ONNX file exported with --batch dynamic"),
        (focus, "pnnx"),
        (two_alike, "weights of its own"),
        (computed_weight, "stored weights alone"),
        (wide, "FP32 or FP16"),
    ],
)
def test_graphs_that_ncnn_cannot_run_are_refused(model, text: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=text):
        converted(model(), tmp_path)


def converter(folder: Path, code: str) -> Path:
    """A program that runs pnnx and then ``code``."""
    path = folder / "converter"
    path.write_text(
        f"#!{sys.executable}\nimport subprocess, sys, pathlib\nsubprocess.run([{str(building.pnnx_program())!r}, "
        f"*sys.argv[1:]], stdout=-3)\nparam = pathlib.Path('{PARAM}')\ntext = param.read_text()\n{code}\n"
    )
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("sys.exit('no memory')", "exit code 1: no memory"),
        ("pathlib.Path('model.ncnn.bin').unlink()", "exit code 0"),
        ("param.write_text(text.replace(' 9=1', ' 9=0', 1))", "computes something else"),  # a Relu less
        ("param.write_text(text.replace('Pooling  ', 'Puddling ', 1))", "cannot run what pnnx made"),
        ("param.write_text(text.replace('6=', '6=1', 1))", "no NCNN model"),
    ],
)
def test_a_converter_that_fails_is_noticed(code: str, text: str, tmp_path: Path, monkeypatch) -> None:
    program = converter(tmp_path, code)
    monkeypatch.setattr(building, "pnnx_program", lambda: program)
    with pytest.raises(EngineError, match=text):
        converted(detector(), tmp_path)


@pytest.mark.parametrize("missing", ["ncnn", "pnnx"])
def test_a_missing_wheel_is_named(missing: str, tmp_path: Path, monkeypatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else found(name))
    monkeypatch.setitem(sys.modules, missing, None)
    onnx.save(detector(), tmp_path / "model.onnx")
    with pytest.raises(EngineError, match=r"pip install 'repq\[ncnn\]'"):
        build("ncnn", tmp_path / "model.onnx")
    [row] = [row for row in availability() if row.runtime == "ncnn"]
    assert not row.usable and missing in row.detail


def test_damaged_files_are_refused() -> None:
    param, data = write(in_int8("yolov6n_v2"))
    for text, values in ((param, data[:-4]), (param, data + bytes(4)), ("7\n" + param, data), (param, b"x" + data[1:])):
        with pytest.raises(EngineError, match="no NCNN model"):
            read(text, values)


FORMS = ("a {} b", "x\t{}", "{}=1", "層 {}")


@pytest.mark.parametrize("int8", [False, True])
def test_tensors_may_have_any_names(int8: bool, tmp_path: Path) -> None:
    """The words of a line are fields there. The names take the forms in turn, the image and the result one each."""
    model, other = graphs("yolov6n_v2")[int8], ModelProto()
    other.CopyFrom(model)
    weights = {name for node in other.graph.node for name in node.input if name.endswith(".weight")}  # tell layers
    produced = (name for node in other.graph.node for name in (*node.input, *node.output) if name)
    forms = dict(zip(dict.fromkeys(produced), cycle(FORMS[2 * int8 :] + FORMS[: 2 * int8])))

    def renamed(name: str) -> str:
        return name if name in weights or not name else forms[name].format(name)

    for node in other.graph.node:
        for names in (node.input, node.output):
            names[:] = map(renamed, names)
    for value in (*other.graph.initializer, *other.graph.input, *other.graph.output):
        value.name = renamed(value.name)
    del other.graph.value_info[:]
    whole = in_int8("yolov6n_v2") if int8 else converted(model, tmp_path)
    assert write(whole) == write(converted(other, tmp_path))


def test_a_graph_of_any_size_is_to_be_of_one(tmp_path: Path) -> None:
    model = detector()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    with pytest.raises(EngineError, match="export it for one size"):
        converted(model, tmp_path)


@pytest.mark.parametrize("types", [pair for pair in PAIRS if {*pair} - {*EIGHT_BITS}], ids="-".join)
def test_other_types_than_8_bit_integers_are_refused(types: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="symmetric INT8 only") as raised:
        converted(typed(*types), tmp_path)
    assert any(kind in str(raised.value.found) for kind in {*types} - {*EIGHT_BITS})


def test_names_of_layers_are_words() -> None:
    assert building.written_name(LayerId("a layer\tid")) == "a_layer_id"
