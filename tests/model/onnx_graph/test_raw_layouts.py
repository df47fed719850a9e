"""Raw and final outputs become the boxes that the detectors' public descriptions say, computed here cell by cell."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectors import CLASSES, COUNT, DETECTORS, NAMES, SIZE, STRIDES, anchored, end2end, fastestdet, labelled, nanodet
from onnx import ModelProto, helper
from test_graph_detector import IMGSZ, demand_same_suppression, noise, run, saved

import repq
from repq.box_codings import CODINGS, coding
from repq.errors import GraphError, RepqError
from repq.export import export_float
from repq.graph import nms_output
from repq.layout import OutputLayout, cells_of
from repq.model import load_graph
from repq.output_layouts import LAYOUTS, Outputs, form_of, recognize
from repq.recipe import GraphConfig, NmsConfig

ANCHORS = (10.0, 13, 16, 30, 33, 23, 30, 61, 62, 45, 59, 119)


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def of_fastestdet(output: np.ndarray) -> list[list[float]]:
    _, height, width = output.shape
    rows = []
    for y in range(height):
        for x in range(width):
            objectness, dx, dy, w, h, *classes = output[:, y, x].tolist()
            centre = (x + math.tanh(dx)) / width * SIZE, (y + math.tanh(dy)) / height * SIZE
            rows.append([*centre, logistic(w) * SIZE, logistic(h) * SIZE, objectness, *classes])
    return rows


def of_nanodet(output: np.ndarray, strides: tuple[int, ...], offset: float) -> list[list[float]]:
    values, rows = iter(output.tolist()), []
    for stride in strides:
        side = math.ceil(SIZE / stride)
        for y in range(side):
            for x in range(side):
                row = next(values)
                scores, away = row[:-32], []
                for number in range(4):
                    powers = [math.exp(value) for value in row[len(scores) + 8 * number :][:8]]
                    away.append(stride * sum(k * power for k, power in enumerate(powers)) / sum(powers))
                px, py = (x + offset) * stride, (y + offset) * stride
                rows.append([px - away[0], py - away[1], px + away[2], py + away[3], *scores])
    assert next(values, None) is None
    return rows


def of_anchors(maps: list[np.ndarray], anchors: tuple[float, ...]) -> list[list[float]]:
    """Of maps (anchors, h, w, columns), finest first."""
    sizes, rows = iter(np.reshape(anchors, (-1, 2)).tolist()), []
    for level in maps:
        count, height, width, _ = level.shape
        for number in range(count):
            wide, high = next(sizes)
            for y in range(height):
                for x in range(width):
                    s = [logistic(value) for value in level[number, y, x].tolist()]
                    stride = SIZE / width
                    rows.append([(2 * s[0] - 0.5 + x) * stride, (2 * s[1] - 0.5 + y) * stride,
                                 (2 * s[2]) ** 2 * wide, (2 * s[3]) ** 2 * high, *s[4:]])  # fmt: skip
    return rows


def decoded(model: ModelProto, folder: Path, config: GraphConfig = GraphConfig()) -> tuple[OutputLayout, np.ndarray]:
    opened = load_graph(saved(model, folder), config=config)
    assert opened.model.spec.num_classes == CLASSES
    with torch.no_grad():
        detections = opened.model(noise(2)).numpy()
    outputs = run(model, noise(2))  # the engines' way, in numpy
    np.testing.assert_allclose(opened.spec.layout.decode(outputs, IMGSZ), detections, rtol=1e-4, atol=1e-4)
    return opened.spec.layout, detections


@pytest.mark.parametrize(
    ("make", "reference"),
    [(fastestdet, of_fastestdet), (nanodet, partial(of_nanodet, strides=STRIDES, offset=0.5))],
    ids=["fastestdet", "nanodet"],
)
def test_one_raw_output(
    make: Callable[..., ModelProto], reference: Callable[[np.ndarray], list[list[float]]], tmp_path: Path
) -> None:
    layout, detections = decoded(make(), tmp_path)
    assert not layout.one_per_object
    for image, output in zip(detections, run(make(), noise(2))[0], strict=True):
        np.testing.assert_allclose(image, reference(output), rtol=1e-4, atol=1e-3)


def test_the_points_of_four_levels_are_the_corners_of_cells() -> None:
    """NanoDet-Plus has no half a cell; the first NanoDet, of three levels, has."""
    rng = np.random.default_rng(0)
    for strides, offset in (((8, 16, 32, 64), 0.0), ((8, 16, 32), 0.5)):
        count = len(cells_of(strides, IMGSZ)[0])
        output = np.concatenate((rng.uniform(0, 1, (count, 5)), rng.normal(0, 2, (count, 32))), 1)
        layout, classes = recognize(Outputs({"output": output[None]}, IMGSZ))
        assert classes == 5
        np.testing.assert_allclose(layout.decode([output[None]], IMGSZ)[0], of_nanodet(output, strides, offset))


@pytest.mark.parametrize("columns_last", [True, False])
@pytest.mark.parametrize("coarse_first", [True, False])
def test_maps_of_anchors(columns_last: bool, coarse_first: bool, tmp_path: Path) -> None:
    """Levels in any order; which anchors they have no map says, so that they are given."""
    model = anchored(columns_last, NAMES)
    if coarse_first:
        model.graph.output.extend([model.graph.output.pop(0)])
    with pytest.raises(RepqError, match="none of a known detector"):
        load_graph(saved(model, tmp_path))
    with pytest.raises(RepqError, match=r"(?s)it is not clear .*--layout yolov5-raw or yolov7-raw"):
        load_graph(saved(model, tmp_path), config=GraphConfig(anchors=ANCHORS))
    layout, detections = decoded(model, tmp_path, GraphConfig(layout="yolov5-raw", anchors=ANCHORS))
    assert layout.grid == STRIDES
    outputs = run(anchored(), noise(2))
    for number, image in enumerate(detections):
        np.testing.assert_allclose(image, of_anchors([level[number] for level in outputs], ANCHORS), rtol=1e-4)


@pytest.mark.parametrize(("name", "first"), [("yolov5-raw", (10, 13)), ("yolov7-raw", (12, 16))])
def test_three_levels_have_their_authors_anchors(name: str, first: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    maps = {f"m{stride}": rng.normal(0, 1, (1, 3, SIZE // stride, SIZE // stride, 7)) for stride in (8, 16, 32)}
    with pytest.raises(RepqError, match="--layout yolov5-raw or yolov7-raw"):
        recognize(Outputs(maps, IMGSZ))
    layout, classes = recognize(Outputs(maps, IMGSZ), name)
    assert layout.anchors[0][:2] == first and classes == 2
    maps = {key: 1 / (1 + np.exp(-value)) for key, value in maps.items()}
    with pytest.raises(RepqError, match=f"the outputs are not {name}"):  # a second sigmoid would be wrong
        recognize(Outputs(maps, IMGSZ), name)


@pytest.mark.parametrize("counted", [True, False])
def test_lists_of_boxes_scores_and_classes(counted: bool, tmp_path: Path) -> None:
    """With how many there are, those behind do not count."""
    model = labelled(counted)
    layout, detections = decoded(model, tmp_path)
    assert layout.one_per_object and layout.box_form == "corners"
    *count, boxes, scores, classes = run(model, noise(2))
    for number in range(2):
        expected = np.zeros((20, 4 + CLASSES))
        expected[:, :4] = boxes[number]
        for row in range(20):
            counts = not counted or row < count[0][number, 0]
            expected[row, 4 + int(classes[number, row])] = scores[number, row] if counts else 0
        np.testing.assert_allclose(detections[number], expected, rtol=1e-4, atol=1e-3)
    if counted:
        assert count[0].min() > 0 and count[0].max() < 20


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("kind", [np.int64, np.float32])
def test_classes_are_told_from_scores(order: tuple[int, ...], kind: type, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    boxes = np.sort(rng.uniform(0, SIZE, (1, 30, 4)).astype(np.float32), -1)
    scores, labels = rng.uniform(0, 1, (1, 30)).astype(np.float32), rng.integers(0, 3, (1, 30)).astype(kind)
    named = list({"labels": labels, "boxes": boxes, "scores": scores}.items())
    shown = dict(named[place] for place in order)
    layout, _ = recognize(Outputs(shown, IMGSZ, CLASSES))
    pair, _ = recognize(Outputs({"dets": np.concatenate((boxes, scores[..., None]), -1), "labels": labels}, IMGSZ, 3))
    rows, of_pair = layout.decode(list(shown.values()), IMGSZ)[0], pair.decode(
        [np.concatenate((boxes, scores[..., None]), -1), labels], IMGSZ)[0]  # fmt: skip
    np.testing.assert_allclose(rows, of_pair)
    np.testing.assert_allclose(rows[:, 4:].max(1), scores[0])
    assert (rows[:, 4:].argmax(1) == labels[0]).all()


def test_classes_from_1_on() -> None:
    """As detectors with a background have them; it shows where a class has the number of how many there are."""
    rng = np.random.default_rng(0)
    arrays = {"bboxes": np.sort(rng.uniform(0, 1, (1, 9, 4)), -1), "labels": np.array([[1, 2, 2, 1, 1, 2, 1, 1, 2]]),
              "scores": rng.uniform(0, 1, (1, 9))}  # fmt: skip
    said = {classes: recognize(Outputs(arrays, IMGSZ, classes))[0] for classes in (2, 3)}
    assert (said[2].first_label, said[3].first_label) == (1, 0)
    told, _ = recognize(Outputs(arrays, IMGSZ, 3), "labelled-from-1")
    for layout, first in ((said[2], 1), (said[3], 0), (told, 1)):
        rows = layout.decode(list(arrays.values()), IMGSZ)[0]
        assert (rows[:, 4:].argmax(1) == arrays["labels"][0] - first).all()
        np.testing.assert_allclose(rows[:, :4], arrays["bboxes"][0] * SIZE)


def test_boxes_with_an_axis_of_one_class(tmp_path: Path) -> None:
    """YOLOv4: boxes (B, N, 1, 4) beside scores; suppression inside reads them too."""
    model = DETECTORS["boxes-scores"]()
    node = next(node for node in model.graph.node if node.output[0] == "boxes")
    node.op_type = "Unsqueeze"
    node.input.append("axis")
    model.graph.initializer.append(helper.make_tensor("axis", 7, [1], [2]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("boxes", 1, [1, COUNT, 1, 4]))
    layout, detections = decoded(model, tmp_path)
    opened = load_graph(saved(model, tmp_path))
    plain = load_graph(saved(DETECTORS["boxes-scores"](), tmp_path))
    with torch.no_grad():
        np.testing.assert_allclose(detections, plain.model(noise(2)).numpy(), rtol=1e-4, atol=1e-3)
    config = NmsConfig(confidence=0.1)
    inside = (nms_output(export_float(one.model, IMGSZ, names=NAMES), config) for one in (opened, plain))
    one, other = (run(graph, noise(1))[0] for graph in inside)
    np.testing.assert_array_equal(one, other)
    assert layout == plain.spec.layout


def test_the_number_of_classes_may_be_given(tmp_path: Path) -> None:
    """Boxes with class numbers do not show how many classes there are."""
    for make in (end2end, labelled):
        model = make(names="")
        with pytest.raises(RepqError, match="give --classes"):
            load_graph(saved(model, tmp_path))
        assert load_graph(saved(model, tmp_path), config=GraphConfig(classes=CLASSES)).spec.num_classes == CLASSES
    with pytest.raises(RepqError, match=r"--classes 4, and 3 class names"):
        load_graph(saved(end2end(), tmp_path), config=GraphConfig(classes=4))
    with pytest.raises(RepqError, match=r"(?s)--classes contradicts .*nanodet of 3 classes.*leave it away"):
        load_graph(saved(nanodet(), tmp_path), config=GraphConfig(classes=4))


@pytest.mark.parametrize(
    ("shapes", "way_out"),
    [
        ([(300, 7)], "export it without suppression"),  # YOLOv7 with suppression for ONNX Runtime
        ([(0, 7)], "one that suppresses boxes itself, export without that"),  # the same where nothing was found
        ([(300, 4), (300,), (300,)], "export it without suppression"),  # torchvision
        ([(300, 6), (1,)], "export it without suppression"),  # PaddleDetection with suppression
        ([(1, 30, 80, 80), (1, 30, 40, 40)], "export it with its boxes decoded"),
    ],
)
def test_refusals_name_the_way_out(shapes: list[tuple[int, ...]], way_out: str) -> None:
    rng = np.random.default_rng(0)
    arrays = {f"output{number}": rng.normal(0, 9, shape) for number, shape in enumerate(shapes)}
    with pytest.raises(RepqError, match=way_out) as caught:
        recognize(Outputs(arrays, (640, 640), 80))
    assert all(f"output{number} {shape}" in str(caught.value) for number, shape in enumerate(shapes))


@pytest.mark.parametrize("columns_first", [False, True])
def test_rows_without_an_axis_of_images(columns_first: bool, tmp_path: Path) -> None:
    model = DETECTORS["yolov8"]()
    name, *_ = (node.input[0] for node in model.graph.node if node.output[0] == "output0")
    if not columns_first:
        name = next(
            node.input[0] for node in model.graph.node if node.op_type == "Transpose" and node.output[0] == name
        )
    del model.graph.output[:]
    shape = [4 + CLASSES, COUNT] if columns_first else [COUNT, 4 + CLASSES]
    model.graph.node.append(helper.make_node("Squeeze", [name, "first"], ["rows"]))
    model.graph.initializer.append(helper.make_tensor("first", 7, [1], [0]))
    model.graph.output.append(helper.make_tensor_value_info("rows", 1, shape))
    opened = load_graph(saved(model, tmp_path))
    whole = load_graph(saved(DETECTORS["yolov8"](), tmp_path))
    assert opened.spec.layout.rows_alone == shape[0]
    with torch.no_grad():
        found, wanted = (one.spec.layout.parts(one.model(noise(3))) for one in (opened, whole))
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value)
    (tmp_path / "alone").mkdir()
    engine = repq.load(saved(model, tmp_path / "alone"))
    in_torch = opened.model(noise(2)).detach().numpy()
    np.testing.assert_allclose(engine.infer(noise(2).numpy()), in_torch, rtol=1e-4, atol=1e-3)


def test_values_that_are_no_scores_are_not_taken_for_scores() -> None:
    """Logits behind boxes: taken only where the layout is named."""
    cells, strides = cells_of(STRIDES, IMGSZ)
    rng = np.random.default_rng(0)
    boxes = np.concatenate(((cells + 0.5) * strides, rng.uniform(1, 3, (COUNT, 2)) * strides), 1)
    rows = np.concatenate((boxes, rng.normal(-3, 2, (COUNT, 6))), 1)[None]
    with pytest.raises(RepqError, match=r"(?s)not its values.*output .*--layout yolov5 or yolov8"):
        recognize(Outputs({"output": rows}, IMGSZ))
    assert recognize(Outputs({"output": rows}, IMGSZ), "yolov8")[1] == 6


RAW = {
    "fastestdet": (fastestdet, GraphConfig()),
    "nanodet": (nanodet, GraphConfig()),
    "yolov5-raw": (anchored, GraphConfig(layout="yolov5-raw", anchors=ANCHORS)),
    "flat maps": (partial(anchored, False), GraphConfig(layout="yolov7-raw", anchors=ANCHORS)),
}


@pytest.mark.parametrize("name", RAW)
def test_suppression_inside_decodes_as_outside(name: str, tmp_path: Path) -> None:
    make, config = RAW[name]
    opened = load_graph(saved(make(), tmp_path), config=config)
    demand_same_suppression(opened, confidence=0.1)


def test_final_lists_are_not_suppressed_again(tmp_path: Path) -> None:
    opened = load_graph(saved(labelled(), tmp_path))
    with pytest.raises(GraphError, match="suppresses already"):
        nms_output(export_float(opened.model, IMGSZ, names=NAMES), NmsConfig())


@pytest.mark.parametrize(
    ("name", "bgr", "shift"), [("fastestdet", True, False), ("nanodet", True, True), ("yolox-raw", True, False)]
)
def test_images_are_prepared_as_the_detector_was_trained(name: str, bgr: bool, shift: bool, tmp_path: Path) -> None:
    spec = load_graph(saved(DETECTORS[name](), tmp_path)).model.spec
    assert (spec.preprocessing.bgr, spec.preprocessing.shifts) == (bgr, shift)
    assert spec.preprocessing.stretch is (name != "yolox-raw")
    if shift:  # blue first: 103.53, 116.28, 123.675 and 57.375, 57.12, 58.395 of 255
        np.testing.assert_allclose(np.array(spec.preprocessing.mean) * 255, (103.53, 116.28, 123.675))
        np.testing.assert_allclose(np.array(spec.preprocessing.std) * 255, (57.375, 57.12, 58.395))


def test_names_are_unique_and_layouts_survive_as_text() -> None:
    for entries in (LAYOUTS, CODINGS):
        assert len({entry.name for entry in entries}) == len(entries)
    layout = OutputLayout(grid=(8, 16), coding="anchors", anchors=((1.0, 2.0), (3.0, 4.0)), maps=True)
    assert OutputLayout.from_json(layout.to_json()) == layout
    with pytest.raises(ValueError, match="in no way named"):
        coding("other")


@pytest.mark.parametrize(
    "values",
    [
        {"coding": "other"}, {"grid": [8], "coding": "anchors"}, {"grid": [8], "coding": "distances"},
        {"grid": [8], "coding": "anchors", "anchors": [[1, 2, 3]]}, {"labelled": [0, 1, 2]},
        {"grid": [8, 16], "coding": "anchors", "anchors": [[1, 2], [1, 2, 3, 4]]},
    ],
)  # fmt: skip
def test_layouts_that_cannot_be_decoded_are_damage(values: dict[str, Any]) -> None:
    """They come from the metadata of files."""
    with pytest.raises(ValueError, match=r"named|anchors|bins|class numbers"):
        OutputLayout.from_json(json.dumps(values))
    metadata = {"repq.layout": json.dumps(values), "repq.num_classes": "3"}
    with pytest.raises(RepqError, match="the metadata of the ONNX model is damaged"):
        form_of(Outputs({}, IMGSZ), metadata)


def scaled(name: str, kind: int, batch: int | str = 1) -> ModelProto:
    """Boxes and scores, the boxes divided by an input (PP-YOLOE) or multiplied by it (RT-DETR)."""
    model = DETECTORS["boxes-scores"]()
    node = next(node for node in model.graph.node if node.output[0] == "boxes")
    shares = helper.make_node("Div", [node.input[0], "size"], ["shares"])
    as_float = helper.make_node("Cast", [name], ["further"], to=1)
    four = helper.make_node("Concat", ["further", "further"], ["four"], axis=1)
    last = helper.make_node("Mul" if name == "orig_target_sizes" else "Div", ["shares", "four"], ["boxes"])
    model.graph.node.remove(node)
    model.graph.node.extend([shares, as_float, four, last])
    divisor = float(SIZE) if name == "orig_target_sizes" else 1.0
    model.graph.initializer.append(helper.make_tensor("size", 1, [], [divisor]))
    model.graph.input.append(helper.make_tensor_value_info(name, kind, [batch, 2]))
    return model


@pytest.mark.parametrize(("name", "kind"), [("scale_factor", 1), ("im_shape", 1), ("orig_target_sizes", 7)])
def test_inputs_that_tell_of_the_image_become_constants(name: str, kind: int, tmp_path: Path) -> None:
    path = saved(scaled(name, kind), tmp_path)
    (tmp_path / "plain").mkdir()
    opened, plain = load_graph(path), load_graph(saved(DETECTORS["boxes-scores"](), tmp_path / "plain"))
    assert any(f"the input {name} became the constant" in note for note in opened.notes)
    with torch.no_grad():
        found, wanted = (one.spec.layout.boxes_of(one.model(noise(2))) for one in (opened, plain))
    torch.testing.assert_close(found, wanted)
    engine = repq.load(path)
    assert engine.layout == opened.spec.layout
    np.testing.assert_allclose(
        engine.infer(noise(1).numpy()), opened.model(noise(1)).detach().numpy(), rtol=1e-4, atol=1e-3
    )
    assert [value.name for value in export_float(opened.model, IMGSZ, names=NAMES).graph.input] == ["input"]


def test_other_inputs_are_refused(tmp_path: Path) -> None:
    model = scaled("scale_factor", 1)
    model.graph.input[1].type.tensor_type.shape.dim[1].dim_value = 3
    for open_ in (load_graph, repq.load):
        with pytest.raises(RepqError, match="exactly one input"):
            open_(saved(model, tmp_path))
