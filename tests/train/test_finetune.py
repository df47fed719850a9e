"""Weights that fit are taken over, the rest is fresh and said to be."""

from __future__ import annotations

import pytest
import torch
from small_training import QUICK, SIZE, tiny_model

from repq.errors import TrainingError
from repq.reparam import fuse
from repq.train import fine_tuned, train


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
