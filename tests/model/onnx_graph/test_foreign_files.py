"""Files as other tools write them: in any order, with names twice, in old forms, with wrong shapes; and broken ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from detectors import COUNT, DETECTORS, NAMES, SIZE, Graph, _corners, _decoded, yolov5, yolov8
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from test_graph_detector import noise, run, saved

from repq.api.exporting import write_onnx
from repq.errors import GraphError, RepqError
from repq.export import export_float, export_quantized
from repq.model import layer_ids, load_graph
from repq.quant import Weights, quantize
from repq.recipe import ExportConfig, GraphConfig, PtqConfig

IMGSZ = (SIZE, SIZE)
EXPECTED = run(yolov5(), noise(1))[0]


def ordered(model: ModelProto, order: list[int]) -> ModelProto:
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes[number] for number in order)
    return model


def outputs(path: Path) -> np.ndarray:
    model = load_graph(path, IMGSZ).model
    with torch.no_grad():
        return np.asarray(model.outputs(model.features(noise(1)))[0])


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(len(yolov5().graph.node))))
def test_nodes_may_stand_in_any_order(tmp_path_factory: pytest.TempPathFactory, order: list[int]) -> None:
    path = saved(ordered(yolov5(), order), tmp_path_factory.mktemp("any"))
    np.testing.assert_allclose(outputs(path), EXPECTED, rtol=1e-4, atol=1e-4)


def _names_twice(model: ModelProto) -> None:
    for node in model.graph.node:
        node.name = "same"


def _weights_as_inputs(model: ModelProto) -> None:
    model.ir_version = 3
    stored = [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer]
    image = onnx.ValueInfoProto.FromString(model.graph.input[0].SerializeToString())
    del model.graph.input[:]
    model.graph.input.extend([*stored, image])


def _negative_axes(model: ModelProto) -> None:
    for axis, size in zip((0, 2, 3), (-1, 0, -1), strict=True):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size


def _wrong_output(model: ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 999


def _maps_behind(model: ModelProto) -> None:
    """The raw maps of anchors, which YOLOv5 and v7 write behind their boxes."""
    maps = [node.output[0] for node in model.graph.node if node.op_type == "Concat" and len(node.input) == 3][:2]
    for number, (name, side) in enumerate(zip(maps, (8, 4), strict=True)):
        shape = numpy_helper.from_array(np.array([1, 1, 8, side, side]), f"shape_{number}")
        model.graph.initializer.append(shape)
        model.graph.node.append(helper.make_node("Reshape", [name, shape.name], [f"map_{number}"], f"map_{number}"))
        dims = [1, 1, 8, side, side]
        model.graph.output.append(helper.make_tensor_value_info(f"map_{number}", TensorProto.FLOAT, dims))


def _constant_nodes(model: ModelProto) -> None:
    stored = [TensorProto.FromString(tensor.SerializeToString()) for tensor in model.graph.initializer]
    del model.graph.initializer[:]
    for tensor in stored:
        model.graph.node.append(helper.make_node("Constant", [], [tensor.name], value=tensor))


@pytest.mark.parametrize(
    "change", [_names_twice, _weights_as_inputs, _negative_axes, _wrong_output, _maps_behind, _constant_nodes]
)
def test_other_forms_of_one_graph(change: Callable[[ModelProto], None], tmp_path: Path) -> None:
    model = yolov5()
    change(model)
    path = saved(model, tmp_path)
    np.testing.assert_allclose(outputs(path), EXPECTED, rtol=1e-4, atol=1e-4)
    opened = load_graph(path, IMGSZ)
    assert len(layer_ids(opened.model)) == 11
    graph = export_quantized(quantize(opened.model, [noise(2)], PtqConfig()).model, IMGSZ)
    assert run(graph, noise(1))[0].shape == (1, COUNT, 8)  # the runtime takes it
    assert [value.name for value in graph.graph.output] == [value.name for value in model.graph.output]


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(sorted(DETECTORS)), st.data())
def test_any_nodes_may_be_a_function(tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject) -> None:
    """Exporters make functions of modules: a graph is the same with some of its nodes inside one, or in two levels."""
    model = DETECTORS[name]()
    nodes = list(model.graph.node)
    first = data.draw(st.integers(0, len(nodes) - 1))
    end = data.draw(st.integers(first + 1, len(nodes)))
    inner = data.draw(st.integers(first + 1, end))
    plain = run(model, noise(1))
    for start, stop in ((first, inner), (first, end - (inner - first) + 1)):
        _make_function(model, start, stop)
    onnx.checker.check_model(model)
    opened = load_graph(saved(model, tmp_path_factory.mktemp("any")), IMGSZ)
    with torch.no_grad():
        found = opened.model.outputs(opened.model.features(noise(1)))
    for value, expected in zip(found, plain, strict=True):
        np.testing.assert_allclose(value.numpy(), expected, rtol=1e-4, atol=1e-4)
    assert any("functions" in note for note in opened.notes)
    assert {entry.domain for entry in export_float(opened.model, IMGSZ).opset_import} == {""}


def _make_function(model: ModelProto, first: int, end: int) -> None:
    """Put nodes of a graph into a function of the file's own, in place."""
    copies = [NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
    body, others = copies[first:end], copies[:first] + copies[end:]
    made = dict.fromkeys(name for node in body for name in node.output)
    read = dict.fromkeys(name for node in body for name in node.input if name and name not in made)
    wanted = {name for node in others for name in node.input} | {output.name for output in model.graph.output}
    given = [name for name in made if name in wanted]
    name = f"Part{len(model.functions)}"
    imports = [model.opset_import[0], helper.make_opsetid("own.parts", 1)]
    model.functions.append(helper.make_function("own.parts", name, list(read), given, body, imports))
    if not model.functions[:-1]:
        model.opset_import.append(helper.make_opsetid("own.parts", 1))
    call = helper.make_node(name, list(read), given, f"call {name}", domain="own.parts")
    del model.graph.node[:]
    model.graph.node.extend([*copies[:first], call, *copies[end:]])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.sampled_from("a12"), max_size=3), min_size=11, max_size=11), st.sampled_from("./"))
def test_nodes_may_have_any_names(
    tmp_path_factory: pytest.TempPathFactory, names: list[list[str]], separator: str
) -> None:
    """Also such as are made of other names, and numbers behind them."""
    model = yolov5()
    layers = [node for node in model.graph.node if node.op_type == "Conv"]
    for node, parts in zip(layers, names, strict=True):
        node.name = separator.join(parts)
    path = saved(model, tmp_path_factory.mktemp("any"))
    found = layer_ids(load_graph(path).model)
    assert len(set(found)) == len(found) == len(layers)
    np.testing.assert_allclose(outputs(path), EXPECTED, rtol=1e-4, atol=1e-4)


@settings(max_examples=10, deadline=None)
@given(st.integers(2, 4), st.sampled_from([1, 3]), st.booleans(), st.sampled_from(["symmetric", "asymmetric"]))
def test_weights_that_several_layers_read(
    tmp_path_factory: pytest.TempPathFactory, levels: int, kernel: int, bias: bool, scheme: Literal["symmetric"]
) -> None:
    """Heads that all levels share: each level has a layer of its own, and scales of its own."""
    g = Graph()
    x = g.op("Relu", g.conv("input", 3, 8, stride=4))
    parts, own = [g.constant(g.rng.normal(0, 0.3, (8, 8, kernel, kernel)))], [g.constant(g.rng.normal(0, 1, 8))]
    shared = parts + (own if bias else [])
    maps = []
    for _ in range(levels):
        x = g.op("AveragePool", g.op("Conv", x, *shared, pads=[kernel // 2] * 4), kernel_shape=[2, 2], strides=[2, 2])
        maps.append(g.op("Sigmoid", x))
    count = sum((8 >> level) ** 2 for level in range(levels))
    path = saved(g.model({"output": (g.rows(maps, 8), [1, count, 8])}), tmp_path_factory.mktemp("any"))
    opened = load_graph(path, config=GraphConfig(layout="yolov8"))
    assert len(layer_ids(opened.model)) == levels + 1 and any("several layers" in note for note in opened.notes)
    np.testing.assert_allclose(run(export_float(opened.model, IMGSZ), noise(1))[0], run(path, noise(1))[0], atol=1e-5)
    quantized = quantize(opened.model, [noise(2)], PtqConfig(scheme=scheme)).model
    with torch.no_grad():
        wanted = quantized.outputs(quantized.features(noise(1)))[0].numpy()
    error = np.abs(run(export_quantized(quantized, IMGSZ), noise(1))[0] - wanted)
    assert np.mean(error > 1e-4) < 0.02


def small(make: Callable[[Graph], str], columns: int = 8) -> ModelProto:
    """A detector of one level."""
    g = Graph()
    return g.model({"output": (g.rows([g.op("Sigmoid", g.conv(make(g), 8, columns, 1))], columns), [1, 64, columns])})


def _one_dimension(g: Graph, copied: bool = False) -> str:
    """Channel attention by a convolution along the channels (arXiv 1910.03151), with a weight named as a layer's."""
    x = g.conv("input", 3, 8, stride=8)
    means = g.op("Transpose", g.op("Squeeze", g.op("GlobalAveragePool", x), g.ints(3)), perm=[0, 2, 1])
    g.stored.append(numpy_helper.from_array(g.rng.normal(0, 1, (1, 1, 3)).astype(np.float32), "eca.weight"))
    weight = g.op("Identity", "eca.weight") if copied else "eca.weight"
    mixed = g.op("Transpose", g.op("Conv", means, weight, kernel_shape=[3], pads=[1, 1]), perm=[0, 2, 1])
    return str(g.op("Mul", x, g.op("Sigmoid", g.op("Unsqueeze", mixed, g.ints(3)))))


@pytest.mark.parametrize("copied", [False, True])
def test_convolutions_of_one_dimension_stay_in_float(copied: bool, tmp_path: Path) -> None:
    opened = load_graph(saved(small(partial(_one_dimension, copied=copied)), tmp_path))
    assert len(layer_ids(opened.model)) == 2
    quantized = quantize(opened.model, [noise(2)], PtqConfig()).model
    graph = export_quantized(quantized, IMGSZ)
    with torch.no_grad():
        wanted = quantized.outputs(quantized.features(noise(1)))[0].numpy()
    np.testing.assert_allclose(run(graph, noise(1))[0], wanted, atol=1e-4)


def _constant_behind_rows(g: Graph) -> str:
    """(1, 8, 64) and a constant of four axes give (1, 8, 8, 64): the constant counts rows, not channels."""
    rows = g.op("Reshape", g.conv("input", 3, 8, stride=8), g.ints(1, 8, 64))
    mixed = g.op("Conv", rows, g.constant(g.rng.normal(0, 1, (8, 8, 1))), kernel_shape=[1])
    total = g.op("Add", mixed, g.constant(g.rng.normal(0, 1, (1, 8, 1, 1))))
    return str(g.op("Reshape", g.op("ReduceMean", total, axes=[1]), g.ints(1, 8, 8, 8)))


def _constant_behind_volumes(g: Graph) -> str:
    """Added to (1, 8, 8, 2, 4), it counts the depth, not the channels."""
    volume = g.op("Reshape", g.conv("input", 3, 8, stride=8), g.ints(1, 1, 8, 16, 4))
    mixed = g.op("Conv", volume, g.constant(g.rng.normal(0, 1, (8, 1, 1, 1, 1))), kernel_shape=[1, 1, 1])
    total = g.op("Add", mixed, g.constant(g.rng.normal(0, 1, (1, 8, 1, 1))))
    return str(g.op("Reshape", g.op("ReduceMean", total, axes=[1]), g.ints(1, 8, 8, 8)))


@pytest.mark.parametrize("make", [_constant_behind_rows, _constant_behind_volumes])
def test_what_is_added_to_convolutions_of_other_dimensions(make: Callable[[Graph], str], tmp_path: Path) -> None:
    path = saved(small(make), tmp_path)
    np.testing.assert_allclose(outputs(path), run(path, noise(1))[0], rtol=1e-4, atol=1e-4)


def test_a_suppression_inside(tmp_path: Path) -> None:
    """How many rows there are hangs on values."""
    g = Graph()
    boxes, scores = _decoded(g, False)
    corners, by_class = _corners(g, boxes), g.op("Transpose", scores, perm=[0, 2, 1])
    found = g.op("NonMaxSuppression", corners, by_class, g.ints(9), g.constant([0.5]), g.constant([0.1]))
    image, label, row = g.op("Split", found, g.ints(1, 1, 1), axis=1, outputs=3)
    score = g.op("Unsqueeze", g.op("GatherND", by_class, g.op("Concat", image, label, row, axis=1)), g.ints(1))
    box = g.op("Gather", g.op("Squeeze", corners, g.ints(0)), g.op("Squeeze", row, g.ints(1)), axis=0)
    rows = g.op("Concat", box, score, g.op("Cast", label, to=TensorProto.FLOAT), axis=1)
    _, order = g.op("TopK", g.op("Squeeze", score, g.ints(1)), g.op("Shape", score, end=1), outputs=2)
    output = g.op("Unsqueeze", g.op("Gather", rows, order, axis=0), g.ints(0))
    path = saved(g.model({"output": (output, [1, "k", 6])}, names=str(list(NAMES))), tmp_path)  # type: ignore[list-item]
    opened = load_graph(path)
    assert opened.model.spec.layout.ranked == 3
    quantized = quantize(opened.model, [noise(2)], PtqConfig())
    assert all(row.macs > 0 for row in quantized.layers)


def _sequence(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("SequenceConstruct", ["output"], ["several"], "several"))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_sequence_value_info("several", TensorProto.FLOAT, None))


def _text(model: ModelProto) -> None:
    model.graph.initializer.append(helper.make_tensor("text", TensorProto.STRING, [1], [b"abc"]))
    model.graph.node.append(helper.make_node("Identity", ["text"], ["said"], "said"))
    model.graph.output.append(helper.make_tensor_value_info("said", TensorProto.STRING, [1]))


def _sparse(model: ModelProto) -> None:
    bias = next(t for t in model.graph.initializer if len(t.dims) == 1 and t.data_type == TensorProto.FLOAT)
    values = helper.make_tensor(bias.name, TensorProto.FLOAT, [1], [1.0])
    places = helper.make_tensor("places", TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, list(bias.dims)))
    model.graph.initializer.remove(bias)


def _training(model: ModelProto) -> None:
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(helper.make_node("Unsqueeze", ["before", "axis"], ["wide"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "axis"))
    for name in "sbmv":
        model.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), name))
    norm = helper.make_node("BatchNormalization", ["wide", *"sbmv"], ["normed", "mean", "var"], "bn", training_mode=1)
    model.graph.node.extend([norm, helper.make_node("Squeeze", ["normed", "axis"], ["output"])])


def _circle(model: ModelProto) -> None:
    first, second = [node for node in model.graph.node if node.op_type == "Conv"][:2]
    first.input[0] = second.output[0]


def _lost(model: ModelProto) -> None:
    model.graph.node[0].input[0] = "nowhere"


def _infinite(model: ModelProto) -> None:
    centres = next(t for t in model.graph.initializer if len(t.dims) == 3)
    values = numpy_helper.to_array(centres).copy()
    values.flat[0] = np.inf
    centres.CopyFrom(numpy_helper.from_array(values, centres.name))


REFUSED: dict[Callable[[ModelProto], Any], str] = {
    _sequence: "several: sequence",
    _text: r"STRING \(1\)",
    _sparse: r"sparse weights \(1\)",
    _training: "exported for training: bn",
    _circle: "a circle through",
    _lost: "nothing gives 'nowhere'",
    _infinite: "1 of 640 of the output 'output'",
    lambda model: model.graph.ClearField("output"): "no graph with outputs",
    lambda model: model.graph.ClearField("node"): "no graph with nodes",
}


@pytest.mark.parametrize(("change", "message"), REFUSED.items(), ids=REFUSED.values())
def test_broken_files_are_refused(change: Callable[[ModelProto], Any], message: str, tmp_path: Path) -> None:
    model = yolov5()
    change(model)
    with pytest.raises(RepqError, match=message):
        load_graph(saved(model, tmp_path))


def test_metadata_that_contradict_the_graph_are_named(tmp_path: Path) -> None:
    with pytest.raises(RepqError, match=r"yolov8 of 3 classes, and 7 class names"):
        load_graph(saved(yolov8(names=str(list("abcdefg"))), tmp_path))
    with pytest.raises(RepqError, match="the file's metadata say task 'pose'"):
        load_graph(saved(yolov8(task="pose"), tmp_path))


def _resize_to(g: Graph, x: str) -> str:
    return str(g.op("Resize", x, "", "", g.ints(1, 8, 8, 8), mode="linear"))


def _resize_back(g: Graph, x: str) -> str:
    small_ = g.op("Resize", x, "", g.constant([1, 1, 0.5, 0.5]), mode="linear", antialias=1)
    return str(g.op("Resize", small_, "", "", g.op("Shape", x), mode="cubic"))


def _resize_axes(g: Graph, x: str) -> str:
    return str(g.op("Resize", x, "", "", g.ints(8, 8), axes=[2, 3], keep_aspect_ratio_policy="not_larger"))


def _resize_kept(g: Graph, x: str) -> str:
    shape = g.ints(1, 8, 8, 8)
    return str(g.op("Resize", x, "", "", shape, keep_aspect_ratio_policy="not_larger", mode="linear"))


def _expanded(g: Graph, x: str) -> str:
    return str(g.op("Add", x, g.op("Expand", g.op("ReduceMean", x, g.ints(2, 3)), g.ints(1, 8, 8, 8))))


def _grid_of_one(g: Graph, x: str) -> str:
    grid = g.rng.uniform(-1, 1, (1, 8, 8, 2))
    return str(g.op("GridSample", x, g.constant(grid), mode="linear", align_corners=0))


def _first_image(g: Graph, x: str) -> str:
    return str(g.op("Unsqueeze", g.op("Gather", x, g.constant(0, np.int64), axis=0), g.ints(0)))


def _tokens_first(g: Graph, x: str) -> str:
    """(tokens, 1, channels), as torch's attention has them."""
    rows = g.op("Transpose", g.op("Reshape", x, g.ints(1, 8, 64)), perm=[2, 0, 1])
    mixed = g.op("Add", g.op("Softmax", rows, axis=2), g.constant(g.rng.normal(0, 1, (64, 1, 1))))
    return str(g.op("Reshape", g.op("Transpose", mixed, perm=[1, 2, 0]), g.ints(1, 8, 8, 8)))


def _sliced(g: Graph, x: str) -> str:
    begin, end = g.ints(0, 0, 0, 0), g.ints(1, 8, 8, 8)
    return str(g.op("Slice", g.op("Pad", x, g.ints(0, 0, 1, 1, 0, 0, 1, 1)), begin, end))


def _written(g: Graph, x: str) -> str:
    rows = g.op("ScatterND", x, g.constant([[0]], np.int64), g.op("Mul", x, g.constant(2)))
    return str(g.op("Concat", *g.op("Split", rows, g.ints(4, 4), axis=1, outputs=2), axis=1))


def _best_of_rare(g: Graph, x: str) -> str:
    """Rows whose scores are high by the layer's bias alone: with random weights, a suppression finds none of them."""
    weight, bias = g.constant(g.rng.normal(0, 1, (1, 8, 1, 1))), g.constant([9])
    scores = g.op("Reshape", g.op("Sigmoid", g.op("Conv", x, weight, bias)), g.ints(1, 1, 64))
    boxes = g.op("Transpose", g.op("Reshape", g.op("Slice", x, g.ints(0), g.ints(4), g.ints(1)), g.ints(1, 4, 64)),
                 perm=[0, 2, 1])  # fmt: skip
    found = g.op("NonMaxSuppression", boxes, scores, g.ints(3), g.constant([0.5]), g.constant([0.98]))
    return str(g.op("Add", x, g.op("ReduceSum", g.op("Cast", found, to=TensorProto.FLOAT))))


BOUND = [
    _resize_to, _resize_back, _resize_axes, _resize_kept, _expanded, _grid_of_one, _first_image, _tokens_first, _sliced,
    _written, _best_of_rare,
]  # fmt: skip


@pytest.mark.parametrize("step", BOUND)
def test_what_was_exported_for_one_image_runs_on_several(step: Callable[[Graph, str], str], tmp_path: Path) -> None:
    g = Graph(opset=20)
    head = g.conv(step(g, g.conv("input", 3, 8, stride=8)), 8, 8, 1)
    path = saved(g.model({"output": (g.rows([g.op("Sigmoid", head)], 8), [1, 64, 8])}), tmp_path)
    model = load_graph(path).model
    with torch.no_grad():
        found = model.outputs(model.features(noise(3)))[0].numpy()
    np.testing.assert_allclose(found, run(path, noise(3))[0], rtol=1e-4, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(sorted(DETECTORS)), st.integers(19, 21), st.booleans(), st.sampled_from(["n", 1]), st.data())
def test_an_export_is_what_was_asked_for(
    tmp_path_factory: pytest.TempPathFactory, name: str, opset: int, half: bool, axis: str | int, data: st.DataObject
) -> None:
    """The opset is raised and the batch fixed, or it is said that they cannot be; nothing is left aside in silence."""
    folder = tmp_path_factory.mktemp("any")
    batch = data.draw(st.sampled_from([None, 1, 3]))
    opened = load_graph(saved(_for_any_batch(DETECTORS[name](batch=axis)), folder), IMGSZ)
    quantized = quantize(opened.model, [noise(2)], PtqConfig()).model
    weights = Weights(quantized, opened.names, PtqConfig())
    config = ExportConfig(opset=opset, batch=batch, float16=half)
    if axis == 1 and batch != 1:
        with pytest.raises(GraphError, match="takes batches of 1 only"):
            write_onnx(weights, folder / "out.onnx", IMGSZ, config)
        return
    report = write_onnx(weights, folder / "out.onnx", IMGSZ, config)
    written = onnx.load(folder / "out.onnx")
    assert (report.opset, report.batch) == (written.opset_import[0].version, batch)
    assert report.opset == max(opset, DETECTORS[name]().opset_import[0].version)
    assert written.graph.input[0].type.tensor_type.shape.dim[0].dim_value == (batch or 0)
    assert {entry.key for entry in written.metadata_props} >= {entry.key for entry in DETECTORS[name]().metadata_props}
    images = noise(batch or 2, 1)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(written.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = session.run(None, {"input": images.numpy()})
    with torch.no_grad():
        wanted = quantized.outputs(quantized.features(images))
    for value, expected in zip(found, wanted, strict=True):
        assert value.shape == expected.shape
        error = np.abs(value - expected.numpy())
        assert half or np.mean(error > 1e-4 * np.abs(value).max()) < 0.02


@pytest.mark.parametrize("asked", [{"nms": {}}, {"preprocess": {"uint8": True, "letterbox": {}, "source": [48, 80]}}])
@pytest.mark.parametrize("name", ["yolov5", "yolov8", "boxes-scores", "nanodet", "yolox-raw"])
@pytest.mark.parametrize("free_sides", [False, True])
def test_what_needs_sizes_works_where_the_file_does_not_say_them(
    name: str, free_sides: bool, asked: dict[str, Any], tmp_path: Path
) -> None:
    """Exporters name all axes of outputs of which they do not know that they are fixed."""
    free, fixed = (_for_any_batch(DETECTORS[name](batch=axis)) for axis in ("n", 1))
    for value in (*free.graph.output, *(free.graph.input if free_sides else ())):
        for number, axis in enumerate(value.type.tensor_type.shape.dim):
            if number > (1 if value.name == "input" else 0):
                axis.dim_param = f"{value.name}_dim_{number}"
    for output in free.graph.output:
        _hide_shape(free, output.name)
    found, wanted = (tmp_path / f"{number}.onnx" for number in range(2))
    for model, path in ((free, found), (fixed, wanted)):
        opened = load_graph(saved(model, tmp_path), IMGSZ)
        write_onnx(Weights(opened.model, opened.names, None), path, IMGSZ, ExportConfig.model_validate(asked))
    image = noise(1).numpy() if "nms" in asked else np.random.default_rng(0).integers(0, 256, (1, 48, 80, 3), np.uint8)
    sessions = [onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
                for path in (found, wanted)]  # fmt: skip
    one, other = (session.run(None, {"input": image}) for session in sessions)
    for part, expected in zip(one, other, strict=True):
        np.testing.assert_array_equal(part, expected)


def _hide_shape(model: ModelProto, output: str) -> None:
    """Let the shape of an output go through floats, which shape inference does not follow."""
    last = next(node for node in model.graph.node if output in node.output)
    last.output[0] = f"{output} whole"
    steps = [("Shape", f"{output} whole", {}), ("Cast", "0", {"to": TensorProto.FLOAT}), ("Cast", "1", {"to": 7})]
    for number, (kind, source, attributes) in enumerate(steps):
        read = source if number == 0 else f"{output} {source}"
        model.graph.node.append(helper.make_node(kind, [read], [f"{output} {number}"], **attributes))
    model.graph.node.append(helper.make_node("Reshape", [f"{output} whole", f"{output} 2"], [output]))


def _for_any_batch(model: ModelProto) -> ModelProto:
    """The first axis stays what it is, where the graph says 1."""
    shapes = {node.input[1] for node in model.graph.node if node.op_type == "Reshape"}
    for tensor in model.graph.initializer:
        if tensor.name in shapes:
            wanted = numpy_helper.to_array(tensor).copy()
            wanted[0] = 0
            tensor.CopyFrom(numpy_helper.from_array(wanted, tensor.name))
    return model


def optimized(model: onnx.ModelProto, level: str, path: Path) -> Path:
    """What ONNX Runtime writes of a graph: it lists every domain that it knows."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return path


def test_a_file_that_onnxruntime_wrote_is_exported_with_another_opset(tmp_path: Path) -> None:
    path = optimized(DETECTORS["yolov8"](), "BASIC", tmp_path / "basic.onnx")
    assert len(onnx.load(path).opset_import) > 1
    opened = load_graph(path, IMGSZ)
    report = write_onnx(
        Weights(opened.model, opened.names, None), tmp_path / "out.onnx", IMGSZ, ExportConfig(opset=21, float16=True)
    )
    assert report.opset == 21
    (found,), (wanted,) = run(tmp_path / "out.onnx", noise(1)), run(path, noise(1))
    np.testing.assert_allclose(found, wanted, atol=0.01 * np.abs(wanted).max())


def test_a_file_that_onnxruntime_fused_says_which_one_to_give(tmp_path: Path) -> None:
    g = Graph()
    x = g.conv("input", 3, 8, stride=8)
    head = g.conv(g.op("Mul", x, g.op("Sigmoid", x)), 8, 8, 1)
    path = saved(g.model({"output": (g.rows([g.op("Sigmoid", head)], 8), [1, 64, 8])}), tmp_path)
    fused = optimized(onnx.load(path), "EXTENDED", tmp_path / "fused.onnx")
    with pytest.raises(GraphError, match=r"com\.microsoft") as raised:
        load_graph(fused)
    assert "before ONNX Runtime optimized it" in str(raised.value.fix)
