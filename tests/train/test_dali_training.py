"""Samples by DALI and torch against OpenCV's, and trainings with them, on the CPU; ``gpu``: also there."""

from __future__ import annotations

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from small_training import QUICK, SIZE, interrupted_after, same_weights, tiny_model

from repq.data import ImageCache, ImageRecord, SamplePlan, load_dataset, plan_sample, render
from repq.data.augment import adding_table, blend, mirror, recolour, shifting_table, turn_over
from repq.data.dali import shrinking_sizes
from repq.data.dataset import as_boxes
from repq.distributed import ALONE, Processes
from repq.errors import DataError, EngineError, TrainingError
from repq.recipe import TrainConfig
from repq.train import train
from repq.train.board import draw_batch
from repq.train.dali import DaliRenderer, finished, recoloured
from repq.train.loader import TrainBatch, training_batches

EVERYTHING = TrainConfig(
    mosaic=0.5, mixup=0.5, rotate=20, shear=5, flip=0.5, flip_vertical=0.5, hsv_shift=(5, 30, 30), workers=0, batch=4
)
CPU = torch.device("cpu")


# --- torch's part: no DALI is needed ---------------------------------------------------------------------------------


def noise(seed: int, *shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("make", [shifting_table, adding_table])
def test_colours_change_as_by_opencv(make) -> None:
    images = noise(0, 3, 60, 70, 3)
    images[0, :16, :16] = np.arange(256).reshape(16, 16, 1)  # greys, which have no hue
    rng = np.random.default_rng(1)
    tables = [make((0.5, 0.7, 0.4) if make is shifting_table else (90, 60, 60), rng)[0] for _ in images]
    found = recoloured(torch.from_numpy(images), torch.from_numpy(np.stack(tables))).numpy()
    for image, table, own in zip(images, tables, found, strict=True):
        assert np.abs(own.astype(int) - recolour(image, table)).max() <= 1


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=4))
def test_flips_and_blends_are_those_of_opencv(cases: list[tuple[bool, ...]]) -> None:
    plans, expected, canvases, seconds = [], [], [], []
    for number, (mirrored, turned, blended, other_mirrored) in enumerate(cases):
        image, other = noise(number, 6, 8, 3), noise(100 + number, 6, 8, 3)
        plan = SamplePlan((6, 8), 114, (), as_boxes())
        second = mirror(plan) if other_mirrored else plan
        plan = SamplePlan((6, 8), 114, (), as_boxes(), second if blended else None, 0.3)
        plan = mirror(plan) if mirrored else plan
        plans.append(turn_over(plan) if turned else plan)
        canvases.append(image.copy())
        if blended:
            seconds.append(other)
            image = blend(image, other[:, ::-1] if other_mirrored else other, 0.3)
        image = image[:, ::-1] if mirrored else image
        expected.append(image[::-1] if turned else image)
    second = torch.from_numpy(np.stack(seconds)) if seconds else torch.zeros((0, 6, 8, 3), dtype=torch.uint8)
    found = finished(plans, torch.from_numpy(np.stack(canvases)), second).numpy()
    assert np.abs(found.astype(int) - np.stack(expected)).max() <= 1  # halves are rounded to either side


def test_without_dali_a_training_ends_before_it_begins(data, monkeypatch, tmp_path: Path) -> None:
    def absent() -> str:
        raise EngineError("NVIDIA DALI is not installed here", found="no module", fix="pip install 'repq[dali]'")

    monkeypatch.setattr("repq.data.dali.dali_version", absent)
    state = tmp_path / "state.safetensors"
    with pytest.raises(EngineError, match=r"repq\[dali\]"):
        train(tiny_model(), *data, SIZE, QUICK.model_copy(update={"loader": "dali"}), state_path=state)
    assert not state.exists()


# --- with DALI -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dali() -> None:
    pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed: pip install 'repq[dali]' (about 1 GB)")


absent = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, absent])]


def photographs(folder: Path) -> list[ImageRecord]:
    """Images of smooth shapes with some noise, of many sizes: JPEGs, one turned by its EXIF tag, a PNG and a WebP."""
    found = []
    sizes = [(96, 128), (60, 128), (192, 256), (480, 640), (350, 90), (31, 40), (720, 1280), (100, 131), (90, 120)]
    for seed, (height, width) in enumerate(sizes):
        rng = np.random.default_rng(seed)
        coarse = rng.uniform(0, 255, (height // 40 + 2, width // 40 + 2, 3)).astype(np.float32)
        image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        image = np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8)
        suffix = {7: ".png", 8: ".webp"}.get(seed, ".jpg")
        data = cv2.imencode(suffix, image)[1].tobytes()
        if seed == 2:
            data, height, width = turned_right(data), width, height
        path = folder / f"{seed}{suffix}"
        path.write_bytes(data)
        row = [seed % 2, *rng.uniform(0.4, 0.6, 2), *rng.uniform(0.3, 0.6, 2)]
        found.append(ImageRecord(path.name, path, width, height, as_boxes([row])))
    return found


def turned_right(jpeg: bytes) -> bytes:
    """The same file with the EXIF orientation 6."""
    entry = b"\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00"
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + entry + b"\0\0\0\0"
    return jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:]


def differences(cache: ImageCache, imgsz: tuple[int, int], config: TrainConfig, device: str) -> list[float]:
    """Mean absolute differences of samples by DALI and by OpenCV, each image once."""
    rngs = [np.random.default_rng(index) for index in range(len(cache))]
    plans = [plan_sample(cache, index, imgsz, config, rng) for index, rng in enumerate(rngs)]
    renderer = DaliRenderer(cache, 114, torch.device(device), threads=1)
    images = renderer.join([renderer.prepare(plan) for plan in plans])
    assert images.device.type == device
    assert (images.shape, images.dtype) == ((len(plans), *imgsz, 3), torch.uint8)
    pairs = zip(images.cpu().numpy(), plans, strict=True)
    return [float(np.abs(image.astype(int) - render(plan, cache)).mean()) for image, plan in pairs]


STILL = {"mosaic": 0.0, "mixup": 0.0, "hsv": (0, 0, 0), "hsv_shift": (0, 0, 0), "flip": 0, "flip_vertical": 0}


@pytest.mark.usefixtures("dali")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "changes",
    [
        {**STILL, "rotate": 0, "shear": 0, "translate": 0, "scale": (1, 1)},
        STILL,
        {**STILL, "mosaic": 1.0},
        {**STILL, "mixup": 1.0},
        {**STILL, "mosaic": 1.0, "mixup": 1.0, "mixup_scale": (0.5, 1.5), "flip": 0.5, "affine": "mosaic"},
        {},
    ],
)
@pytest.mark.parametrize("imgsz", [(96, 128), (256, 256)])
def test_pixels_are_those_of_opencv(tmp_path: Path, imgsz: tuple[int, int], changes: dict, device: str) -> None:
    cache = ImageCache(photographs(tmp_path), imgsz, 1 << 26)
    found = differences(cache, imgsz, EVERYTHING.model_copy(update=changes), device)
    assert max(found) < (1 if device == "cpu" else 2), found


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(32, 640))
def test_images_shrink_to_the_size_that_opencv_gives_them(height: int, width: int, side: int) -> None:
    cache = ImageCache([ImageRecord("a.jpg", "a.jpg", width, height)], (side, side), 0)
    sizes = shrinking_sizes((height, width), cache.size(0))
    assert [(height, width), *sizes][-1] == cache.size(0)
    assert (height, width) not in sizes
    assert all(before == (2 * after[0], 2 * after[1]) for before, after in itertools.pairwise(sizes))


@pytest.mark.usefixtures("dali")
@pytest.mark.parametrize("device", DEVICES)
def test_drawn_and_real_images(data, shared: Path, device: str) -> None:
    drawn = ImageCache(data[0].records, SIZE, 1 << 24)
    real = ImageCache(load_dataset(shared / "data/coco128/data.yaml", "val").records[:24], (320, 320), 1 << 26)
    for cache, size in ((drawn, SIZE), (real, (320, 320))):
        assert np.mean(differences(cache, size, EVERYTHING, device)) < 1


@pytest.mark.usefixtures("dali")
@pytest.mark.parametrize("device", DEVICES)
def test_trains_and_resumes_as_with_opencv(data, tmp_path: Path, device: str) -> None:
    config = QUICK.model_copy(update={"epochs": 2, "mosaic": 0.5, "mixup": 0.5, "multi_scale": (0.5, 1.5)})
    by_dali = config.model_copy(update={"loader": "dali"})
    (ours, usual) = (train(tiny_model(), *data, SIZE, settings, device=device) for settings in (by_dali, config))
    losses = [[row.losses["total"] for row in outcome.report.epochs] for outcome in (ours, usual)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert losses[0] != losses[1], "the images are those of OpenCV"
    path = tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(tiny_model(), *data, SIZE, by_dali, device=device, state_path=path, progress=interrupted_after(4))
    with pytest.raises(TrainingError, match="loader"):
        train(tiny_model(), *data, SIZE, config, device=device, state_path=path)
    resumed = train(tiny_model(), *data, SIZE, by_dali, device=device, state_path=path)
    assert len(resumed.report.epochs) == 2
    if device == "cpu":
        assert same_weights(ours, resumed)


@pytest.mark.usefixtures("dali")
def test_threads_and_processes_change_nothing_and_a_board_shows_it(data) -> None:
    cache = ImageCache(data[0].records, SIZE, 1 << 24)
    config = EVERYTHING.model_copy(update={"batch": 4})

    def epoch(workers: int, processes: Processes = ALONE) -> list[TrainBatch]:
        renderer = DaliRenderer(cache, 114, CPU, threads=max(1, workers))
        settings = config.model_copy(update={"workers": workers})
        return list(training_batches(cache, SIZE, settings, seed=0, epoch=1, processes=processes, renderer=renderer))

    whole = epoch(0)
    assert [len(batch.images) for batch in whole] == [4, 3, 3]
    for found, expected in zip(epoch(2), whole, strict=True):
        assert torch.equal(torch.as_tensor(found.images), torch.as_tensor(expected.images))
    shares = [epoch(0, Processes(rank, 2)) for rank in range(2)]
    for parts, expected in zip(zip(*shares, strict=True), whole, strict=True):
        together = torch.cat([torch.as_tensor(part.images) for part in parts])
        assert torch.equal(together, torch.as_tensor(expected.images))
    assert draw_batch(whole[0]).shape == (2 * SIZE[0], 2 * SIZE[1], 3)


@pytest.mark.usefixtures("dali")
def test_a_spoilt_file_is_an_error_and_the_next_batch_comes(tmp_path: Path) -> None:
    cache = ImageCache(photographs(tmp_path), (96, 128), 1 << 24)
    good, bad = (plan_sample(cache, index, (96, 128), TrainConfig(), np.random.default_rng(0)) for index in (3, 0))
    whole = cache.records[0].path.read_bytes()
    cache.records[0].path.write_bytes(whole.replace(b"\xff\xdb", b"\xff\xfe"))  # tables of divisors become comments
    renderer = DaliRenderer(cache, 114, CPU, threads=1)
    with pytest.raises(DataError, match="DALI cannot decode"):
        renderer.join([renderer.prepare(bad)])
    assert renderer.join([renderer.prepare(good)]).shape == (1, 96, 128, 3)
