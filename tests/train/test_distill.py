"""Divergences are zero for the teacher itself, and the loop learns from a teacher that stays as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_training import QUICK, SIZE, interrupted_after, same_weights, tiny_model

from repq.errors import TrainingError
from repq.identity import hash_tensors
from repq.recipe import DistillConfig
from repq.train import Teacher, train
from repq.train.distill import class_divergence, decayed, side_divergence

DISTILL = DistillConfig(teacher=Path("teacher.pt"))
CONFIG = QUICK.model_copy(update={"epochs": 2, "distill": DISTILL})


def dfl_model(seed: int = 0):
    return tiny_model(seed, use_dfl=True, reg_max=16)


def test_divergences_are_zero_at_the_teacher_and_positive_elsewhere() -> None:
    rng = torch.Generator().manual_seed(0)
    scores, other = torch.rand(2, 30, 4, generator=rng), torch.rand(2, 30, 4, generator=rng)
    assert class_divergence(scores, scores).item() == pytest.approx(0, abs=1e-5)
    assert class_divergence(other, scores) > 1
    expected = torch.distributions.kl_divergence(
        torch.distributions.Bernoulli(scores), torch.distributions.Bernoulli(other)
    )
    assert class_divergence(other, scores).item() == pytest.approx(expected.sum().item(), rel=1e-4)
    logits, taught = torch.randn(9, 4, 17, generator=rng), torch.randn(9, 4, 17, generator=rng)
    assert side_divergence(taught + 3, taught).abs().max() < 1e-5
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=taught), torch.distributions.Categorical(logits=logits)
    )
    torch.testing.assert_close(side_divergence(logits, taught), expected.mean(-1), rtol=1e-4, atol=1e-6)


def test_saturated_scores_stay_finite() -> None:
    scores = torch.tensor([[[0.0, 1.0]]], requires_grad=True)
    class_divergence(scores, torch.tensor([[[1.0, 0.0]]])).backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


def test_the_weight_falls_with_a_cosine() -> None:
    weights = [decayed(0.1, step / 10) for step in range(11)]
    assert (weights[0], weights[5], weights[10]) == pytest.approx((1, 0.55, 0.1))
    assert weights == sorted(weights, reverse=True)


def test_a_teacher_answers_as_it_would_in_evaluation() -> None:
    teacher, images = dfl_model(1), torch.rand(2, 3, 64, 64)
    detections = teacher.eval()(images)
    before = hash_tensors(teacher.state_dict())
    answer = Teacher(teacher, dfl_model(), DISTILL).answer(images, 0.0)
    torch.testing.assert_close(answer.scores, detections[..., 5:])
    assert answer.distances.shape[-1] == 4 * 17
    assert hash_tensors(teacher.state_dict()) == before


@pytest.mark.parametrize("dfl", [True, False])
def test_training_learns_from_the_teacher_and_resumes(data, dfl: bool, tmp_path: Path) -> None:
    make = dfl_model if dfl else tiny_model
    whole = train(make(), *data, SIZE, CONFIG, teacher=make(1))
    names = set(whole.report.epochs[0].losses)
    assert names == {"class", "iou", "distill_class", "total"} | ({"dfl", "distill_dfl"} if dfl else set())
    path = tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(make(), *data, SIZE, CONFIG, teacher=make(1), state_path=path, progress=interrupted_after(4))
    with pytest.raises(TrainingError, match="different teacher"):
        train(make(), *data, SIZE, CONFIG, teacher=make(2), state_path=path)
    assert same_weights(whole, train(make(), *data, SIZE, CONFIG, teacher=make(1), state_path=path))


def test_a_teacher_of_another_kind_is_refused(data) -> None:
    with pytest.raises(TrainingError, match="do not compare"):
        train(tiny_model(), *data, SIZE, CONFIG, teacher=dfl_model())
    with pytest.raises(TrainingError, match="distill is set"):
        train(tiny_model(), *data, SIZE, CONFIG)
