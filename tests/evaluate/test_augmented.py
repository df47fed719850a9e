"""Test-time augmentation: what is mirrored comes back, and no augmentation is plain evaluation."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from repq.data import DetectionDataset, letterbox_transform, load_dataset, make_demo_set
from repq.errors import RepqError
from repq.evaluate import detect_all, detections, views
from repq.evaluate.augmented import View, merged, mirror_boxes, mirror_images
from repq.model import build
from repq.preprocessing import Preprocessing
from repq.recipe import DemoConfig, EvalConfig, LetterboxConfig, TtaConfig

HAS_WBF = all(importlib.util.find_spec(name) for name in ("ensemble_boxes", "numba"))
MERGES = ["nms", pytest.param("wbf", marks=pytest.mark.skipif(not HAS_WBF, reason="needs ensemble-boxes"))]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DetectionDataset:
    path = make_demo_set(tmp_path_factory.mktemp("drawn") / "demo", DemoConfig(train_images=1, val_images=4, size=96))
    return load_dataset(path, "val")


@pytest.fixture(scope="module")
def predict() -> Callable[[Any], Any]:
    torch.manual_seed(0)
    model = build("yolov6n_v2", 3).eval()
    with torch.no_grad():
        for layer in model.detect.cls_preds:
            layer.weight.normal_(0, 0.5)
            layer.bias.zero_()

    def run(images: Any) -> Any:
        with torch.inference_mode():
            return model(torch.from_numpy(images)).numpy()

    return run


def some_boxes(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    corner, size = rng.integers(0, 64, (count, 2)), rng.integers(1, 32, (count, 2))
    boxes = np.column_stack([corner, corner + size, rng.uniform(0.1, 1, count), rng.integers(0, 3, count)])
    return boxes[np.argsort(-boxes[:, 4])].astype(np.float32)


def test_mirroring_twice_is_the_identity() -> None:
    images = np.random.default_rng(0).normal(size=(2, 3, 5, 7)).astype(np.float32)
    assert np.array_equal(mirror_images(mirror_images(images)), images)
    assert not np.array_equal(mirror_images(images), images)
    boxes = some_boxes(20)
    assert np.array_equal(mirror_boxes(mirror_boxes(boxes, 96), 96), boxes)


def test_mirrored_boxes_cover_the_mirrored_pixels() -> None:
    for box in some_boxes(10):
        image = np.zeros((1, 1, 96, 96), np.float32)
        x1, y1, x2, y2 = box[:4].astype(int)
        image[0, 0, y1:y2, x1:x2] = 1
        x1, y1, x2, y2 = mirror_boxes(box[None], 96)[0, :4].astype(int)
        assert mirror_images(image)[0, 0, y1:y2, x1:x2].all() and image.sum() == (x2 - x1) * (y2 - y1)


def test_the_identity_alone_is_plain_evaluation(dataset: DetectionDataset, predict: Any) -> None:
    plain = detect_all(predict, dataset, (96, 96), EvalConfig(batch=3))
    same = detect_all(predict, dataset, (96, 96), EvalConfig(batch=3, tta=TtaConfig(flip=False)))
    assert plain.count and plain.tta is None
    assert same.tta is not None and (same.tta.passes, same.tta.time_ratio) == (1, 1.0)
    assert all(np.array_equal(a, b) for a, b in zip(plain.boxes, same.boxes, strict=True))


@pytest.mark.parametrize("merge", MERGES)
def test_several_passes_find_boxes_in_the_images(dataset: DetectionDataset, predict: Any, merge: Any) -> None:
    tta = TtaConfig(scales=(1.0, 1.34), merge=merge)
    found = detect_all(predict, dataset, (96, 96), EvalConfig(batch=3, tta=tta, max_detections=50))
    assert found.tta is not None and found.tta.passes == 4 and found.tta.time_ratio > 1
    assert found.count
    for boxes in found.boxes:
        assert boxes.shape[1] == 6 and len(boxes) <= 50
        assert (np.diff(boxes[:, 4]) <= 0).all() and (boxes[:, 2:4] > boxes[:, :2]).all()


@pytest.mark.parametrize("merge", MERGES)
def test_passes_that_agree_merge_into_what_they_say(merge: Any) -> None:
    apart = np.array([[0, 0, 8, 8, 0.9, 0], [20, 20, 30, 30, 0.8, 1], [40, 0, 50, 9, 0.7, 0]], np.float32)
    found = merged([apart, apart.copy()], TtaConfig(merge=merge), 300)
    np.testing.assert_allclose(found, apart, rtol=1e-6, atol=1e-5)
    assert len(merged([apart[:0], apart[:0]], TtaConfig(merge=merge), 300)) == 0


def test_images_scaled_within_the_input_leave_its_size_alone(dataset: DetectionDataset, predict: Any) -> None:
    tta = TtaConfig(scales=(0.5, 1.0), inside=True, flip=False)
    plain, small = views((96, 128), tta)
    assert (plain, small) == (View((96, 128), False), View((96, 128), False, 0.5))
    for width, height in ((50, 40), (64, 32)):
        usual, scaled = (letterbox_transform(width, height, (96, 96), scale=view.scale)
                         for view in views((96, 96), tta))  # fmt: skip
        assert scaled.scale_x == pytest.approx(usual.scale_x / 2, abs=1 / width)
    shapes = set()

    def seen(images: Any) -> Any:
        shapes.add(images.shape[1:])
        return predict(images)

    found = detect_all(seen, dataset, (96, 96), EvalConfig(batch=3, tta=tta))
    assert shapes == {(3, 96, 96)} and found.tta is not None and found.tta.passes == 2
    with pytest.raises(ValueError, match="does not lie inside"):
        TtaConfig(scales=(1.0, 1.2), inside=True)


def test_the_plain_view_comes_first() -> None:
    found = views((96, 128), TtaConfig(scales=(0.5, 1.0, 1.0)))
    assert found[0] == View((96, 128), False) and len(found) == 4
    assert {view.size for view in found} == {(96, 128), (64, 64)}


@given(
    size=st.tuples(st.integers(64, 640), st.integers(64, 640)),
    image=st.tuples(st.integers(64, 640), st.integers(64, 640)),
    scale=st.floats(0.3, 1),
    border=st.integers(0, 16),
    inner=st.none() | st.integers(64, 320),
    upscale=st.booleans(),
    stretch=st.booleans(),
)
def test_a_scale_within_the_input_counts_whatever_the_shapes(
    size: Any, image: Any, scale: float, border: int, inner: int | None, upscale: bool, stretch: bool
) -> None:
    config = LetterboxConfig(border=border, inner_size=inner, upscale=upscale)
    assume(inner is None or inner <= max(size) - 2 * border)
    usual, scaled = (letterbox_transform(*image, size, config, Preprocessing(stretch=stretch), factor)
                     for factor in (1.0, scale))  # fmt: skip
    for pixels, before, after in ((image[0], usual.scale_x, scaled.scale_x), (image[1], usual.scale_y, scaled.scale_y)):
        # The room is rounded to whole pixels, and so is the image, which a long one feels on its short side.
        slack = 1.5 if stretch else 2 + max(image) / min(image)
        assert abs(after - scale * before) * pixels <= slack


@pytest.mark.parametrize("scales", [(2.0,), (1.0, 2.0), (2.0, 0.5)])
@pytest.mark.parametrize("flip", [False, True])
def test_time_is_told_in_plain_passes_whichever_are_made(
    dataset: DetectionDataset, scales: tuple[float, ...], flip: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(detections, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def predict(images: Any) -> Any:
        clock[0] += images.shape[2] * images.shape[3]
        return np.zeros((len(images), 1, 8), np.float32)

    tta = TtaConfig(scales=scales, flip=flip)
    cost = detect_all(predict, dataset, (64, 64), EvalConfig(batch=2, tta=tta)).tta
    wanted = sum(scale**2 for scale in scales) * (2 if flip else 1)
    assert cost is not None and cost.time_ratio == pytest.approx(wanted)


def test_what_cannot_be_merged_is_said_before_anything_is_looked_at(
    dataset: DetectionDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RepqError, match="ensemble-boxes"):
        detect_all(pytest.fail, dataset, (64, 64), EvalConfig(tta=TtaConfig(merge="wbf")))
