"""Weights that fit are taken over, the rest is fresh and said to be."""

from __future__ import annotations

import pytest
import torch
from small_training import QUICK, SIZE, tiny_model

from repq.errors import TrainingError
from repq.model import build
from repq.recipe import TrainConfig
from repq.reparam import fuse
from repq.train import fine_tuned, settings_for, train


def test_same_classes_lose_nothing() -> None:
    trained = tiny_model()
    result = fine_tuned(trained, 2)
    assert result.notes == ()
    assert result.model is not trained
    for name, value in trained.state_dict().items():
        assert torch.equal(value, result.model.state_dict()[name])


def test_other_classes_renew_the_class_predictions_alone(data) -> None:
    trained = tiny_model(classes=5)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.01)
    result = fine_tuned(trained, 2)
    assert result.model.spec.num_classes == 2
    assert len(result.notes) == 1
    assert "5 classes in the checkpoint, 2 in the data set" in result.notes[0]
    for name, value in result.model.state_dict().items():
        is_class = name.startswith("detect.cls_preds")
        assert is_class or torch.equal(value, trained.state_dict()[name])
    bias = result.model.detect.cls_preds[0].bias  # type: ignore[index, union-attr]
    assert bias.sigmoid().tolist() == pytest.approx([0.01, 0.01])  # type: ignore[union-attr]
    report = train(result.model, *data, SIZE, QUICK.model_copy(update={"epochs": 1})).report
    assert len(report.epochs) == 1


def test_a_fused_model_is_no_start() -> None:
    with pytest.raises(TrainingError, match="fused"):
        fine_tuned(fuse(tiny_model()), 2)


def test_settings_are_those_of_the_weights_unless_given() -> None:
    nano = build("yolox_nano", 3)
    found = settings_for(TrainConfig(epochs=60, batch=8), nano)
    assert (found.model, found.assigner, found.epochs, found.batch) == ("yolox_nano", "simota", 60, 8)
    assert settings_for(TrainConfig(model="yolox_nano_relu"), nano).model == "yolox_nano_relu"
    with pytest.raises(TrainingError, match="none of yolov6s"):
        settings_for(TrainConfig(model="yolov6s"), nano)


def test_another_activation_takes_the_weights() -> None:
    nano = build("yolox_nano", 3)
    found = fine_tuned(nano, 2, TrainConfig(model="yolox_nano_relu")).model
    assert (found.spec.activation, found.spec.num_classes) == ("relu", 2)
    assert torch.equal(found.head.reg_preds[0].weight, nano.head.reg_preds[0].weight)
    with pytest.raises(TrainingError, match="differs in"):
        fine_tuned(nano, 2, TrainConfig(model="yolox_tiny"))
