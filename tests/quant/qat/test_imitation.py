"""Imitation costs nothing for the teacher itself, and adds up over images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_qat import float_model, images, training_answer
from small_training import SIZE
from torch.distributions import Categorical, kl_divergence

from repq.model import TrainOutput
from repq.recipe import DistillConfig
from repq.train import Teacher, anchor_grid, objective_of
from repq.train.distill import SEEN, channel_divergence
from repq.train.losses import iou_loss

CONFIG = DistillConfig(
    teacher=Path("teacher.pt"), class_weight=1, box_weight=3, feature_weight=2, temperature=2, answer_temperature=2
)
GRID = anchor_grid([(8, 8), (4, 4), (2, 2)], (8, 16, 32), torch.device("cpu"))
DFL = {"use_dfl": True, "reg_max": 16}


def of_images(output: TrainOutput, part: slice) -> TrainOutput:
    return TrainOutput(tuple(maps[part] for maps in output.features), output.scores[part], output.distances[part])


@pytest.fixture(params=[{}, DFL], ids=["numbers", "dfl"])
def answers(request: pytest.FixtureRequest) -> tuple[TrainOutput, TrainOutput, Teacher]:
    with torch.no_grad():
        own, taught = (training_answer(float_model(seed, **request.param), images(4)) for seed in (1, 0))
    assert (taught.scores.amax(-1) > SEEN).float().mean() > 0.05
    return own, taught, Teacher(float_model(0, **request.param), float_model(1, **request.param), CONFIG)


def test_it_is_zero_for_the_teacher_and_positive_for_others(answers) -> None:
    own, taught, teacher = answers
    same, other = (teacher.loss(output, taught, SIZE, 0.0) for output in (taught, own))
    assert list(other.sums) == ["distill_features", "distill_class", "distill_box"]
    for name in other.sums:
        assert other.part(name) > 0.005
        assert same.part(name).abs() < 1e-4 * other.part(name)


def test_images_add_up(answers) -> None:
    own, taught, teacher = answers
    whole = teacher.loss(own, taught, SIZE, 0.5)
    parts = [
        teacher.loss(of_images(own, part), of_images(taught, part), SIZE, 0.5) for part in (slice(0, 1), slice(1, 4))
    ]
    for name, value in whole.sums.items():
        torch.testing.assert_close(parts[0].sums[name] + parts[1].sums[name], value)
    torch.testing.assert_close(parts[0].target_score + parts[1].target_score, whole.target_score)


def test_where_the_teacher_sees_nothing_boxes_do_not_count(answers) -> None:
    own, taught, teacher = answers
    blind = taught._replace(scores=taught.scores * 0)
    loss = teacher.loss(own, blind, SIZE, 0.0)
    assert loss.sums["distill_box"] == 0
    assert loss.target_score == len(blind.scores)
    assert torch.isfinite(loss.total)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_channel_divergence_is_torchs_own_over_positions(temperature: float) -> None:
    rng = torch.Generator().manual_seed(0)
    own, taught = torch.randn(3, 5, 4, 6, generator=rng), torch.randn(3, 5, 4, 6, generator=rng)
    p, q = (Categorical(logits=maps.flatten(2) / temperature) for maps in (taught, own))
    expected = kl_divergence(p, q).mean(1) * temperature**2
    torch.testing.assert_close(channel_divergence(own, taught, temperature), expected, rtol=1e-4, atol=1e-6)
    # What a channel adds everywhere says nothing about where it looks.
    shifted = taught + torch.randn(3, 5, 1, 1, generator=rng)
    assert channel_divergence(shifted, taught, temperature).abs().max() < 1e-5


def test_boxes_that_drift_apart_cost_more() -> None:
    objective = objective_of(float_model())
    seen = torch.zeros(1, 84, dtype=torch.bool)
    seen[:, 36] = True
    taught = torch.full((1, 84, 4), 2.0)
    costs = [
        iou_loss(
            objective.corners(taught + drift * torch.tensor([1.0, 1.0, -1.0, -1.0]), seen, GRID),
            objective.corners(taught, seen, GRID),
            "giou",
        )
        for drift in (0.0, 0.5, 1.0, 8.0)
    ]
    assert costs[0].abs() < 1e-6
    assert (torch.cat(costs).diff() > 0).all()
