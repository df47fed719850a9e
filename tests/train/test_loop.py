"""The loop on a tiny model and drawn images: it learns, resumes to the bit, and stops with a clear word."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from small_training import QUICK, SIZE, interrupted_after, same_weights, tiny_model

from repq.data import ImageCache
from repq.errors import TrainingError
from repq.model import build
from repq.recipe import LetterboxConfig, TrainConfig
from repq.train import Updater, optimizer, train
from repq.train import trainer as trainer_module
from repq.train.loader import loading_threads, training_batches
from repq.train.losses import ClassLoss
from repq.train.state import load_state


def test_resumes_to_the_same_bits(data, tmp_path: Path) -> None:
    train_set, val_set = data
    whole = train(tiny_model(), train_set, val_set, SIZE, QUICK)
    path = tmp_path / "state.safetensors"
    for steps in (7, 2):  # in the middle of epoch 3, then of what is then the first epoch
        with pytest.raises(KeyboardInterrupt):
            train(tiny_model(), train_set, val_set, SIZE, QUICK, state_path=path, progress=interrupted_after(steps))
    with pytest.raises(TrainingError, match="different start"):  # other initial weights are another training
        train(tiny_model(seed=1), train_set, val_set, SIZE, QUICK, state_path=path)
    with pytest.raises(TrainingError, match="different val_set"):
        train(tiny_model(), train_set, val_set.subset(val_set.records[1:]), SIZE, QUICK, state_path=path)
    left = 3 * (QUICK.epochs - 2)  # no more than what is left is done again
    resumed = train(tiny_model(), train_set, val_set, SIZE, QUICK, state_path=path, progress=interrupted_after(left))
    assert same_weights(whole, resumed)
    assert [row.losses for row in whole.report.epochs] == [row.losses for row in resumed.report.epochs]
    assert resumed.report.best_epoch == whole.report.best_epoch
    again = train(tiny_model(), train_set, val_set, SIZE, QUICK, state_path=path, progress=interrupted_after(0))
    assert same_weights(whole, again)


def test_a_stopped_training_leaves_no_thread_and_no_file_but_its_state(data, tmp_path: Path) -> None:
    config = QUICK.model_copy(update={"workers": 2, "batch": 2})
    before = set(threading.enumerate())
    for steps, left in ((1, []), (12, ["state.safetensors"])):
        state = tmp_path / f"after{steps}" / "state.safetensors"
        with pytest.raises(KeyboardInterrupt) as kept:  # the traceback lives on, and with it what it refers to
            train(tiny_model(), *data, SIZE, config, state_path=state, progress=interrupted_after(steps))
        assert set(threading.enumerate()) == before, kept
        assert state.parent.exists() == bool(left)
        assert left == ([path.name for path in state.parent.iterdir()] if left else [])


def test_one_training_at_a_time_writes_a_state(data, tmp_path: Path) -> None:
    state = tmp_path / "new" / "state.safetensors"
    refused = []

    def second_begins(items: Iterable, /, *, total: int | None = None, label: str = "") -> Iterator:
        for item in items:
            for changes in ({}, {"learning_rate": 0.5}):
                with pytest.raises(TrainingError, match="another training writes") as caught:
                    train(tiny_model(), *data, SIZE, QUICK.model_copy(update=changes), state_path=state)
                refused.append(str(caught.value))
            yield item

    one = QUICK.model_copy(update={"epochs": 1})
    train(tiny_model(), *data, SIZE, one, state_path=state, progress=second_begins)
    assert len(refused) == 2 * 3
    assert all(f"process {os.getpid()} on " in message for message in refused)
    assert [path.name for path in state.parent.iterdir()] == ["state.safetensors"]
    unwritable = tmp_path / "new" / "state.safetensors" / "state"
    with pytest.raises(TrainingError, match="cannot write the training state"):
        train(tiny_model(), *data, SIZE, one, state_path=unwritable)


def test_state_of_another_training_is_refused(data, tmp_path: Path) -> None:
    train_set, val_set = data
    path = tmp_path / "state.safetensors"
    short = QUICK.model_copy(update={"epochs": 1})
    train(tiny_model(), train_set, val_set, SIZE, short, state_path=path)
    changed = short.model_copy(update={"learning_rate": 0.5})
    with pytest.raises(TrainingError, match="learning_rate, seed"):
        train(tiny_model(), train_set, val_set, SIZE, changed, seed=3, state_path=path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(TrainingError, match="cannot resume"):
        train(tiny_model(), train_set, val_set, SIZE, short, state_path=path)


def test_learns_a_few_images(data) -> None:
    """Overfits: tested on the images it was trained on, without augmentation."""
    few = replace(data[0], records=data[0].records[:4])
    config = TrainConfig(
        epochs=120,
        batch=4,
        learning_rate=0.03,
        warmup_steps=10,
        eval_interval=120,
        workers=0,
        flip=0,
        hsv=(0, 0, 0),
        translate=0,
        scale=0,
        ema_decay=0.9,
        ema_ramp_steps=10,
    )
    outcome = train(tiny_model(), few, few, SIZE, config)
    losses = [row.losses["total"] for row in outcome.report.epochs]
    assert losses[-1] < 0.5 * losses[0]
    assert outcome.report.accuracy.ap50 > 0.5
    assert outcome.report.images_per_s > 0
    assert not outcome.model.training
    assert any(parameter.requires_grad for parameter in outcome.model.parameters())


def test_a_loss_that_is_not_finite_stops_with_step_and_part(data, tmp_path: Path, monkeypatch) -> None:
    train_set, val_set = data
    real = Updater.loss
    calls = 0

    def poisoned(*args, **kwargs):
        nonlocal calls
        calls += 1
        loss = real(*args, **kwargs)
        return replace(loss, sums={**loss.sums, "iou": loss.sums["iou"] * float("nan")}) if calls == 5 else loss

    monkeypatch.setattr(Updater, "loss", poisoned)
    path = tmp_path / "state.safetensors"
    with pytest.raises(TrainingError, match=r"step 5 \(epoch 2\)") as caught:
        train(tiny_model(), train_set, val_set, SIZE, QUICK, state_path=path)
    assert "iou = nan" in str(caught.value)
    assert "after epoch 1" in str(caught.value)
    monkeypatch.setattr(Updater, "loss", real)
    resumed = train(tiny_model(), train_set, val_set, SIZE, QUICK, state_path=path)
    assert same_weights(resumed, train(tiny_model(), train_set, val_set, SIZE, QUICK))


@pytest.mark.parametrize(
    "changes",
    [
        *({"learning_rate": 1e30, "class_loss": kind} for kind in get_args(ClassLoss)),
        {"learning_rate": 1e300},
        {"learning_rate": 1e30, "epochs": 1, "batch": 16, "warmup_steps": 0},  # nothing follows the step that does it
        {"learning_rate": 1e30, "optimizer": "adamw"},
        {"warmup_bias_learning_rate": 1e35},
        {"weight_decay": 1e30},
        {"weight_decay": 1e300},
        {"class_weight": 1e38},
        {"iou_weight": float("inf")},
        {"class_weights": (1e300, 1.0)},
    ],
    ids=str,
)
def test_settings_that_diverge_end_with_the_epoch_and_what_to_do(data, changes: dict) -> None:
    config = QUICK.model_copy(update={"epochs": 2, **changes})
    with pytest.raises(TrainingError, match=r"\(epoch [12]\)") as caught:
        train(tiny_model(), *data, SIZE, config)
    assert "learning_rate" in str(caught.value)


@pytest.mark.parametrize("imgsz", [(32, 32), (32, 64)])
@pytest.mark.parametrize(("images", "batch"), [(1, 4), (2, 1), (3, 2), (3, 1), (4, 2), (5, 4)])
@pytest.mark.parametrize("multi_scale", [(1.0, 1.0), (0.5, 1.5)])
def test_batch_norm_has_more_than_one_value_or_the_training_does_not_begin(
    data, imgsz: tuple[int, int], images: int, batch: int, multi_scale: tuple[float, float]
) -> None:
    few = data[0].subset(data[0].records[:images])
    config = QUICK.model_copy(update={"epochs": 1, "batch": batch, "multi_scale": multi_scale})
    one_cell = imgsz == (32, 32) or multi_scale[0] < 1  # on the coarsest map, of stride 32
    if one_cell and images // -(-images // batch) == 1:
        with pytest.raises(TrainingError, match="batch norm needs more than one value"):
            train(tiny_model(), few, data[1], imgsz, config)
    else:
        assert train(tiny_model(), few, data[1], imgsz, config).report.epochs


def test_fewer_images_than_a_batch_and_images_without_objects(data) -> None:
    train_set, val_set = data
    empty = replace(train_set.records[0], labels=np.zeros((0, 5), np.float32), areas=np.zeros(0, np.float32))
    few = replace(train_set, records=(empty, train_set.records[1], empty))
    config = QUICK.model_copy(update={"epochs": 2, "batch": 16})
    report = train(tiny_model(), few, val_set, SIZE, config).report
    assert len(report.epochs) == 2
    only_empty = replace(train_set, records=(empty, empty))
    report = train(tiny_model(), only_empty, val_set, SIZE, config).report
    assert report.epochs[-1].losses["iou"] == 0.0


@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_objects_of_one_pixel_and_as_large_as_the_image_train(data, mosaic: float) -> None:
    train_set, val_set = data
    point, whole = [0, 0.5, 0.5, 1 / 64, 1 / 64], [1, 0.5, 0.5, 1.0, 1.0]
    corner = [1, 1 - 0.5 / 64, 1 - 0.5 / 64, 1 / 64, 1 / 64]
    labels = np.array([point, whole, corner, point], np.float32)
    extreme = tuple(replace(record, labels=labels, areas=np.ones(4, np.float32)) for record in train_set.records)
    config = QUICK.model_copy(update={"epochs": 2, "mosaic": mosaic, "atss_epochs": 1})
    report = train(tiny_model(), replace(train_set, records=extreme), val_set, SIZE, config).report
    for row in report.epochs:
        assert all(np.isfinite(value) for value in row.losses.values())
        assert row.losses["iou"] > 0


def test_what_does_not_fit_is_refused(data) -> None:
    train_set, val_set = data
    with pytest.raises(TrainingError, match="multiples of 32"):
        train(tiny_model(), train_set, val_set, (64, 70), QUICK)
    with pytest.raises(TrainingError, match="no image"):
        train(tiny_model(), replace(train_set, records=()), val_set, SIZE, QUICK)
    with pytest.raises(TrainingError, match="3 classes in the model, 2 in the data set"):
        train(build("yolov6n_v2", 3), train_set, val_set, SIZE, QUICK)


def test_workers_change_nothing_and_every_image_comes_once(data) -> None:
    train_set, _ = data
    cache = ImageCache(train_set.records, SIZE, 1 << 24)
    config = QUICK.model_copy(update={"mosaic": 0.5})
    runs = []
    for workers in (0, 3):
        settings = config.model_copy(update={"workers": workers})
        runs.append(list(training_batches(cache, SIZE, settings, seed=1, epoch=2)))
    assert [len(batch.images) for batch in runs[0]] == [4, 3, 3]
    for first, second in zip(*runs, strict=True):
        assert (first.images == second.images).all()
        assert all((a == b).all() for a, b in zip(first.objects, second.objects, strict=True))
    other = next(training_batches(cache, SIZE, config, seed=1, epoch=3))
    assert (other.images != runs[0][0].images).any()


def test_loading_takes_the_cores_that_torch_leaves(monkeypatch) -> None:
    choice = QUICK.model_copy(update={"workers": None})
    assert loading_threads(QUICK, "cuda") == QUICK.workers, "what is asked for is done"
    torch.set_num_threads(2)
    for cores, on_cpu, on_cuda in ((2, 0, 1), (4, 2, 3), (64, 8, 8), (1, 0, 0)):
        monkeypatch.setattr("repq.train.loader.cpu_cores", lambda cores=cores: cores)
        assert (loading_threads(choice, "cpu"), loading_threads(choice, "cuda")) == (on_cpu, on_cuda)
    torch.set_num_threads(1)


def test_multi_scale_draws_sizes_that_fit_and_trains(data) -> None:
    config = QUICK.model_copy(update={"multi_scale": (0.5, 1.5), "letterbox": LetterboxConfig(border=2, inner_size=60)})
    cache = ImageCache(data[0].records, (96, 96), 1 << 24)
    sizes = set()
    for epoch in range(8):
        for batch in training_batches(cache, SIZE, config, seed=0, epoch=epoch):
            sizes.add(batch.images.shape[1:3])
            assert all((rows[:, 1:] <= batch.images.shape[1]).all() for rows in batch.objects)
    assert sizes == {(32, 32), (64, 64), (96, 96)}
    assert len(train(tiny_model(), *data, SIZE, config.model_copy(update={"epochs": 2})).report.epochs) == 2


def test_stops_early_when_nothing_gets_better(data, monkeypatch, tmp_path: Path) -> None:
    accuracies = iter([0.1, 0.3, 0.2, 0.29, 0.1, 0.9])
    real = trainer_module.evaluate_together

    def scripted(*args):
        return real(*args).model_copy(update={"ap": next(accuracies)})

    monkeypatch.setattr(trainer_module, "evaluate_together", scripted)
    config = QUICK.model_copy(update={"epochs": 6, "eval_interval": 1, "patience": 2})
    path = tmp_path / "state.safetensors"
    report = train(tiny_model(), *data, SIZE, config, state_path=path).report
    assert (len(report.epochs), report.best_epoch) == (4, 2)
    assert len(train(tiny_model(), *data, SIZE, config, state_path=path).report.epochs) == 4  # done is done


def test_every_option_at_once_resumes_to_the_same_bits(data, tmp_path: Path) -> None:
    config = TrainConfig(
        epochs=2,
        batch=3,
        warmup_steps=2,
        workers=0,
        eval_interval=1,
        optimizer="adamw",
        learning_rate=0.002,
        assigner="simota",
        atss_epochs=1,
        class_loss="poly",
        iou_loss="ciou",
        l1_weight=0.5,
        class_weights=(1.0, 2.0),
        balance=0.5,
        flip_vertical=0.5,
        rotate=5,
        shear=2,
        mosaic=0.5,
        mixup=0.5,
        mosaic_off_epochs=1,
        multi_scale=0.5,
        max_grad_norm=10.0,
    )
    whole = train(tiny_model(), *data, SIZE, config)
    path = tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(tiny_model(), *data, SIZE, config, state_path=path, progress=interrupted_after(6))
    assert same_weights(whole, train(tiny_model(), *data, SIZE, config, state_path=path))


def test_a_factor_for_every_class(data) -> None:
    with pytest.raises(TrainingError, match="1 factors for 2 classes"):
        train(tiny_model(), *data, SIZE, QUICK.model_copy(update={"class_weights": (1.0,)}))


@pytest.mark.parametrize("style", ["qarepvgg", "qarepvggv2", "hyper_search"])
def test_other_blocks_train(data, style: str) -> None:
    config = QUICK.model_copy(update={"epochs": 3, "learning_rate": 0.02})
    rows = train(tiny_model(style=style), *data, SIZE, config).report.epochs
    assert rows[-1].losses["total"] < rows[0].losses["total"]


def test_accumulation_makes_fewer_updates_and_resumes_to_the_same_bits(data, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(optimizer, "LEAST_UPDATES", 4)
    config = QUICK.model_copy(update={"nominal_batch": 8})  # 3 batches an epoch: updates of 2 and of 1
    path = tmp_path / "state.safetensors"
    whole = train(tiny_model(), *data, SIZE, config, state_path=path)
    assert load_state(path)[0].average_updates == 2 * config.epochs
    path.unlink()
    with pytest.raises(KeyboardInterrupt):
        train(tiny_model(), *data, SIZE, config, state_path=path, progress=interrupted_after(8))
    assert same_weights(whole, train(tiny_model(), *data, SIZE, config, state_path=path))
