"""YOLOX's losses, assignment and schedule, against golden files and a plain reference."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from repq.data import load_dataset, make_demo_set
from repq.model import TrainOutput, build
from repq.model.yolox.training import one_point_each
from repq.recipe import DemoConfig, TrainConfig
from repq.train import anchor_grid, objective_of, pad_objects, train
from repq.train.boxes import pairwise_iou
from repq.train.optimizer import rates_at
from repq.train.simota import near_centre

STRIDES = (8, 16, 32)


def answer(raws: list[Tensor], classes: int) -> TrainOutput:
    """What the detector answers where its head writes ``raws``, (B, 5 + classes, H, W) per level."""
    model = build("yolox_nano", classes)
    raw = torch.cat([level.flatten(2) for level in raws], dim=2).transpose(1, 2)
    model.head.forward = lambda features: raw  # type: ignore[method-assign]
    return model.answer(tuple(raws))


def grid_of(size: int):
    return anchor_grid([(size // stride, size // stride) for stride in STRIDES], STRIDES, torch.device("cpu"))


def objective(classes: int, **settings):
    return objective_of(build("yolox_nano", classes), TrainConfig(model="yolox_nano", **settings))


def corners(rows: np.ndarray) -> np.ndarray:
    """Rows of class, cx, cy, w, h; those of zeros are padding."""
    rows = rows[rows.any(axis=1)]
    return np.c_[rows[:, :1], rows[:, 1:3] - rows[:, 3:] / 2, rows[:, 1:3] + rows[:, 3:] / 2].astype(np.float32)


@pytest.mark.parametrize("number", range(3))
def test_losses_and_gradients_are_the_official_ones(shared: Path, number: int) -> None:
    case = json.loads((shared / "golden/yolox_losses.json").read_text())[number]
    arrays, seed, size = np.load(shared / "golden/yolox_losses.npz"), case["seed"], case["input_size"]
    raws = [torch.from_numpy(arrays[f"{seed}_raw{level}"]).requires_grad_() for level in range(3)]
    labels = [corners(rows) for rows in arrays[f"{seed}_labels"]]
    l1 = {"l1_weight": float(case["use_l1"]), "l1_epochs": None}
    loss = objective(case["num_classes"], **l1).loss(
        answer(raws, case["num_classes"]), pad_objects(labels), grid_of(size)
    )
    loss.total.backward()
    expected = case["expected"]
    parts = {"iou": "iou_times_5", "objectness": "obj", "class": "cls"} | ({"l1": "l1"} if case["use_l1"] else {})
    assert {name: loss.part(name).item() for name in parts} == pytest.approx(
        {name: expected[official] for name, official in parts.items()}, rel=1e-4
    )
    assert loss.total.item() == pytest.approx(expected["loss"], rel=1e-4)
    assert loss.target_score.item() / sum(map(len, labels)) == pytest.approx(expected["positives_per_object"])
    sums = [raw.grad.abs().sum().item() for raw in raws]
    assert sums == pytest.approx(expected["grad_abs_sum"], rel=1e-4)


def plain_loss(raws: list[np.ndarray], labels: list[np.ndarray], classes: int, l1: bool) -> float:
    """The loss of the paper, image by image and object by object, in float64."""
    total, positives = 0.0, 0
    for image, rows in enumerate(labels):
        raw, points, strides = [], [], []
        for level, stride in zip(raws, STRIDES, strict=True):
            _, height, width = level[image].shape
            for y in range(height):
                for x in range(width):
                    raw.append(level[image, :, y, x].astype(np.float64))
                    points.append((x, y))
                    strides.append(stride)
        raw, points, strides = np.array(raw), np.array(points, float), np.array(strides, float)[:, None]
        centre, size = (raw[:, :2] + points) * strides, np.exp(raw[:, 2:4]) * strides
        boxes = np.hstack((centre - size / 2, centre + size / 2))
        probability = 1 / (1 + np.exp(-raw[:, 4:]))
        joint = np.sqrt(probability[:, :1] * probability[:, 1:])
        middles = (points + 0.5) * strides
        overlaps, costs, near = [], [], []
        for class_id, *box in rows.tolist():
            where = np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])
            near.append((np.abs(middles - where) < 1.5 * strides).all(1))
            inner = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
            overlap = np.where((inner > 0).all(1), inner.prod(1), 0)
            union = size.prod(1) + (box[2] - box[0]) * (box[3] - box[1]) - overlap
            overlaps.append(overlap / union)
            wanted = np.eye(classes)[int(class_id)]
            entropy = -(wanted * np.log(joint) + (1 - wanted) * np.log(1 - joint)).sum(1)
            costs.append(entropy - 3 * np.log(overlaps[-1] + 1e-8) + 1e6 * ~near[-1])
        owners = np.full(len(raw), -1)
        if len(rows) and np.any(near):
            candidates = np.flatnonzero(np.any(near, axis=0))
            takers = [[] for _ in range(len(raw))]
            for number, (overlap, cost) in enumerate(zip(overlaps, costs, strict=True)):
                count = max(1, int(np.sort(overlap[candidates])[-10:].sum()))
                for point in candidates[np.argsort(cost[candidates])[:count]]:
                    takers[point].append(number)
            for point, own in enumerate(takers):
                if own:
                    owners[point] = own[0] if len(own) == 1 else np.argmin([cost[point] for cost in costs])
        taken = owners >= 0
        positives += taken.sum()
        total += np.log1p(np.exp(-raw[taken, 4])).sum() + np.log1p(np.exp(raw[~taken, 4])).sum()
        for point in np.flatnonzero(taken):
            row, overlap = rows[owners[point]], overlaps[owners[point]][point]
            total += 5 * (1 - overlap**2)
            wanted = np.eye(classes)[int(row[0])] * overlap
            total += (np.log1p(np.exp(raw[point, 5:])) - wanted * raw[point, 5:]).sum()
            if l1:
                stride = strides[point, 0]
                place = (np.array([row[1] + row[3], row[2] + row[4]]) / 2) / stride - points[point]
                extent = np.log(np.array([row[3] - row[1], row[4] - row[2]]) / stride)
                total += np.abs(raw[point, :4] - np.hstack((place, extent))).sum()
    return total / max(positives, 1)


@pytest.mark.parametrize("seed", range(4))
def test_the_loss_is_that_of_the_paper(seed: int) -> None:
    rng, size, classes = np.random.default_rng(seed), 96, 4
    raws = [rng.normal(0, 0.7, (3, 5 + classes, size // s, size // s)).astype(np.float32) for s in STRIDES]
    labels = []
    for count in (0, 3, 9):  # crowded, tiny, outside of the image and alone
        low = rng.uniform(-20, size - 4, (count, 2))
        high = low + rng.uniform(0.5, 60, (count, 2))
        labels.append(np.c_[rng.integers(0, classes, count), low, high].astype(np.float32))
    l1 = bool(seed % 2)
    found = objective(classes, l1_weight=float(l1), l1_epochs=None).loss(
        answer([torch.from_numpy(raw) for raw in raws], classes), pad_objects(labels), grid_of(size)
    )
    assert found.total.item() == pytest.approx(plain_loss(raws, labels, classes, l1), rel=2e-5)


def test_images_without_objects_teach_that_there_is_none() -> None:
    raws = [torch.zeros(2, 8, 64 // stride, 64 // stride, requires_grad=True) for stride in STRIDES]
    empty = pad_objects([np.zeros((0, 5), np.float32)] * 2)
    loss = objective(3).loss(answer(raws, 3), empty, grid_of(64))
    loss.total.backward()
    points = 2 * sum(len(raw[0, 0].flatten()) for raw in raws)
    assert loss.total.item() == pytest.approx(points * math.log(2), rel=1e-5)
    assert all((raw.grad[:, 4] > 0).all() and not raw.grad[:, :4].any() and not raw.grad[:, 5:].any() for raw in raws)


def test_without_suppression_every_object_has_one_point_of_its_own() -> None:
    torch.manual_seed(1)
    grid, classes = grid_of(96), 3
    for seed in range(5):
        rng = np.random.default_rng(seed)
        low = rng.uniform(0, 60, (6, 2))
        labels = np.c_[rng.integers(0, classes, 6), low, low + rng.uniform(2, 30, (6, 2))].astype(np.float32)
        objects = pad_objects([labels, labels[:2], labels[:0]])
        half = torch.rand(3, len(grid.points), 1) * 20
        boxes, scores = (
            torch.cat((grid.points - half, grid.points + half), -1),
            torch.rand(3, len(grid.points), classes),
        )
        chosen = one_point_each(scores, boxes, objects, grid)
        assert ((chosen >= 0) == objects.valid).all()
        for image in chosen:
            taken = image[image >= 0].tolist()
            assert len(set(taken)) == len(taken)
        # the best pair of all is chosen
        overlaps = pairwise_iou(objects.boxes[:1], boxes[:1])[0]
        own = scores[0].T[objects.classes[0]]
        quality = own**0.2 * overlaps**0.8 * near_centre(objects, grid, 1.5)[0]
        best, point = divmod(int(quality.argmax()), len(grid.points))
        assert chosen[0, best] == point


def test_the_branch_without_suppression_leaves_the_rest_alone() -> None:
    model = build("yolox_nano_nmsfree", 2)
    raw = model.head(model.features(torch.rand(1, 3, 64, 64) * 255))
    raw[..., -1].sum().backward()
    moved = {
        name.split(".")[1]
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and parameter.grad.any()
    }
    assert moved == {"one_convs", "one_preds"}


def test_l1_counts_in_the_last_epochs_alone() -> None:
    torch.manual_seed(0)
    raws = [torch.randn(1, 8, 64 // stride, 64 // stride) for stride in STRIDES]
    objects = pad_objects([np.array([[1, 10, 10, 40, 50]], np.float32)])
    own = objective(3, epochs=20, l1_epochs=5)
    parts = [
        own.loss(answer(raws, 3), objects, grid_of(64), progress=at).part("l1").item() for at in (0, 0.74, 0.75, 1)
    ]
    assert parts[:2] == [0, 0] and parts[2] == parts[3] > 0


def test_the_schedule_is_the_published_one() -> None:
    config, per_epoch = TrainConfig(model="yolox_s"), 10
    total = config.epochs * per_epoch

    def published(step: int) -> float:
        rate, least, rising, flat = 0.01, 0.0005, 5 * per_epoch, 15 * per_epoch
        if step < rising:
            return rate * (step / rising) ** 2
        if step >= total - flat:
            return least
        return least + (rate - least) / 2 * (1 + math.cos(math.pi * (step - rising) / (total - rising - flat)))

    for step in range(0, total, 7):
        rates = rates_at(step, total, config)
        assert rates.learning_rate == pytest.approx(published(step)), step
        assert rates.bias_learning_rate == pytest.approx(rates.learning_rate)
        assert rates.momentum == 0.9
    double = TrainConfig(model="yolox_s", batch=128)
    assert rates_at(1000, total, double).learning_rate == pytest.approx(2 * published(1000))


def test_settings_are_those_of_the_model_unless_given() -> None:
    assert TrainConfig().assigner == "task_aligned"
    nano, s = TrainConfig(model="yolox_nano"), TrainConfig(model="yolox_s_relu", mixup=0.5)
    assert (nano.assigner, nano.mixup, nano.scale) == ("simota", 0.0, (0.5, 1.5))
    assert (s.mixup, s.scale, s.mosaic_off_epochs) == (0.5, (0.1, 2.0), 15)
    assert TrainConfig.model_validate_json(s.model_dump_json()) == s


@pytest.mark.parametrize("name", ["yolox_nano", "yolox_nano_coupled_relu_nmsfree"])
def test_it_learns(name: str, tmp_path: Path) -> None:
    data = make_demo_set(tmp_path / "demo", DemoConfig(train_images=12, val_images=4, size=64, classes=2))
    torch.manual_seed(0)
    config = TrainConfig(model=name, epochs=4, batch=4, warmup_epochs=1, flat_epochs=1, mosaic_off_epochs=1,
                         l1_epochs=1, mixup=0.5, mosaic=1, workers=0, rate_batch=4, multi_scale=0.5)  # fmt: skip
    splits = [load_dataset(data, split) for split in ("train", "val")]
    report = train(build(name, 2), *splits, (64, 64), config).report
    losses = [row.losses for row in report.epochs]
    assert losses[-1]["objectness"] < losses[0]["objectness"]
    assert [row["l1"] > 0 for row in losses] == [False, False, False, True]
