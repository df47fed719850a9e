"""A graph as a detector computes what the graph computes, for any batch, and gives it back as it was."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from detectors import CLASSES, COUNT, DETECTORS, NAMES, SIZE, Graph, shares, yolov5, yolov8, yolox_raw
from onnx import ModelProto, TensorProto, helper, numpy_helper

from repq.errors import GraphError, RepqError
from repq.evaluate import postprocess
from repq.export import export_float, export_quantized
from repq.graph import lint, nms_output, read_metadata
from repq.model import Checkpoint, build, count_macs, layer_ids, load_graph, read_spec
from repq.quant import quantize
from repq.recipe import EvalConfig, GraphConfig, NmsConfig, PtqConfig

IMGSZ = (SIZE, SIZE)


def saved(model: ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


def run(model: ModelProto | Path, images: torch.Tensor) -> list[np.ndarray]:
    """Outputs of ONNX Runtime without any optimization, image by image."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    content = model.read_bytes() if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    each = [session.run(None, {name: image[None].numpy()}) for image in images]
    return [np.concatenate(parts) for parts in zip(*each, strict=True)]


def noise(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, *IMGSZ, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=DETECTORS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return saved(DETECTORS[request.param](), tmp_path)


def test_it_computes_what_the_graph_computes_for_any_batch(path: Path) -> None:
    model, images = load_graph(path).model, noise(3)
    with torch.no_grad():
        outputs = model.outputs(model.features(images))
        alone = model.outputs(model.features(images[1:2]))
    for own, single, expected in zip(outputs, alone, run(path, images), strict=True):
        np.testing.assert_allclose(own.numpy(), expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(single.numpy(), own[1:2].numpy(), rtol=1e-4, atol=1e-4)


def test_nothing_is_kept_that_nobody_reads_any_more(path: Path) -> None:
    model = load_graph(path).model
    ends = (*model.program.outputs, *model.parts.unranked)
    for steps, kept in ((model.parts.body, model.parts.crossing), (model.parts.head, ends)):
        written = {number for step in steps for number in step.writes}
        freed = [number for step in steps for number in step.frees]
        assert len(freed) == len(set(freed))
        assert written - set(freed) <= set(kept)


def test_it_survives_as_text_and_on_other_devices(path: Path) -> None:
    model = load_graph(path).model
    other = build(read_spec(model.spec.to_json()))
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(other.eval()(noise(1)), model(noise(1)))
    macs = count_macs(model, IMGSZ)
    assert set(macs) == set(layer_ids(model)) and min(macs.values()) > 0


@pytest.mark.parametrize("name", DETECTORS)
def test_the_float_graph_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    before = DETECTORS[name]()
    opened = load_graph(saved(before, tmp_path))
    after = export_float(opened.model, IMGSZ, names=opened.names)
    assert [node.op_type for node in after.graph.node] == [node.op_type for node in before.graph.node]
    assert [node.name for node in after.graph.node] == [node.name for node in before.graph.node]
    for side in ("input", "output"):
        assert [v.name for v in getattr(after.graph, side)] == [v.name for v in getattr(before.graph, side)]
    own = {entry.key: entry.value for entry in after.metadata_props if not entry.key.startswith("repq.")}
    assert own == {entry.key: entry.value for entry in before.metadata_props}
    for one, other in zip(run(before, noise(2)), run(after, noise(2)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("name", DETECTORS)
def test_the_quantized_graph_computes_what_the_simulation_does(name: str, scheme: str, tmp_path: Path) -> None:
    opened = load_graph(saved(DETECTORS[name](), tmp_path))
    config = PtqConfig(scheme=scheme, correct={"outputs": "mean"})  # type: ignore[arg-type]
    quantized = quantize(opened.model, [noise(4)], config).model
    graph = export_quantized(quantized, IMGSZ, names=opened.names)
    with torch.no_grad():
        wanted = quantized.outputs(quantized.features(noise(1, 1)))
    for value, expected in zip(run(graph, noise(1, 1)), wanted, strict=True):
        error = np.abs(value - expected.numpy())  # a value on the edge of two integers may round the other way
        assert np.mean(error > 1e-4 * np.abs(value).max()) < 0.02
    metadata = read_metadata(graph)
    assert metadata is not None and metadata.int8_layers == layer_ids(opened.model)
    assert metadata.layout == opened.spec.layout and not metadata.spec.count(opened.spec.graph)
    assert sum(row.precision == "int8" for row in lint(graph).layers) == len(layer_ids(opened.model))


@pytest.mark.parametrize("name", DETECTORS)
def test_the_layout_is_seen(name: str, tmp_path: Path) -> None:
    path = saved(DETECTORS[name](), tmp_path)
    seen, told = load_graph(path), load_graph(path, config=GraphConfig(layout=name))
    assert seen.spec.layout == told.spec.layout and seen.spec.num_classes == CLASSES
    with torch.no_grad():
        detections = seen.model(noise(2))
    rows = seen.spec.layout.rows(detections)
    assert rows.shape[2] == seen.spec.layout.width(CLASSES)
    scores = seen.spec.layout.scores_of(detections)
    assert float(scores.min()) >= 0 and float(scores.max()) <= 1
    with pytest.raises(RepqError, match="the outputs are not"):
        load_graph(path, config=GraphConfig(layout="detr" if name != "detr" else "yolov8"))


def test_raw_and_decoded_boxes_are_the_same_boxes(tmp_path: Path) -> None:
    raw, decoded = load_graph(saved(yolox_raw(), tmp_path)), load_graph(saved(yolov5(), tmp_path))
    with torch.no_grad():  # the same random weights in both
        torch.testing.assert_close(raw.model(noise(2)), decoded.model(noise(2)))


def test_what_the_file_says_is_read(tmp_path: Path) -> None:
    opened = load_graph(saved(yolov8(), tmp_path))
    assert opened.names == NAMES and opened.spec.preprocessing.resize == "linear"
    told = load_graph(saved(yolov8(), tmp_path), config=GraphConfig(preset="yolox"))
    assert told.spec.preprocessing.bgr and not told.notes


def test_the_head_reads_one_map_of_each_level(tmp_path: Path) -> None:
    for name in ("yolox-raw", "yolov5", "yolov8", "boxes-scores", "end2end"):
        model = load_graph(saved(DETECTORS[name](), tmp_path)).model
        assert model.spec.strides == (8, 16)
        with torch.no_grad():
            assert [tuple(part.shape) for part in model.features(noise(2))] == [(2, 16, 8, 8), (2, 32, 4, 4)]


def test_ranked_outputs_are_compared_before_they_are_ranked(tmp_path: Path) -> None:
    model = load_graph(saved(DETECTORS["end2end"](), tmp_path)).model
    plain = load_graph(saved(DETECTORS["yolov8"](), tmp_path)).model
    with torch.no_grad():
        detections, (boxes, scores) = model.complete(model.features(noise(2)))
        layout, all_of_them = plain.spec.layout, plain(noise(2))  # the same random weights in both
    assert detections.shape == (2, 20, 4 + CLASSES)
    torch.testing.assert_close(boxes, torch.cat(layout.corners(layout.boxes_of(all_of_them)), -1))
    torch.testing.assert_close(scores, layout.scores_of(all_of_them))


def test_batch_norms_are_folded_and_halves_are_converted(tmp_path: Path) -> None:
    model = yolov5()
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    rng = np.random.default_rng(0)
    for name, values in zip("gbmv", rng.uniform(0.5, 1.5, (4, 8)).astype(np.float32), strict=True):
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    norm = helper.make_node("BatchNormalization", ["normed", *"gbmv"], [conv.output[0]], "norm")
    conv.output[0] = "normed"
    model.graph.node.insert(list(model.graph.node).index(conv) + 1, norm)
    path = saved(model, tmp_path)
    opened = load_graph(path)
    with torch.no_grad():
        own = opened.model.outputs(opened.model.features(noise(1)))[0].numpy()
    np.testing.assert_allclose(own, run(path, noise(1))[0], rtol=1e-4, atol=1e-4)
    assert "folded 1 batch normalizations into the convolutions before them" in opened.notes
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    assert "converted FP16 to float32" in load_graph(saved(model, tmp_path)).notes


@pytest.mark.parametrize("dims", [(1, 3, "h", "w"), (1, 3, SIZE, "w"), ("n", 3, SIZE, SIZE), ("n", 3, "h", "w")])
def test_free_axes(dims: tuple[object, ...], tmp_path: Path) -> None:
    model = yolov5()
    shape = model.graph.input[0].type.tensor_type.shape
    for axis, size in zip(shape.dim, dims, strict=True):
        axis.Clear()
        if isinstance(size, int):
            axis.dim_value = size
        else:
            axis.dim_param = str(size)
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    path = saved(model, tmp_path)
    if not {"h", "w"}.isdisjoint(dims):
        with pytest.raises(GraphError, match="images of any size"):
            load_graph(path)
    if SIZE in dims:
        with pytest.raises(GraphError, match=f"takes images of {dims[2]}x{dims[3]}"):
            load_graph(path, (SIZE // 2, SIZE))
    assert load_graph(path, IMGSZ).model(noise(2)).shape == (2, COUNT, 5 + CLASSES)


def _computed(g: Graph) -> str:
    x = g.conv("input", 3, 8, stride=8)
    return str(g.op("Conv", x, g.op("Reshape", g.op("ReduceMean", x, axes=[2, 3]), g.ints(1, 8, 1, 1))))


def _computed_by_many(g: Graph) -> str:
    """As many ways through the graph as two to the power of 40."""
    x = mean = g.conv("input", 3, 8, stride=8)
    for _ in range(40):
        mean = g.op("Add", mean, mean)
    return str(g.op("Conv", x, g.op("Reshape", g.op("ReduceMean", mean, axes=[2, 3]), g.ints(1, 8, 1, 1))))


def _quantized(g: Graph) -> str:
    step = g.constant(0.1)
    return str(g.op("DequantizeLinear", g.op("QuantizeLinear", "input", step), step))


REFUSED = {
    "a weight that is computed": (_computed, "have no weight of their own"),
    "a weight that is computed in many ways": (_computed_by_many, "have no weight of their own"),
    "unknown operators": (lambda g: g.op("Det", g.op("LpPool", "input", kernel_shape=[2, 2])), r"Det \(1\), LpPool"),
    "a quantized graph": (_quantized, "is quantized already"),
    "a classifier": (lambda g: g.op("Flatten", g.op("GlobalAveragePool", g.conv("input", 3, 8))), "classification"),
    "a map of the image": (lambda g: g.conv("input", 3, 8), "segmentation"),
    "a coarse map": (lambda g: g.conv("input", 3, 8, stride=8), "export it with its boxes decoded"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_said(case: str, tmp_path: Path) -> None:
    make, message = REFUSED[case]
    g = Graph()
    output = helper.make_tensor_value_info(make(g), TensorProto.FLOAT, ["any"])
    image = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, *IMGSZ])
    made = helper.make_graph(g.nodes, "net", [image], [output], g.stored)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", g.opset)], ir_version=9)
    with pytest.raises(RepqError, match=message):
        load_graph(saved(model, tmp_path))


def test_several_inputs_and_other_shapes_are_refused(tmp_path: Path) -> None:
    model = yolov5()
    model.graph.input.append(helper.make_tensor_value_info("sizes", TensorProto.FLOAT, [1, 2]))
    with pytest.raises(GraphError, match="exactly one input"):
        load_graph(saved(model, tmp_path))
    model = yolov5()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    with pytest.raises(GraphError, match="4 images at once"):
        load_graph(saved(model, tmp_path))
    with pytest.raises(GraphError, match="takes images of 64x64"):
        load_graph(saved(yolov5(), tmp_path), (128, 128))
    model = yolov5()
    model.opset_import[0].version = 9
    with pytest.raises(GraphError):
        load_graph(saved(model, tmp_path))


def test_weights_beside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(yolov5(), path, save_as_external_data=True, size_threshold=0, location="weights.bin")
    assert len(layer_ids(load_graph(path).model)) == 11
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(GraphError, match=r"must lie beside it|no valid ONNX"):
        load_graph(path)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"none")
    with pytest.raises(GraphError, match=r"no valid ONNX|no ONNX"):
        load_graph(path)


SUPPRESSED = {name: DETECTORS[name] for name in ("yolox-raw", "yolov5", "yolov8", "boxes-scores")}
SUPPRESSED |= {f"shares-{which}": partial(shares, which) for which in ("first", "last")}


@pytest.mark.parametrize("name", SUPPRESSED)
def test_suppression_inside_finds_what_suppression_outside_finds(name: str, tmp_path: Path) -> None:
    opened = load_graph(saved(SUPPRESSED[name](), tmp_path))
    assert opened.spec.num_classes == CLASSES and not opened.spec.layout.one_per_object
    demand_same_suppression(opened, confidence=0.2)


def demand_same_suppression(opened: Checkpoint, confidence: float) -> None:
    settings: dict[str, Any] = {"confidence": confidence, "iou": 0.5, "max_detections": 30, "multi_label": False}
    inside = nms_output(export_float(opened.model, IMGSZ, names=opened.names or NAMES), NmsConfig(**settings))
    with torch.no_grad():
        detections = opened.model(noise(2)).numpy()
    wanted = postprocess(detections, EvalConfig(**settings), opened.spec.layout)
    for found, expected in zip(run(inside, noise(2))[0], wanted, strict=True):
        assert len(expected)
        np.testing.assert_allclose(found[found[:, 4] > 0], expected, rtol=1e-3, atol=1e-2)


def test_final_boxes_are_not_suppressed_again(tmp_path: Path) -> None:
    opened = load_graph(saved(DETECTORS["end2end"](), tmp_path))
    with pytest.raises(GraphError, match="suppresses already"):
        nms_output(export_float(opened.model, IMGSZ, names=opened.names), NmsConfig())
