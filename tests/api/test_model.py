"""Every step of the public API on a small detector."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from api_forms import NAMES, SIZE, Forms
from callers_torch import default_type
from click.testing import CliRunner
from few_blocks import give_few_blocks
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from small_training import tiny_model
from torch import nn

import repq
from repq.api.images import open_data
from repq.cli import main
from repq.data import calibration_set, read_image, write_manifest
from repq.errors import CheckpointError, DataError, EngineError, RecipeError
from repq.model import save_checkpoint
from repq.reparam.repopt import extract_scales, save_scales

KINDS = ("float_", "onnx", "engine")


@pytest.fixture(autouse=True, scope="module")
def _named_models_have_few_blocks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        give_few_blocks(patch, "yolov6n_v2")
        yield


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Noise of large grains, in which an untrained network finds something."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8)


def same(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    return one.dtype == other.dtype == np.float32 and one.shape == other.shape and bool((one == other).all())


# --- infer -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*KINDS, "quantized"])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((1, 4, SIZE, SIZE), np.float32),
        ((1, SIZE, SIZE, 3), np.float32),
        ((3, SIZE, SIZE), np.float32),
        ((1, 3, SIZE + 1, SIZE), np.float32),
        ((1, 3, SIZE, 0), np.float32),
        ((1, 3, SIZE, SIZE), np.float64),
        ((1, 3, SIZE, SIZE), np.uint8),
        ((1, 3, SIZE, SIZE), np.complex64),
    ],
)
def test_inputs_that_a_network_does_not_take_are_refused(forms: Forms, kind: str, shape: Any, dtype: Any) -> None:
    with pytest.raises(repq.RepqError) as error:
        getattr(forms, kind).infer(np.zeros(shape, dtype))
    assert error.value.found and error.value.fix


@pytest.mark.parametrize("kind", [*KINDS, "quantized"])
def test_an_input_is_the_same_whichever_way_its_memory_runs(forms: Forms, kind: str) -> None:
    images = np.random.default_rng(0).random((1, 3, SIZE, SIZE), dtype=np.float32)
    infer = getattr(forms, kind).infer
    assert same(infer(images[:, ::-1]), infer(images[:, ::-1].copy()))


# --- detect ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*KINDS, "quantized"])
def test_a_file_its_array_and_a_list_of_both_give_the_same_boxes(forms: Forms, kind: str) -> None:
    model, paths = getattr(forms, kind), forms.images[:3]
    single = [model.detect(path, imgsz=SIZE) for path in paths]
    assert all(boxes.shape[1:] == (6,) for boxes in single) and any(len(boxes) for boxes in single)
    arrays = [read_image(path) for path in paths]
    for found in (
        [model.detect(array, imgsz=SIZE) for array in arrays],
        model.detect(paths, imgsz=SIZE),
        model.detect(tuple(map(str, paths)), imgsz=SIZE),
        model.detect([arrays[0], paths[1], arrays[2]], imgsz=SIZE),
    ):
        assert all(map(same, found, single))
    # in fake quantization a last digit can round to another integer, so only float models are close
    together = model.detect(paths, imgsz=SIZE, batch=1 if model.quantized else 2)
    for boxes, expected in zip(together, single, strict=True):
        np.testing.assert_allclose(boxes, expected, atol=1e-3)
    assert model.detect([], imgsz=SIZE) == []


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(height=st.integers(1, 200), width=st.integers(1, 200), seed=st.integers(0, 9), conf=st.sampled_from([0.25, 0.6]))
def test_boxes_are_the_same_in_every_form_and_lie_in_the_image(
    forms: Forms, height: int, width: int, seed: int, conf: float
) -> None:
    image = picture(height, width, seed)
    untouched = image.copy()
    expected = forms.float_.detect(image, imgsz=SIZE, conf=conf)
    assert (image == untouched).all()
    assert (expected[:, :4] >= 0).all() and (expected[:, :4] <= [width, height, width, height]).all()
    assert (expected[:, 2:4] > expected[:, :2]).all()
    assert (expected[:, 4] > conf).all() and (np.diff(expected[:, 4]) <= 0).all()
    assert set(expected[:, 5]) <= set(range(len(NAMES)))
    for kind in KINDS[1:]:
        found = getattr(forms, kind).detect(image, conf=conf)
        # boxes of nearly one score may change places, and one at a threshold may be there or not
        apart = np.abs(found[:, None] - expected[None]).max(axis=2, initial=0) > 2e-3
        assert apart.all(axis=1).sum() <= 1 and apart.all(axis=0).sum() <= 1


def test_other_settings_of_the_suppression(forms: Forms) -> None:
    image = picture(60, 80)
    most = forms.float_.detect(image, imgsz=SIZE, iou=0.9)
    fewer = forms.float_.detect(image, imgsz=SIZE, iou=0.1)
    assert len(fewer) < len(most)
    assert same(forms.float_.detect(image, imgsz=SIZE, iou=0.9, max_detections=2), most[:2])


def test_a_graph_that_does_everything_itself_gives_the_same_boxes(forms: Forms, tmp_path: Path) -> None:
    preprocess = repq.PreprocessConfig(uint8=True, bgr=True, letterbox=repq.LetterboxConfig())
    nms = repq.NmsConfig(confidence=0.1, multi_label=False)
    whole = forms.float_.export(tmp_path / "whole.onnx", imgsz=SIZE, preprocess=preprocess, nms=nms)
    assert (whole.preprocess, whole.nms, whole.plain) == (preprocess, nms, False)
    image = picture(SIZE, SIZE)
    expected = forms.float_.detect(image, imgsz=SIZE)
    assert len(expected)
    np.testing.assert_allclose(whole.detect(image), expected, atol=5e-2)
    assert len(whole.detect(image, conf=0.1)) > len(expected)
    for wrong in ({"conf": 0.05}, {"iou": 0.4}, {"max_detections": 7}):
        with pytest.raises(repq.RepqError, match="suppresses by itself"):
            whole.detect(image, **wrong)


def written(folder: Path, name: str, pixels: NDArray[np.generic]) -> Path:
    path = folder / name
    assert cv2.imwrite(str(path), pixels)
    return path


def test_odd_files_are_the_picture_that_people_see(forms: Forms, tmp_path: Path) -> None:
    image = picture(48, 64)
    bgr, grey = image[..., ::-1], image[..., 0]
    alpha = np.dstack([bgr, np.full(image.shape[:2], 9, np.uint8)])
    turned = written(tmp_path, "plain.jpg", np.rot90(bgr))
    data = turned.read_bytes()
    # an EXIF block that says: turn by 90 degrees clockwise to look at it (orientation 6)
    block = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    exif = tmp_path / "exif.jpg"
    exif.write_bytes(data[:2] + b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block + data[2:])
    seen = np.ascontiguousarray(np.rot90(read_image(turned), -1))
    cases = {
        written(tmp_path, "alpha.png", alpha): image,
        written(tmp_path, "grey.png", grey): np.dstack([grey] * 3),
        written(tmp_path, "deep.png", bgr.astype(np.uint16) * 257): image,
        exif: seen,
    }
    for path, array in cases.items():
        assert same(forms.onnx.detect(path), forms.onnx.detect(array)), path.name
    assert same(forms.onnx.detect(image[:, ::-1]), forms.onnx.detect(np.ascontiguousarray(image[:, ::-1])))


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((8, 8, 3), np.float32), "float32"),
        (np.zeros((8, 8, 3), np.int8), "int8"),
        (np.zeros((8, 8), np.uint8), r"\(8, 8\)"),
        (np.zeros((8, 8, 4), np.uint8), r"\(8, 8, 4\)"),
        (np.zeros((2, 8, 8, 3), np.uint8), "several images as a list"),
        (np.zeros((3, 8, 8), np.uint8), r"\(3, 8, 8\)"),
        (np.zeros((0, 8, 3), np.uint8), r"\(0, 8, 3\)"),
        (None, "NoneType"),
        (7, "int"),
        ("nowhere.jpg", "nowhere.jpg"),
        (".", "cannot read"),
    ],
)
def test_what_is_no_image_is_refused(forms: Forms, image: object, said: str) -> None:
    for given_ in (image, [image]):
        with pytest.raises(DataError, match=said):
            forms.onnx.detect(given_)  # type: ignore[call-overload]


def test_settings_that_make_no_sense_are_refused(forms: Forms) -> None:
    image = picture(8, 8)
    for wrong in ({"conf": 2}, {"conf": -0.1}, {"iou": 0}, {"max_detections": 0}):
        with pytest.raises(RecipeError, match="not valid"):
            forms.onnx.detect(image, **wrong)
    with pytest.raises(RecipeError, match="confidence"):
        forms.onnx.evaluate(forms.data, confidense=0.1)


# --- opening, sizes, kinds -------------------------------------------------------------------------------------------


def test_handles_say_what_they_are(forms: Forms, tmp_path: Path) -> None:
    saved = repq.load(forms.quantized.save(tmp_path / "quantized.safetensors"))
    opened = repq.load(forms.root / "engine")
    for model in (forms.float_, forms.quantized, saved, forms.onnx, forms.engine, opened):
        assert (model.names, model.num_classes, model.spec) == (NAMES, 3, "yolov6n_v2")
        assert len(model.layers) == 36 and set(model.layers) == set(forms.float_.layers)
    assert [forms.float_.kind, forms.onnx.kind, opened.kind] == ["checkpoint", "onnx", "engine"]
    assert [forms.float_.imgsz, forms.onnx.imgsz, opened.imgsz] == [None, (SIZE, SIZE), (SIZE, SIZE)]
    assert [forms.float_.quantized, saved.quantized, forms.onnx.quantized] == [False, True, False]
    assert [forms.float_.precision, saved.precision] == ["float32", "int8 simulated in float32"]
    assert opened.precision == forms.onnx.precision == "float32"
    assert "yolov6n_v2" in repr(opened) and "engine" in repr(opened)


def test_a_size_that_contradicts_the_model_or_its_levels_is_refused(forms: Forms) -> None:
    image = picture(8, 8)
    assert len(forms.onnx.detect(image, imgsz=SIZE)) == len(forms.onnx.detect(image, imgsz=(SIZE, SIZE)))
    for model in (forms.onnx, forms.engine):
        with pytest.raises(repq.RepqError, match="takes images of 64x64"):
            model.detect(image, imgsz=96)
    for step in (lambda: forms.float_.detect(image, imgsz=33), lambda: forms.float_.build("openvino", imgsz=(64, 33))):
        with pytest.raises(repq.RepqError, match="33"):
            step()
    assert forms.float_.size(None) == (640, 640)
    assert forms.quantized.size(None) == (SIZE, SIZE)  # it goes on with the size of its calibration


def test_a_step_that_the_kind_does_not_have_says_what_to_do(forms: Forms, tmp_path: Path) -> None:
    data, engine = forms.data, forms.engine
    for step in (
        engine.fuse,
        lambda: engine.quantize(data),
        lambda: engine.sensitivity(data),
        lambda: engine.qat(data),
        lambda: engine.export(tmp_path / "x.onnx"),
    ):
        with pytest.raises(CheckpointError, match="load the checkpoint"):
            step()
    for model in (forms.onnx, engine):
        with pytest.raises(repq.RepqError, match="nothing to be compared with"):
            model.check(data)
    for step in (forms.quantized.fuse, lambda: forms.quantized.quantize(data), lambda: forms.quantized.plan(data)):
        with pytest.raises(CheckpointError, match="quantized already"):
            step()
    with pytest.raises(EngineError, match="an engine already"):
        forms.engine.build("openvino")
    for model, name in ((forms.float_, "m.onnx"), (forms.onnx, "m.pt")):
        with pytest.raises(repq.RepqError, match="is written as"):
            model.save(tmp_path / name)
    with pytest.raises(repq.RepqError, match="is written as"):
        forms.float_.export(tmp_path / "m.safetensors", imgsz=SIZE)
    assert not any(tmp_path.iterdir())


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("")
    (tmp_path / "empty.pt").write_text("")
    (tmp_path / "empty.onnx").write_text("")
    for name in ("absent.pt", "notes.md", "empty.pt", "empty.onnx", "."):
        with pytest.raises(repq.RepqError):
            repq.load(tmp_path / name)


# --- steps -----------------------------------------------------------------------------------------------------------


def test_quantizing_is_what_the_command_does_and_leaves_the_float_handle_alone(forms: Forms, tmp_path: Path) -> None:
    image = picture(50, 70)
    before = forms.float_.detect(image, imgsz=SIZE)
    options = ["--imgsz", str(SIZE), "--scheme", "asymmetric", "--images", "4", "--plain"]
    command = ["ptq", str(forms.root / "float.safetensors"), "--data", str(forms.data), *options]
    result = CliRunner().invoke(main, [*command, "-o", str(tmp_path / "ptq.safetensors")])
    assert result.exit_code == 0, result.output
    forms.quantized.save(tmp_path / "api.safetensors")
    assert (tmp_path / "api.safetensors").read_bytes() == (tmp_path / "ptq.safetensors").read_bytes()
    assert not forms.float_.quantized and same(forms.float_.detect(image, imgsz=SIZE), before)
    again = forms.float_.quantize(forms.data, imgsz=SIZE, limit=4, scheme="asymmetric", auto=False)
    assert again.report.images == 4 and same(again.detect(image), forms.quantized.detect(image))
    assert same(repq.load(tmp_path / "ptq.safetensors").detect(image, imgsz=SIZE), again.detect(image))


def test_images_in_every_form_calibrate_alike(forms: Forms, tmp_path: Path) -> None:
    def quantized(images: object, **settings: object) -> bytes:
        model = forms.float_.quantize(images, imgsz=SIZE, scheme="asymmetric", method="max", **settings)  # type: ignore[arg-type]
        assert model.report.images == 3
        return model.save(tmp_path / "m.safetensors").read_bytes()

    (tmp_path / "some").mkdir()
    paths = []
    for path in forms.images[:3]:
        paths.append(tmp_path / "some" / path.name)
        paths[-1].write_bytes(path.read_bytes())
    listed = quantized(paths)
    assert quantized([read_image(path) for path in paths]) == listed
    (tmp_path / "list.txt").write_text("".join(f"{path}\n" for path in paths))
    as_folder, as_list = quantized(tmp_path / "some", limit=3), quantized(tmp_path / "list.txt", limit=3)
    assert len(as_folder) == len(as_list) == len(listed)
    one = forms.float_.quantize(paths[0], imgsz=SIZE, scheme="asymmetric", auto=False)
    assert one.report.images == 1
    for nothing in ([], tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(DataError, match="no images"):
            forms.float_.quantize(nothing)


def test_plans_keep_layers_in_float(forms: Forms, tmp_path: Path) -> None:
    arrays = [read_image(path) for path in forms.images[:2]]
    found = forms.float_.sensitivity(arrays, imgsz=SIZE, count=2, end_to_end=False)
    assert tuple(row.layer for row in found.layers) == forms.float_.layers
    local, plain = repq.SensitivityConfig(end_to_end=False), repq.PtqConfig(auto=False)
    plan = forms.float_.plan(arrays, imgsz=SIZE, top=2, keep_float=["detect.stems.0*"], ptq=plain, config=local)
    assert {"detect.stems.0.block.conv"} < set(plan.float_layers) and len(plan.float_layers) <= 3
    quantized = forms.float_.quantize(arrays, imgsz=SIZE, plan=plan, keep_float=["backbone.stem*"], auto=False)
    assert set(quantized.weights.plan.float_) == {*plan.float_layers, "backbone.stem.rbr_reparam"}  # type: ignore[union-attr]
    file = tmp_path / "plan.yaml"
    file.write_text("model: yolov6n_v2\nfloat: ['neck.*']\n")
    kept = forms.float_.quantize(arrays, imgsz=SIZE, plan=file, auto=False).weights.plan.float_  # type: ignore[union-attr]
    assert kept and all(layer.startswith("neck.") for layer in kept)
    images = repq.SensitivityConfig(images=2)
    share = forms.float_.plan(arrays, imgsz=SIZE, max_float=0.3, ptq=plain, config=images)  # no labels
    assert share.int8_macs_share >= 0.7 and share.float_layers and share.gain_db is not None and share.gain_db > 0
    with pytest.raises(repq.RepqError, match="no more and no less"):
        forms.float_.plan(arrays, top=2, max_drop=0.1)


def test_labels_that_are_missing_are_missed_before_anything_is_computed(forms: Forms) -> None:
    begun: list[str] = []

    def noted(items: Iterable[Any], /, *, total: int | None = None, label: str = "") -> Iterator[Any]:
        begun.append(label)
        yield from items

    model, arrays = forms.float_.on(progress=noted), [read_image(path) for path in forms.images[:2]]
    local = repq.SensitivityConfig(end_to_end=False)
    with pytest.raises(DataError):
        model.plan(arrays, imgsz=SIZE, max_drop=0.1, config=local)
    with pytest.raises(DataError):
        model.sensitivity(arrays, imgsz=SIZE, config=local, ap=("only_float",))
    assert not begun
    model.plan(arrays, imgsz=SIZE, top=1, ptq=repq.PtqConfig(auto=False), config=local)
    assert begun


def test_a_split_layer_is_one_layer_of_the_exported_graph(forms: Forms, tmp_path: Path) -> None:
    correct = repq.CorrectionConfig(split_below_db=200.0)
    split = forms.float_.quantize(forms.images[:1], imgsz=SIZE, correct=correct, keep_float=["detect.*_preds.*"])
    report = split.export(tmp_path / "split.onnx").report
    assert report.layers_float == 6
    assert report.layers_int8 + report.layers_float == len(split.layers)


def test_fusing_proves_itself_on_images(forms: Forms) -> None:
    image = picture(40, 40)
    fused = forms.float_.fuse(forms.images, imgsz=SIZE)
    assert isinstance(fused.report, repq.FusionReport) and fused.report.max_rel_error < 1e-3
    assert fused.weights.model.deploy and not forms.float_.weights.model.deploy  # type: ignore[union-attr]
    np.testing.assert_allclose(fused.detect(image), forms.float_.detect(image, imgsz=SIZE), atol=1e-2)
    assert same(forms.float_.fuse().detect(image, imgsz=SIZE), fused.detect(image))
    with pytest.raises(repq.ToleranceError):
        forms.float_.fuse(forms.images, imgsz=SIZE, tolerance=1e-12)


def test_training_in_int8_needs_no_labels(forms: Forms) -> None:
    image = picture(40, 40)
    before = forms.quantized.detect(image)
    options = {"epochs": 1, "batch": 2, "learning_rate": 1e-3, "workers": 0}
    trained = forms.quantized.qat([read_image(path) for path in forms.images], teacher=forms.float_, **options)
    assert trained.quantized and len(trained.report.epochs) == 1
    assert not same(trained.detect(image), before) and same(forms.quantized.detect(image), before)
    with pytest.raises(DataError, match="no labels"):
        forms.quantized.qat(forms.images, task_weight=1.0, **options)
    with pytest.raises(DataError, match="labelled"):
        forms.quantized.qat(forms.images, eval_interval=1, **options)
    with pytest.raises(CheckpointError, match="quantized already"):
        forms.quantized.qat(forms.images, teacher=forms.quantized, **options)


def test_from_a_checkpoint_to_engines_that_agree(forms: Forms, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    engine = forms.quantized.build("openvino", threads=1, out=tmp_path / "engine")
    assert engine.quantized and engine.imgsz == (SIZE, SIZE) and engine.report.precision_counts()["int8"] > 30
    image = forms.images[0]
    assert same(repq.load(tmp_path / "engine").detect(image), engine.detect(image))
    assert same(repq.load(engine.save(tmp_path / "copy")).detect(image), engine.detect(image))
    report = forms.quantized.check(forms.data, engines=("openvino",), max_drop=1.0, images=2)
    assert report.passed and report.images == 2 and report.engines[0].int8_layers > 30
    assert forms.float_.check(forms.data, forms.onnx, imgsz=SIZE).engines[0].ap_gap == pytest.approx(0, abs=1e-3)
    scores = [model.evaluate(forms.data, imgsz=SIZE).ap for model in (forms.float_, forms.onnx, forms.engine)]
    assert scores == pytest.approx([scores[0]] * 3, abs=1e-3)


def test_timing_side_by_side(forms: Forms) -> None:
    report = forms.onnx.bench(
        forms.float_.on(threads=1), engines=("openvino",), threads=(1,), rounds=1, runs_per_round=1, warmup=0,
        end_to_end=False,
    )  # fmt: skip
    assert [(row.model, row.engine) for row in report.rows] == [
        ("float.onnx", "onnxruntime"),
        ("float.onnx (openvino)", "openvino"),
        ("float.safetensors", "torch"),
    ]
    # another number of threads than an engine was opened with
    rows = forms.engine.bench(threads=(1, 2), rounds=1, runs_per_round=1, warmup=0, end_to_end=False).rows
    assert [row.threads for row in rows] == [1, 2]


def test_threads_are_those_of_one_model_only(forms: Forms) -> None:
    seen: list[int] = []
    hook = nn.modules.module.register_module_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    try:
        forms.float_.on(threads=before + 1).detect(picture(40, 40))
        assert set(seen) == {before + 1}
        assert torch.get_num_threads() == before  # what the process computes otherwise does not change
        seen.clear()
        forms.float_.detect(picture(40, 40))
        assert set(seen) == {before}
    finally:
        hook.remove()


def test_descriptions(forms: Forms) -> None:
    layers = forms.quantized.describe().layers
    assert tuple(row.layer for row in layers) == forms.float_.layers and {row.precision for row in layers} == {"int8"}
    assert {row.precision for row in forms.engine.describe().layers} == {"float32"}


def test_fresh_models_and_training(forms: Forms) -> None:
    fresh = repq.build_model("yolov6n_v2", 3, names=NAMES)
    assert fresh.names == NAMES and not fresh.quantized
    with pytest.raises(repq.RepqError, match="yolov6m_v2"):
        repq.build_model("yolov6m_v9")
    said: list[str] = []
    trained = repq.train_model(
        forms.data, imgsz=SIZE, model=fresh, epochs=1, batch=3, workers=0, flat_epochs=1, log=said.append
    )
    assert any("flat_epochs" in line for line in said), "doubtful settings are said as `repq train` says them"
    assert isinstance(trained.report, repq.TrainReport) and trained.size(None) == (SIZE, SIZE)
    assert trained.names is not None and len(trained.names) == 3


@pytest.mark.parametrize("way", ["name", "field", "config", "name over config", "weights of config"])
def test_what_is_trained_is_the_model_that_was_named(forms: Forms, tmp_path: Path, way: str) -> None:
    named, brief = "yolov6n_v2_hs", {"epochs": 1, "batch": 3, "workers": 0}
    if way == "weights of config":
        saved = repq.build_model(named, 3, names=NAMES).save(tmp_path / "start.safetensors")
        given = {"config": repq.TrainConfig(weights=saved, **brief)}
    elif way == "config":
        given = {"config": repq.TrainConfig(model=named, **brief)}
    elif way == "name over config":
        given = {"config": repq.TrainConfig(model="yolov6n_v2", **brief), "model": named}
    else:
        given = {"model": named, **brief}
    if way == "field":
        given["config"] = repq.TrainConfig(epochs=1)
    trained = repq.train_model(forms.data, imgsz=(SIZE, 2 * SIZE), **given)
    assert trained.spec == named
    assert (
        repq.load(trained.save(tmp_path / "trained.safetensors")).size(None) == trained.size(None) == (SIZE, 2 * SIZE)
    )


BRIEF = {"epochs": 1, "batch": 3, "workers": 0, "learning_rate": 1e-9, "warmup_steps": 0}


@pytest.mark.parametrize("form", ["handle", "path", "text"])
def test_a_model_to_start_from_is_started_from_in_every_form(forms: Forms, tmp_path: Path, form: str) -> None:
    fresh = repq.build_model("yolov6n_v2", 3, names=NAMES, seed=1)
    saved = fresh.save(tmp_path / "start.safetensors")
    given = {"handle": fresh, "path": saved, "text": str(saved)}[form]
    trained = repq.train_model(forms.data, imgsz=SIZE, model=given, **BRIEF)
    own, start = (dict(one.weights.model.named_parameters()) for one in (trained, fresh))  # type: ignore[union-attr]
    assert all(torch.allclose(own[name], start[name], atol=1e-6) for name in own), "nothing is drawn anew"


@pytest.mark.parametrize("form", ["handle", "file"])
def test_trained_weights_are_not_drawn_anew_by_scales(forms: Forms, tmp_path: Path, form: str) -> None:
    search = repq.train_model(forms.data, imgsz=SIZE, model="yolov6n_v2_hs", **BRIEF)
    scales = tmp_path / "scales.safetensors"
    save_scales(scales, extract_scales(search.weights.model))  # type: ignore[union-attr]
    first = repq.train_model(forms.data, imgsz=SIZE, model="yolov6n_v2_opt", rep_scales=scales, **BRIEF)
    saved = first.save(tmp_path / "first.safetensors")
    again = repq.train_model(
        forms.data, imgsz=SIZE, model=first if form == "handle" else saved, rep_scales=scales, **BRIEF
    )
    own, start = (dict(one.weights.model.named_parameters()) for one in (again, first))  # type: ignore[union-attr]
    assert all(torch.allclose(own[name], start[name], atol=1e-6) for name in own)


@pytest.mark.parametrize("distill", [None, {"box_weight": 0.0}], ids=["defaults", "settings"])
@pytest.mark.parametrize("form", ["handle", "path", "text"])
def test_a_teacher_is_imitated_in_every_form(forms: Forms, form: str, distill: Any) -> None:
    path = forms.root / "float.safetensors"
    given = {"handle": forms.float_, "path": path, "text": str(path)}[form]
    settings = {} if distill is None else {"distill": distill}
    trained = repq.train_model(forms.data, imgsz=SIZE, model="yolov6n_v2", teacher=given, **settings, **BRIEF)
    assert trained.report.epochs[0].teacher_seconds is not None


@pytest.mark.parametrize("splits", [(), ("train",), ("train", "val", "test"), "train"])
def test_a_training_takes_two_splits(forms: Forms, splits: Any) -> None:
    with pytest.raises(DataError, match="two splits"):
        repq.train_model(forms.data, imgsz=SIZE, splits=splits, epochs=1)


def test_a_training_says_that_it_is_judged_on_the_images_it_learns_from(forms: Forms) -> None:
    said: list[str] = []
    repq.train_model(forms.data, imgsz=SIZE, splits=("train", "train"), epochs=1, batch=3, workers=0, log=said.append)
    assert any("trained on are evaluated on too" in line for line in said)


def test_a_training_starts_from_one_model(forms: Forms, tmp_path: Path) -> None:
    fresh = repq.build_model("yolov6n_v2", 3)
    saved = fresh.save(tmp_path / "start.safetensors")
    with pytest.raises(repq.RepqError, match="two models to start from"):
        repq.train_model(forms.data, imgsz=SIZE, model=fresh, weights=saved, epochs=1)


def test_what_stays_in_float_adds_up(forms: Forms) -> None:
    one, other = forms.float_.layers[3], forms.float_.layers[7]
    few = repq.SensitivityConfig(images=1, end_to_end=False)
    ptq = repq.PtqConfig(auto=False, keep_float=(one,))
    plan = forms.float_.plan(forms.images[:1], imgsz=SIZE, top=1, ptq=ptq, keep_float=[other], config=few)
    assert {one, other} <= set(plan.float_layers)


def test_engines_and_other_models_are_not_both_checked(forms: Forms) -> None:
    with pytest.raises(repq.RepqError, match="no effect beside other models"):
        forms.quantized.check(forms.data, forms.onnx, engines=["onnxruntime"], imgsz=SIZE)


def test_importing_repq_is_cheap_and_lists_its_names() -> None:
    code = (
        "import sys, repq\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'cv2', 'onnx', 'onnxruntime', 'openvino'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert set(repq.__all__) <= set(dir(repq))\n"
        "for name in repq.__all__: getattr(repq, name)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        repq.lod  # noqa: B018


def test_a_recipe_that_cannot_run_says_so(forms: Forms, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("{name: small, imgsz: 64, weights: w.pt, data: {path: data.yaml}}")
    with pytest.raises(RecipeError, match=r"absent\.yaml"):
        repq.run(tmp_path / "absent.yaml")
    with pytest.raises(RecipeError, match="imgzs"):
        repq.run(recipe, overrides=["imgzs=32"])
    work = tmp_path / "work"
    with pytest.raises(repq.RepqError, match=r"nowhere\.pt"):
        repq.run(recipe, weights=tmp_path / "nowhere.pt", data=forms.data, work=work, seed=1)


@pytest.mark.parametrize("as_list", [False, True])
def test_all_images_of_a_folder_are_trained_on(forms: Forms, as_list: bool) -> None:
    """A folder or list of images, however many: training takes them whole."""
    folder = forms.root / "set/images/train"
    images = sorted(folder.iterdir()) if as_list else folder
    trained = forms.quantized.qat(images, imgsz=SIZE, epochs=1, batch=2, workers=0)
    assert trained.report.images == len(list(folder.iterdir()))


# --- arguments -------------------------------------------------------------------------------------------------------

NO_SIZES: tuple[Any, ...] = (
    (64,),
    (64, 64, 64),
    0,
    -64,
    10**9,
    True,
    64.5,
    (64, "a"),
    [64],
    (None, 64),
    b"64",
    float("nan"),
)
OUTSIDE: dict[str, tuple[object, ...]] = {
    "seed": (-1, 2**70, 1.5, "x", True, float("nan")),
    "batch": (0, -1, 2.5, "x", None, True, 10**9),
    "num_classes": (0, -1, 1.5, 10**9, True, "x"),
    "device": ("nonsense", "", "meta", "cuda:99", 0, None),
}


@pytest.mark.parametrize(
    "size", [np.int64(SIZE), [SIZE, SIZE], np.array([SIZE, SIZE]), float(SIZE), (np.int32(SIZE), SIZE)]
)
def test_a_size_is_a_number_of_any_kind_or_two(forms: Forms, size: Any) -> None:
    for model in (forms.float_, forms.onnx, forms.engine):
        assert model.size(size) == (SIZE, SIZE) and all(type(side) is int for side in model.size(size))


@pytest.mark.parametrize("size", NO_SIZES, ids=repr)
def test_what_is_no_size_is_refused_by_every_step(forms: Forms, tmp_path: Path, size: Any) -> None:
    for model in (forms.float_, forms.onnx, forms.engine):
        with pytest.raises(repq.RepqError):
            model.detect(picture(8, 8), imgsz=size)
    for step in (
        lambda: forms.float_.export(tmp_path / "x.onnx", imgsz=size),
        lambda: repq.load(forms.root / "float.safetensors", engine="onnxruntime", imgsz=size),
        lambda: repq.load(forms.root / "float.onnx", imgsz=size),
        lambda: repq.train_model(forms.data, imgsz=size),
    ):
        with pytest.raises(repq.RepqError):
            step()


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, few in OUTSIDE.items() for value in few], ids=repr)
def test_plain_arguments_have_limits(forms: Forms, name: str, value: Any) -> None:
    image, few = picture(8, 8), {"epochs": 1, "batch": 2, "workers": 0}
    steps = {
        "seed": (
            lambda: repq.build_model("yolov6n_v2", 3, seed=value),
            lambda: repq.train_model(forms.data, imgsz=SIZE, seed=value, **few),
            lambda: forms.quantized.qat(forms.images[:2], seed=value, **few),
            lambda: forms.float_.prune(seed=value),
            lambda: forms.float_.quantize([image], imgsz=SIZE, seed=value),
        ),
        "batch": (lambda: forms.float_.detect([image], imgsz=SIZE, batch=value),),
        "num_classes": (lambda: repq.build_model("yolov6n_v2", value),),
        "device": (
            lambda: repq.load(forms.root / "float.safetensors", device=value).detect(image, imgsz=SIZE),
            lambda: repq.train_model(forms.data, imgsz=SIZE, device=value, **few),
            lambda: forms.quantized.on(device=value).qat(forms.images[:2], **few),
        ),
    }
    for step in steps[name]:
        with pytest.raises(repq.RepqError):
            step()


def test_what_is_no_such_thing_is_refused(forms: Forms, tmp_path: Path) -> None:
    model, few = forms.float_, {"epochs": 1, "batch": 3, "workers": 0}
    other: Any = repq.BenchConfig()
    for step in (
        lambda: model.evaluate(forms.data, imgsz=SIZE, config=other),
        lambda: model.evaluate(forms.data, imgsz=SIZE, config={"confidence": 0.3}),  # type: ignore[arg-type]
        lambda: model.check(forms.data, forms.onnx, imgsz=SIZE, eval_config=other),
        lambda: model.quantize(forms.images[:1], imgsz=SIZE, config=other),
        lambda: model.sensitivity(forms.images[:1], imgsz=SIZE, ptq=other),
        lambda: model.plan(forms.images[:1], imgsz=SIZE, top=1, config={"images": 1}),  # type: ignore[arg-type]
        lambda: model.plan(forms.images[:1], imgsz=SIZE, top=1, ptq=other),
        lambda: repq.train_model(forms.data, imgsz=SIZE, config=other),
        lambda: model.quantize(forms.images[:1], imgsz=SIZE, plan=[]),  # type: ignore[arg-type]
        lambda: model.quantize(forms.images[:1], imgsz=SIZE, plan=["neck.*"]),  # type: ignore[arg-type]
        lambda: model.check(forms.data, [forms.onnx], imgsz=SIZE),  # type: ignore[arg-type]
        lambda: model.bench([forms.onnx], imgsz=SIZE),  # type: ignore[arg-type]
        lambda: model.check(forms.data, "float.onnx", imgsz=SIZE),  # type: ignore[arg-type]
        lambda: model.save("."),
        lambda: model.export(".", imgsz=SIZE),
        lambda: repq.load(""),
        lambda: model.prune(imgsz=SIZE, ratio=0.3, target_macs=0.5),
        lambda: repq.train_model(forms.data, imgsz=SIZE, state=".", **few),
        lambda: repq.train_model(forms.data, imgsz=SIZE, state=tmp_path, **few),
        lambda: forms.quantized.qat(forms.images[:2], imgsz=SIZE, state=tmp_path, **few),
    ):
        with pytest.raises(repq.RepqError):
            step()


@pytest.mark.parametrize(
    "options", [{"device": torch.device("cpu")}, {"threads": "1"}, {"threads": np.int64(1)}], ids=repr
)
def test_options_in_other_types_are_the_same_options(forms: Forms, options: Any) -> None:
    assert same(forms.float_.on(**options).detect(picture(8, 8)), forms.float_.on(threads=1).detect(picture(8, 8)))


@pytest.mark.parametrize("names", [(), ("a",), ("a", "b"), ("a", "a", "b"), "abc", ("a", "b", "c", "d"), (1, 2, 3)])
def test_a_name_for_every_class(names: Any) -> None:
    with pytest.raises(repq.RepqError):
        repq.build_model("yolov6n_v2", 3, names=names)


@pytest.mark.parametrize("step", ["quantize", "sensitivity", "plan"])
def test_a_list_is_taken_whole_however_many_are_to_be_drawn(forms: Forms, step: str) -> None:
    images = [picture(40 + 8 * number, 50, number) for number in range(4)]

    def found(drawn: int) -> Any:
        ptq = repq.PtqConfig(auto=False, calibration=repq.CalibrationConfig(images=drawn))
        if step == "quantize":
            return forms.float_.quantize(images, imgsz=SIZE, config=ptq).report.layers
        how = repq.SensitivityConfig(images=1, end_to_end=False)
        if step == "sensitivity":
            return forms.float_.sensitivity(images, imgsz=SIZE, ptq=ptq, config=how).layers
        return forms.float_.plan(images, imgsz=SIZE, ptq=ptq, config=how, max_float=0.1)

    assert found(1) == found(4)


@pytest.mark.parametrize("form", ["folder", "list file", "data set"])
@pytest.mark.parametrize("step", ["quantize", "sensitivity"])
def test_a_manifest_names_the_images_of_every_form(forms: Forms, tmp_path: Path, form: str, step: str) -> None:
    """However few are drawn where there is none."""
    (tmp_path / "list.txt").write_text("\n".join(map(str, forms.images)))
    folder = forms.images[0].parent
    source = {"folder": folder, "list file": tmp_path / "list.txt", "data set": forms.data}[form]
    dataset = open_data(source, "train")
    drawing = repq.CalibrationConfig(images=2, manifest=tmp_path / "manifest.txt")
    last = calibration_set(dataset, repq.CalibrationConfig(images=len(dataset)))[-2:]
    write_manifest(tmp_path / "manifest.txt", last, dataset)
    ptq = repq.PtqConfig(auto=False, calibration=drawing)
    if step == "sensitivity":
        how = repq.SensitivityConfig(images=1, end_to_end=False)
        assert forms.float_.sensitivity(source, imgsz=SIZE, ptq=ptq, config=how).layers
        return
    report = forms.float_.quantize(source, imgsz=SIZE, config=ptq).report
    wanted = forms.float_.quantize([record.path for record in last], imgsz=SIZE, auto=False).report
    assert (report.images, report.layers) == (2, wanted.layers)


@pytest.mark.parametrize("name", ["DATA.YAML", "data.YML", "LIST.TXT", "list.txt"])
def test_the_case_of_a_suffix_does_not_matter(forms: Forms, name: str) -> None:
    source = forms.data.parent / name
    if name.lower().endswith(".txt"):
        source.write_text("\n".join(map(str, forms.images)))
    else:
        source.write_bytes(forms.data.read_bytes())
    assert forms.float_.quantize(source, imgsz=SIZE, method="max", limit=2).report.images == 2


def test_one_name_may_stand_for_a_list_of_one(forms: Forms) -> None:
    image = forms.images[0]
    options = {"imgsz": SIZE, "auto": False}
    one, listed = (forms.float_.quantize(image, keep_float=kept, **options) for kept in ("neck.*", ["neck.*"]))
    assert one.weights.plan == listed.weights.plan and one.weights.plan.float_  # type: ignore[union-attr]
    assert forms.onnx.check(forms.data, forms.engine, max_drop=1.0).passed
    short = {"threads": (1,), "rounds": 1, "runs_per_round": 1, "warmup": 0}
    assert len(forms.onnx.bench(engines="onnxruntime", images=image, **short).rows) == 4


def test_a_check_of_nothing_is_an_error(forms: Forms) -> None:
    with pytest.raises(repq.RepqError, match="nothing to compare"):
        forms.quantized.check(forms.data, engines=[])


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(
    "image",
    [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32), None, 7, [None],
     torch.zeros(8, 8, 3, dtype=torch.uint8), b"123", np.zeros((2, 8, 8, 3), np.uint8), np.zeros((0, 8, 3), np.uint8)],
    ids=lambda image: f"{type(image).__name__} {getattr(image, 'shape', '')}",
)  # fmt: skip
def test_no_step_leaves_out_what_is_no_image(forms: Forms, image: Any, several: bool) -> None:
    given_ = [forms.images[0], image] if several else image
    steps: list[Callable[[Any], Any]] = [
        forms.onnx.detect, lambda images: list(forms.onnx.predict(images)),
        lambda images: forms.float_.quantize(images, imgsz=SIZE), lambda images: forms.onnx.bench(images=images),
    ]  # fmt: skip
    for step in steps:
        with pytest.raises(DataError):
            step(given_)


def test_images_in_whatever_holds_them(forms: Forms) -> None:
    paths = forms.images[:3]
    expected = forms.onnx.detect(paths)
    for images in (iter(paths), (path for path in paths), dict.fromkeys(paths), map(str, paths), tuple(paths)):
        assert all(map(same, forms.onnx.detect(images), expected))  # type: ignore[call-overload]


def test_what_is_given_beside_a_whole_config_counts(forms: Forms) -> None:
    images = forms.images[:3]
    config = repq.PtqConfig(calibration={"method": "max", "images": 3}, keep_float=("detect.*",))
    both = forms.float_.quantize(
        forms.data, imgsz=SIZE, config=config, scheme="asymmetric", weight_granularity="tensor", limit=2,
        keep_float=["neck.*"], method="percentile", percentile=99.0,
    )  # fmt: skip
    made = both.weights.config  # type: ignore[union-attr]
    assert (made.scheme, made.weight_granularity, both.report.images) == ("asymmetric", "tensor", 2)
    assert (made.calibration.method, made.calibration.percentile) == ("percentile", 99.0)
    assert {"detect", "neck"} <= {layer.partition(".")[0] for layer in both.weights.plan.float_}  # type: ignore[union-attr]
    chosen = forms.float_.quantize(images, imgsz=SIZE, config=repq.PtqConfig(), method="max")
    assert chosen.weights.config.calibration.method == "max"  # type: ignore[union-attr]
    few = repq.QatConfig(epochs=1, batch=3, workers=0)
    assert len(forms.quantized.qat(images, config=few, epochs=2).report.epochs) == 2
    measured = forms.float_.sensitivity(
        images, imgsz=SIZE, ptq=config, count=1, config=repq.SensitivityConfig(images=2, end_to_end=False)
    )
    assert len(measured.images) == 1


def test_options_without_effect_are_errors(forms: Forms, tmp_path: Path) -> None:
    float_, onnx, engine = forms.float_, forms.onnx, forms.engine
    for step in (
        lambda: float_.on(engine="onnxruntime"),
        lambda: engine.on(engine="openvino"),
        lambda: onnx.on(half=True),
        lambda: repq.load(forms.root / "float.onnx", half=True),
        lambda: repq.load(forms.root / "engine", half=True),
        lambda: float_.fuse(tolerance=1e-9),
        lambda: float_.fuse(count=2),
        lambda: float_.quantize(forms.images[:1], imgsz=SIZE, auto=True, method="max"),
        lambda: float_.export(tmp_path / "one.onnx", imgsz=SIZE).build("onnxruntime", batch=4),
    ):
        with pytest.raises(repq.RepqError):
            step()


# --- files that change meanwhile -------------------------------------------------------------------------------------


@pytest.fixture
def own_file(forms: Forms, tmp_path: Path) -> repq.Model:
    """A handle of an ONNX file that nothing else uses."""
    return repq.load(forms.onnx.save(tmp_path / "own.onnx"))


@pytest.mark.parametrize("step", ["detect", "evaluate", "build", "save", "quantize", "on"])
@pytest.mark.parametrize("happens", ["replaced", "written over", "deleted", "unchanged", "touched"])
def test_a_handle_is_the_file_that_was_opened(
    forms: Forms, own_file: repq.Model, tmp_path: Path, step: str, happens: str
) -> None:
    path, image = own_file.path, picture(40, 50)
    assert path is not None
    other = bytearray(path.read_bytes())
    other[len(other) // 2] ^= 1
    if happens == "replaced":
        (tmp_path / "new").write_bytes(other)
        (tmp_path / "new").replace(path)
    elif happens == "written over":
        path.write_bytes(other)
    elif happens == "deleted":
        path.unlink()
    elif happens == "touched":
        os.utime(path, ns=(1, 1))
    steps = {
        "detect": lambda: own_file.detect(image),
        "evaluate": lambda: own_file.evaluate(forms.data),
        "build": lambda: own_file.build("onnxruntime"),
        "save": lambda: own_file.save(tmp_path / "copy.onnx"),
        "quantize": lambda: own_file.quantize(forms.images[:1], auto=False),
        "on": lambda: own_file.on(threads=1).infer(np.zeros((1, 3, SIZE, SIZE), np.float32)),
    }
    if happens in ("unchanged", "touched"):
        steps[step]()
    else:
        with pytest.raises(repq.RepqError, match=r"own\.onnx"):
            steps[step]()


def test_handles_stay_what_they_are_wherever_the_process_goes(
    forms: Forms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = picture(40, 50)
    expected, places = forms.onnx.detect(image), (tmp_path / "here", tmp_path / "there")
    for place in places:
        place.mkdir()
    forms.onnx.save(places[0] / "m.onnx")
    forms.engine.save(places[0] / "engine")
    save_checkpoint(tmp_path / "other.safetensors", tiny_model(seed=1, classes=3))
    repq.load(tmp_path / "other.safetensors").export(places[1] / "m.onnx", imgsz=SIZE)
    monkeypatch.chdir(places[0])
    forms.float_.save("m.safetensors")
    opened = repq.load("m.onnx"), repq.load("engine")
    others = repq.load("m.safetensors"), opened[0].build("onnxruntime", out="built")
    monkeypatch.chdir(places[1])
    assert [model.path for model in (*opened, *others)] == [
        places[0] / name for name in ("m.onnx", "engine", "m.safetensors", "built")
    ]
    for model in opened:
        assert same(model.detect(image), expected)
    assert same(opened[0].build("onnxruntime").detect(image), expected)


def test_nothing_is_exported_over_its_own_source(own_file: repq.Model, tmp_path: Path) -> None:
    assert own_file.path is not None
    before = own_file.path.read_bytes()
    (tmp_path / "link.onnx").symlink_to(own_file.path)
    for path in (own_file.path, tmp_path / "link.onnx"):
        with pytest.raises(repq.RepqError, match="exported from"):
            own_file.export(path)
    assert own_file.path.read_bytes() == before


def test_weights_in_other_files_belong_to_the_model(forms: Forms, tmp_path: Path) -> None:
    import onnx

    assert forms.onnx.path is not None
    parts = tmp_path / "parts.onnx"
    onnx.save(onnx.load(forms.onnx.path), parts, save_as_external_data=True, location="parts.bin", size_threshold=0)
    image, model = picture(40, 50), repq.load(parts)
    expected = forms.onnx.detect(image)
    (tmp_path / "alone").mkdir()
    whole = repq.load(model.save(tmp_path / "alone/whole.onnx"))
    assert same(whole.detect(image), expected)
    content = bytearray((tmp_path / "parts.bin").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "parts.bin").write_bytes(content)
    with pytest.raises(EngineError, match="opened"):
        model.detect(image)


# --- threads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["torch", "onnxruntime", "openvino", "ncnn", "opencv"])
def test_threads_share_a_handle(forms: Forms, tmp_path: Path, engine: str) -> None:
    model = forms.float_.on()
    if engine != "torch":
        try:
            model = model.build(engine, imgsz=SIZE)
        except EngineError as error:
            pytest.skip(str(error))
    images = [picture(40 + 8 * number, 50, number) for number in range(4)]
    expected = [model.detect(image, imgsz=SIZE) for image in images]
    with ThreadPoolExecutor(len(images)) as pool:
        found = pool.map(lambda image: [model.detect(image, imgsz=SIZE) for _ in range(6)], images)
        for boxes, wanted in zip(found, expected, strict=True):
            assert all(same(one, wanted) for one in boxes)


def test_fresh_weights_depend_on_the_seed_alone(forms: Forms) -> None:
    def weights(seed: int) -> bytes:
        model = repq.build_model("yolov6n_v2", 3, seed=seed).weights.model  # type: ignore[union-attr]
        return b"".join(value.numpy().tobytes() for value in model.state_dict().values())

    expected, before = [weights(seed) for seed in range(3)], torch.random.get_rng_state()
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(weights, [0, 1, 2] * 4)) == expected * 4
    assert torch.equal(torch.random.get_rng_state(), before)


# --- torch in the caller's program -----------------------------------------------------------------------------------


def callers_state() -> tuple[object, ...]:
    return (
        torch.random.get_rng_state().tolist(), torch.get_default_dtype(), torch.get_default_device(),
        torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"),
        torch.get_num_threads(),
    )  # fmt: skip


@pytest.fixture(scope="module")
def usual_steps(forms: Forms) -> list[NDArray[np.float32]]:
    return found_by_steps(forms, forms.root)


def found_by_steps(forms: Forms, folder: Path) -> list[NDArray[np.float32]]:
    """What is found by a model after each of the steps that use torch."""
    image, images = picture(50, 70), [picture(40 + 8 * number, 50, number) for number in range(3)]
    plain = repq.load(forms.root / "float.safetensors")
    quantized = plain.quantize(images, imgsz=SIZE, method="mse")
    folder.mkdir(exist_ok=True)
    steps = (
        plain, plain.fuse(), quantized, quantized.export(folder / "steps.onnx").build("onnxruntime"),
        quantized.qat(images, imgsz=SIZE, epochs=1, batch=3), plain.prune(ratio=0.2, imgsz=SIZE),
        repq.train_model(forms.data, imgsz=SIZE, model=plain, epochs=1, batch=3, state=folder / "state"),
        repq.train_model(forms.data, imgsz=SIZE, model=plain, epochs=1, batch=3, state=folder / "state"),
    )  # fmt: skip
    return [model.detect(image, imgsz=SIZE, conf=0.001) for model in steps]


@pytest.mark.parametrize(
    "settings",
    [
        [torch.no_grad], [lambda: torch.device("meta"), torch.inference_mode],
        [lambda: torch.autocast("cpu", torch.bfloat16), lambda: default_type(torch.float64)],
    ],
    ids=["no_grad", "device and inference", "autocast and float64"],
)  # fmt: skip
def test_what_the_caller_set_in_torch_changes_nothing_and_stays(
    forms: Forms, usual_steps: list[NDArray[np.float32]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    settings: list[Callable[[], AbstractContextManager[object]]],
) -> None:  # fmt: skip
    monkeypatch.setenv("REPQ_CACHE", str(tmp_path / "cache"))  # graphs are exported anew
    with ExitStack() as stack:
        for setting in settings:
            stack.enter_context(setting())
        torch.manual_seed(7)
        before = callers_state()
        found = found_by_steps(forms, tmp_path / "made")
        assert callers_state() == before
    assert [same(one, wanted) for one, wanted in zip(found, usual_steps, strict=True)] == [True] * len(found)


def test_a_resumed_training_leaves_the_callers_random_numbers(forms: Forms, tmp_path: Path) -> None:
    def trained() -> None:
        repq.train_model(
            forms.data, imgsz=SIZE, model=forms.float_, epochs=1, batch=3, state=tmp_path / "state", mosaic=0.0
        )

    torch.manual_seed(1)
    trained()
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    trained()
    assert torch.equal(torch.random.get_rng_state(), before)


# --- the size of a handle --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def any_size(forms: Forms, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The detector as the ONNX file of another tool, that takes images of any size."""
    import onnx

    graph = onnx.load(forms.onnx.path)  # type: ignore[arg-type]
    del graph.metadata_props[:]
    for axis, name in ((2, "height"), (3, "width")):
        graph.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    path = tmp_path_factory.mktemp("any_size") / "any.onnx"
    onnx.save(graph, path)
    return path


@pytest.mark.parametrize("step", ["load", "fuse", "fuse with a proof", "quantize", "prune"])
@pytest.mark.parametrize("kind", ["checkpoint", "onnx"])
def test_a_handle_goes_on_with_the_size_of_its_step(forms: Forms, any_size: Path, kind: str, step: str) -> None:
    path, images = forms.root / "float.safetensors" if kind == "checkpoint" else any_size, [picture(40, 50)]
    opened = repq.load(path)
    made = {
        "load": lambda: repq.load(path, imgsz=SIZE),
        "fuse": lambda: opened.fuse(imgsz=SIZE),
        "fuse with a proof": lambda: opened.fuse(images, imgsz=SIZE),
        "quantize": lambda: opened.quantize(images, imgsz=SIZE, auto=False),
        "prune": lambda: opened.prune(imgsz=SIZE, ratio=0.2),
    }[step]()
    assert made.size(None) == (SIZE, SIZE)
    assert same(made.detect(images[0]), made.detect(images[0], imgsz=SIZE))


@pytest.mark.parametrize("kind", ["float_", "onnx", "engine"])
def test_a_file_is_opened_at_no_size_that_it_does_not_take(forms: Forms, kind: str) -> None:
    path = forms.root / "float.safetensors" if kind == "float_" else getattr(forms, kind).path
    with pytest.raises(repq.RepqError, match=r"33|96"):
        repq.load(path, imgsz=33 if kind == "float_" else 96)
