"""Which settings count for which family: those that an objective calls unused change no loss, all others do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from small_training import tiny_model

from repq.model import Detector, build
from repq.recipe import TrainConfig
from repq.train import doubtful_settings, objective_of, pad_objects
from repq.train.boxes import grid_of
from repq.train.optimizer import rates_at

SIZE = (64, 96)
MANY = 10_000  # images: no training is short
FAMILIES: dict[str, Callable[[], Detector]] = {
    "yolov6": tiny_model,
    "yolov6 with DFL": lambda: tiny_model(use_dfl=True, reg_max=16),
    "yolox": lambda: build("yolox_nano", 2),
}
CHANGES: dict[str, Any] = {
    "assigner": "centre",
    "class_loss": "focal",
    "iou_loss": "giou",
    "class_weight": 3.0,
    "iou_weight": 3.0,
    "dfl_weight": 3.0,
    "l1_weight": 3.0,
    "l1_epochs": 1,
    "class_weights": (3.0, 0.5),
    "atss_epochs": 4,
}


def parts(model: Detector, config: TrainConfig) -> dict[str, float]:
    """The parts of the loss of two images, in the first half of a training of four epochs."""
    torch.manual_seed(0)
    model.train()
    output = model.answer(model.features(torch.rand(2, 3, *SIZE)))
    objects = pad_objects([np.array([[0, 4, 6, 40, 50], [1, 20, 8, 90, 60]], np.float32), np.zeros((0, 5), np.float32)])
    grid = grid_of(SIZE, model.spec.strides, torch.device("cpu"))
    found = objective_of(model, config).loss(output, objects, grid, warm_up=config.atss_epochs > 1, progress=0.4)
    return {name: float(value.detach()) for name, value in found.sums.items()}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("family", FAMILIES)
def test_settings_count_or_are_said_not_to(family: str, name: str) -> None:
    torch.manual_seed(1)
    model = FAMILIES[family]()
    usual = {"epochs": 4, "l1_weight": 1.0, "l1_epochs": None, "assigner": "simota", "model": model.spec.name}
    before, after = TrainConfig(**usual), TrainConfig(**{**usual, name: CHANGES[name]})
    is_unused = name in objective_of(model, after).unused
    assert (parts(model, before) == parts(model, after)) == is_unused
    said = [note for note in doubtful_settings(model, after, MANY) if name in note]
    assert bool(said) == is_unused
    assert not [note for note in doubtful_settings(model, before, MANY) if name in note]


@pytest.mark.parametrize("family", FAMILIES)
def test_l1_counts_in_the_last_epochs_of_every_family(family: str) -> None:
    torch.manual_seed(1)
    model = FAMILIES[family]()
    settings = {"epochs": 4, "l1_weight": 1.0, "model": model.spec.name}
    # progress is 0.4: the last three of four epochs have begun, the last two have not
    assert parts(model, TrainConfig(**settings, l1_epochs=2))["l1"] == 0
    late, always = (parts(model, TrainConfig(**settings, l1_epochs=epochs)) for epochs in (3, None))
    assert late == always and late["l1"] > 0


def test_last_epochs_that_are_all_epochs_are_said() -> None:
    model = build("yolox_nano", 2)
    few, enough = (TrainConfig(model="yolox_nano", epochs=epochs) for epochs in (15, 16))
    assert [note.split()[0] for note in doubtful_settings(model, few, MANY)] == ["flat_epochs", "mosaic_off_epochs"]
    assert doubtful_settings(model, enough, MANY) == ()
    assert doubtful_settings(tiny_model(), TrainConfig(epochs=1), MANY) == ()


WARM_UPS = ({"warmup_steps": 0}, {"warmup_steps": 7}, {"warmup_steps": 40}, {"warmup_epochs": 3.0})


@pytest.mark.parametrize("scale", [None, (0.5, 1.5)])
@pytest.mark.parametrize("mosaic", [0.0, 0.5])
def test_mixup_of_mosaics_alone_is_said_to_have_no_effect_without_them(mosaic: float, scale: tuple | None) -> None:
    config = TrainConfig(epochs=1000, mosaic=mosaic, mixup=0.5, mixup_scale=scale)
    said = [note for note in doubtful_settings(tiny_model(), config, MANY) if "mixup" in note]
    assert bool(said) == (mosaic == 0 and scale is not None)


@pytest.mark.parametrize("warmup", WARM_UPS)
@pytest.mark.parametrize("epochs", [1, 3, 20])
@pytest.mark.parametrize("images", [1, 9, 200])
def test_a_warm_up_that_never_ends_is_said(images: int, epochs: int, warmup: dict[str, float]) -> None:
    config = TrainConfig(batch=4, epochs=epochs, learning_rate=0.02, final_learning_rate_factor=1.0, **warmup)
    updates = -(-images // 4) * epochs
    highest = max(rates_at(update, updates, config).learning_rate for update in range(updates))
    notes = [note for note in doubtful_settings(tiny_model(), config, images) if "warm-up" in note]
    assert bool(notes) == (highest < 0.02)
    assert all(f"comes to {highest:.2g} of 0.02" in note and next(iter(warmup)) in note for note in notes)
