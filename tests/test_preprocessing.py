"""How images become network input: as the model says, whoever does it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from few_blocks import few_blocks
from graph_views import for_serving
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto
from small_graphs import graph, normal

import repq
from repq import load
from repq.api.opening import of_weights
from repq.api.service import service_of
from repq.data import batches, letterbox, letterbox_transform, load_dataset, make_demo_set, read_image
from repq.errors import RepqError
from repq.graph import GraphMetadata, read_metadata, save_onnx, write_metadata
from repq.model import build
from repq.preprocessing import PRESETS, Preprocessing, preset
from repq.quant import Weights
from repq.recipe import DemoConfig, EvalConfig, LetterboxConfig, PreprocessConfig, TrainConfig
from repq.train.loader import TrainBatch
from repq.train.update import Updater

SIZE = (96, 128)
EVERY = [pytest.param(entry.preprocessing, id=entry.name) for entry in PRESETS] + [
    pytest.param(Preprocessing(stretch=True, pad=7), id="stretched"),
    pytest.param(Preprocessing(stretch=True, resize="linear", divisor=2, colours="bgr", std=(1, 2, 3)), id="odd"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes") / "demo"
    return make_demo_set(folder, DemoConfig(train_images=1, val_images=4, size=192, classes=2))


def by_definition(image: np.ndarray, form: Preprocessing) -> np.ndarray:
    """An RGB image that needs no letterbox as (3, H, W) float64."""
    ordered = image[..., ::-1] if form.bgr else image
    return ((ordered / form.divisor - form.mean) / form.std).transpose(2, 0, 1)


@pytest.mark.parametrize("form", EVERY)
def test_a_batch_is_what_the_definition_says(form: Preprocessing, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), image[..., ::-1])
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    (tmp_path / "data.yaml").write_text("path: .\nval: .\nnames: [x]\n")
    record = load_dataset(tmp_path / "data.yaml", "val").records
    found = next(batches(record, SIZE, 1, preprocessing=form)).images[0]
    np.testing.assert_allclose(found, by_definition(image, form), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", EVERY)
def test_training_feeds_the_same_numbers(form: Preprocessing) -> None:
    image = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    model = build(replace(few_blocks("yolov6n_v2", 1), preprocessing=form))
    updater = Updater(model, TrainConfig(), torch.device("cpu"))
    pixels = updater.pixels(TrainBatch(image[None], (np.zeros((0, 5), np.float32),)))
    np.testing.assert_allclose(pixels[0].numpy(), by_definition(image, form), rtol=1e-5, atol=1e-5)


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from(EVERY), st.integers(0, 20))
def test_the_image_lies_where_it_says_and_the_rest_is_grey(width: int, height: int, form, border: int) -> None:
    form, config = form.values[0], LetterboxConfig(border=border)
    place = letterbox_transform(width, height, SIZE, config, form)
    image = np.full((height, width, 3), 200, np.uint8)
    boxed, _ = letterbox(image, SIZE, config, form)
    x1, y1, x2, y2 = np.rint(place.to_input(np.array([[0, 0, width, height]]))[0]).astype(int)
    inside = np.zeros(SIZE, bool)
    inside[y1:y2, x1:x2] = True
    assert (boxed[inside] == 200).all() and (boxed[~inside] == form.pad).all()
    room = (SIZE[1] - 2 * border, SIZE[0] - 2 * border)
    assert (x2 - x1 == room[0] or y2 - y1 == room[1]) and x2 - x1 <= room[0] and y2 - y1 <= room[1]
    if form.stretch:
        assert (x2 - x1, y2 - y1) == room
    elif form.placement == "top_left":
        assert (x1, y1) == (border, border)
    else:
        assert abs(x1 + x2 - SIZE[1]) <= 1 and abs(y1 + y2 - SIZE[0]) <= 1


@pytest.fixture(scope="module")
def network() -> ModelProto:
    """As repq exports it, but of two layers: what lies behind the first one makes no difference."""
    cells = SIZE[0] // 8 * SIZE[1] // 8
    model = graph(
        f"""g (float[1,3,{SIZE[0]},{SIZE[1]}] images) => (float[1,{cells},7] detections) {{
            a = Conv<strides=[8,8]>(images, first) b = Relu(a) c = Conv(b, second)
            d = Reshape(c, shape) detections = Transpose<perm=[0,2,1]>(d) }}""",
        first=normal(0, 16, 3, 8, 8), second=normal(1, 7, 16, 1, 1), shape=np.array([1, 7, cells]),
    )  # fmt: skip
    spec = few_blocks("yolov6n_v2", 2)
    own = GraphMetadata(
        version=repq.__version__, spec=spec.description(), num_classes=2, names=("a", "b"), imgsz=SIZE,
        layout=spec.layout,
    )  # fmt: skip
    write_metadata(model, own)
    return model


@pytest.mark.parametrize("form", EVERY)
def test_a_graph_that_does_it_itself_gives_what_the_host_gives(
    form: Preprocessing, network: ModelProto, data: Path, tmp_path: Path
) -> None:
    image = read_image(load_dataset(data, "val").records[0].path)
    in_graph = LetterboxConfig()
    settings = {
        "host": PreprocessConfig(),
        "bytes": PreprocessConfig(uint8=True),
        "letterbox": PreprocessConfig(uint8=True, letterbox=in_graph),
        "fixed letterbox": PreprocessConfig(uint8=True, letterbox=in_graph, source=image.shape[:2]),
        "blue first": PreprocessConfig(uint8=True, bgr=True),
    }
    outputs = {}
    for name, inside in settings.items():
        model = ModelProto()
        model.CopyFrom(network)
        write_metadata(model, replace(read_metadata(network), preprocessing=form))
        save_onnx(tmp_path / "m.onnx", for_serving(model, inside, None))
        opened = load(tmp_path / "m.onnx")
        assert opened.preprocessing.bgr == (form.bgr or inside.bgr)
        service = service_of(opened, SIZE, EvalConfig())
        ordered = image[..., ::-1] if service.bgr else image
        outputs[name] = service.infer(service.prepare([np.ascontiguousarray(ordered)]))[0]
        scale = np.abs(outputs["host"]).max()
        # letterboxes differ by a grey level or two, see repq.graph.letterbox
        tolerance = (0.01 if "letterbox" in name else 1e-4) * scale
        np.testing.assert_allclose(outputs[name], outputs["host"], atol=tolerance)


def test_it_travels_with_every_file(tmp_path: Path) -> None:
    for entry in PRESETS:
        assert Preprocessing.from_json(entry.preprocessing.to_json()) == entry.preprocessing == preset(entry.name)
        spec = replace(few_blocks("yolov6n_v2", 3), preprocessing=entry.preprocessing)
        opened = of_weights("m", Weights(build(spec).eval(), ("a", "b", "c")))
        assert load(opened.save(tmp_path / "w.safetensors")).preprocessing == entry.preprocessing
    exported = opened.export(tmp_path / "m.onnx", imgsz=64)
    assert exported.preprocessing == load(tmp_path / "m.onnx").preprocessing == PRESETS[-1].preprocessing
    assert exported.build("onnxruntime", out=tmp_path / "engine").preprocessing == exported.preprocessing


def test_bad_ones_are_refused() -> None:
    with pytest.raises(RepqError, match="yolox-legacy"):
        preset("yolo")
    for broken in ('{"divisor": 0}', '{"std": [1, 0, 1]}', '{"pad": 300}', '{"colour": "rgb"}', "[]"):
        with pytest.raises(ValueError, match=r".+"):
            Preprocessing.from_json(broken)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("field", ["divisor", "mean", "std"])
def test_numbers_that_are_none_make_no_preprocessing(field: str, number: float) -> None:
    with pytest.raises(ValueError, match="no preprocessing"):
        Preprocessing(**{field: number if field == "divisor" else (0.5, number, 0.5)})
