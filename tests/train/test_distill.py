"""Divergences are zero for the teacher itself, any detector may teach, and the loop learns from one that stays."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from small_training import QUICK, SIZE, interrupted_after, same_weights, tiny_model

from repq.data import class_places
from repq.errors import DataError, TrainingError
from repq.identity import hash_tensors
from repq.model import Detector, build
from repq.model.detector import layers_of
from repq.recipe import DistillConfig, TrainConfig
from repq.reparam import fuse
from repq.train import Objective, Teacher, objective_of, train
from repq.train.boxes import grid_of
from repq.train.distill import class_divergence, decayed, map_error, side_divergence

DISTILL = DistillConfig(teacher=Path("teacher.pt"))
CONFIG = QUICK.model_copy(update={"epochs": 2, "distill": DISTILL})
BY_MAPS = DISTILL.model_copy(update={"projector_weight": 1.0, "feature_weight": 1.0})


def dfl_model(seed: int = 0) -> Detector:
    return tiny_model(seed, use_dfl=True, reg_max=16)


def wide_model(seed: int = 1) -> Detector:
    """With other widths than `tiny_model`, and distributions of sides."""
    spec = replace(dfl_model().spec, top_down_channels=(24, 24), bottom_up_channels=(24, 40))
    torch.manual_seed(seed)
    return build(spec)


def lively(model: Detector, seed: int = 3) -> Detector:
    """The fused form, with scores and boxes that differ from place to place."""
    model, rng = fuse(model.eval()), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, layer in layers_of(model):
            layer.weight.normal_(0, (2 / layer.weight[0].numel()) ** 0.5, generator=rng)
            layer.bias.zero_()
    return model.eval()


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_divergences_are_zero_at_the_teacher_and_positive_elsewhere(temperature: float) -> None:
    rng = torch.Generator().manual_seed(0)
    scores, other = (torch.rand(2, 30, 4, generator=rng) * 0.98 + 0.01 for _ in range(2))
    assert class_divergence(scores, scores, temperature).item() == pytest.approx(0, abs=1e-4)
    assert class_divergence(other, scores, temperature) > 1
    expected = torch.distributions.kl_divergence(
        *(torch.distributions.Bernoulli(logits=values.logit() / temperature) for values in (scores, other))
    )
    found = class_divergence(other, scores, temperature).item()
    assert found == pytest.approx(temperature**2 * expected.sum().item(), rel=1e-4)
    logits, taught = torch.randn(9, 4, 17, generator=rng), torch.randn(9, 4, 17, generator=rng)
    assert side_divergence(taught + 3, taught, temperature).abs().max() < 1e-5
    expected = torch.distributions.kl_divergence(
        *(torch.distributions.Categorical(logits=values / temperature) for values in (taught, logits))
    )
    torch.testing.assert_close(
        side_divergence(logits, taught, temperature), temperature**2 * expected.mean(-1), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("temperature", [1e-6, 0.1, 0.5, 1.0, 2.0, 1000.0])
def test_saturated_scores_stay_finite(temperature: float) -> None:
    scores = torch.tensor([[[0.0, 1.0, 0.9999, 1e-5, 0.5, 1.0]]], requires_grad=True)
    divergence = class_divergence(scores, torch.tensor([[[1.0, 0.0, 1.0, 0.0, 1.0, 1.0]]]), temperature)
    divergence.backward()
    assert divergence.isfinite() and divergence >= 0
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


def test_the_weight_falls_with_a_cosine() -> None:
    weights = [decayed(0.1, step / 10) for step in range(11)]
    assert (weights[0], weights[5], weights[10]) == pytest.approx((1, 0.55, 0.1))
    assert weights == sorted(weights, reverse=True)


def test_a_map_counts_where_the_weights_are() -> None:
    rng = torch.Generator().manual_seed(0)
    own, taught = torch.randn(2, 3, 4, 5, generator=rng), torch.randn(2, 3, 4, 5, generator=rng)
    weights = torch.zeros(2, 4, 5)
    weights[0, 1, 2] = 0.5
    error = map_error(own, taught, weights)
    expected = 0.5 * (own - taught)[0, :, 1, 2].square().mean()
    torch.testing.assert_close(error, torch.stack([expected, torch.zeros(())]))


def test_a_teacher_answers_as_it_would_in_evaluation() -> None:
    teacher, images = dfl_model(1), torch.rand(2, 3, 64, 64)
    detections = teacher.eval()(images)
    before = hash_tensors(teacher.state_dict())
    answer = Teacher(teacher, dfl_model(), DISTILL).answer(images)
    torch.testing.assert_close(answer.scores, detections[..., 5:])
    assert answer.distances.shape[-1] == 4 * 17
    assert hash_tensors(teacher.state_dict()) == before


@pytest.mark.parametrize("make", [dfl_model, tiny_model, lambda: build("yolox_nano", 2)])
def test_boxes_of_any_family_compare_as_corners(make: Callable[[], Detector]) -> None:
    model = lively(make())
    answer = model.answer(model.features(torch.rand(2, 3, *SIZE)))
    seen, grid = torch.rand(2, 84) < 0.5, grid_of(SIZE, model.spec.strides, torch.device("cpu"))
    expected = Detector.answer(model, answer.features)
    torch.testing.assert_close(
        objective_of(model).corners(answer.distances, seen, grid), expected.distances[seen], rtol=1e-4, atol=1e-2
    )


def test_a_teacher_of_the_same_answers_and_other_form_has_nothing_to_teach() -> None:
    model, images = lively(dfl_model()), torch.rand(2, 3, *SIZE)
    own = model.answer(model.features(images))
    corners, other = (Teacher(taught, model, DISTILL) for taught in (lively(dfl_model()), lively(wide_model())))
    corners.objectives = corners.objectives[0], Objective(model, TrainConfig())  # as of a graph
    same = corners.loss(own, Detector.answer(model, own.features), SIZE, 0.0)
    apart = other.loss(own, other.answer(images), SIZE, 0.0)
    for name in ("distill_class", "distill_box"):
        assert same.part(name).abs() < 1e-4 < 1e-2 < apart.part(name)


def test_levels_that_only_the_teacher_has_do_not_count() -> None:
    teacher, student = lively(build("yolov6n6", 2)), lively(tiny_model())
    images = torch.rand(1, 3, 64, 64)
    tutor = Teacher(teacher, student, DISTILL)
    own, taught = student.answer(student.features(images)), tutor.answer(images)
    assert taught.scores.shape[1] == own.scores.shape[1] + 1
    changed = taught.scores.clone()
    changed[:, -1] = 0.9
    first, second = (tutor.loss(own, said, SIZE, 0.0) for said in (taught, taught._replace(scores=changed)))
    assert first.total == second.total
    changed[:, 0] = 0.9
    assert tutor.loss(own, taught._replace(scores=changed), SIZE, 0.0).total != first.total


def test_a_teacher_of_more_classes_is_asked_about_the_students() -> None:
    names = ("person", "cat", "bus")
    places = class_places(("bus", "person"), names, "the teacher")
    assert places == (2, 0)
    teacher, images = lively(tiny_model(1, classes=3)), torch.rand(1, 3, 64, 64)
    answer = Teacher(teacher, tiny_model(), DISTILL, classes=places).answer(images)
    torch.testing.assert_close(answer.scores, teacher(images)[..., [7, 5]])
    assert class_places(names, names, "") is class_places(names, None, "") is None
    assert class_places(names, ("class0", "class1", "class2"), "") is None
    with pytest.raises(DataError, match="does not know every class") as caught:
        class_places(("bus", "dog"), names, "the teacher")
    assert all(repr(name) in str(caught.value) for name in ("dog", "bus", *names))


@pytest.mark.parametrize("dfl", [True, False])
def test_training_learns_from_the_teacher_and_resumes(data, dfl: bool, tmp_path: Path) -> None:
    make = dfl_model if dfl else tiny_model
    whole = train(make(), *data, SIZE, CONFIG, teacher=make(1))
    names = set(whole.report.epochs[0].losses)
    assert names == {"class", "iou", "distill_class", "distill_box", "total"} | ({"dfl"} if dfl else set())
    path = tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(make(), *data, SIZE, CONFIG, teacher=make(1), state_path=path, progress=interrupted_after(4))
    with pytest.raises(TrainingError, match="different teacher"):
        train(make(), *data, SIZE, CONFIG, teacher=make(2), state_path=path)
    assert same_weights(whole, train(make(), *data, SIZE, CONFIG, teacher=make(1), state_path=path))


def test_projectors_learn_along_resume_and_are_thrown_away(data, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"distill": BY_MAPS})
    whole = train(tiny_model(), *data, SIZE, config, teacher=lively(wide_model()))
    assert {"distill_features", "distill_projected"} < set(whole.report.epochs[0].losses)
    path = tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(
            tiny_model(),
            *data,
            SIZE,
            config,
            teacher=lively(wide_model()),
            state_path=path,
            progress=interrupted_after(4),
        )
    assert same_weights(whole, train(tiny_model(), *data, SIZE, config, teacher=lively(wide_model()), state_path=path))
    assert set(whole.model.state_dict()) == set(tiny_model().state_dict())
    first = Teacher(lively(wide_model()), tiny_model(), BY_MAPS).projectors
    assert first is not None
    with safe_open(path, framework="pt") as file:
        saved = {name.partition("/")[2]: file.get_tensor(name) for name in file.keys() if name.startswith("projectors")}  # noqa: SIM118
    assert saved.keys() == first.state_dict().keys()
    assert not any(torch.equal(saved[name], value) for name, value in first.state_dict().items())
    row = whole.report.epochs[0]
    assert row.teacher_seconds is not None
    assert 0 < row.teacher_seconds < row.seconds


def test_without_weight_a_teacher_changes_nothing(data) -> None:
    idle = DISTILL.model_copy(update={"class_weight": 0.0, "box_weight": 0.0})
    plain = train(tiny_model(), *data, SIZE, CONFIG.model_copy(update={"distill": None}))
    taught = train(tiny_model(), *data, SIZE, CONFIG.model_copy(update={"distill": idle}), teacher=lively(wide_model()))
    assert same_weights(plain, taught)
    assert [row.losses for row in plain.report.epochs] == [row.losses for row in taught.report.epochs]
    assert taught.report.epochs[0].teacher_seconds is None


@pytest.mark.parametrize("name", ["yolox_nano", "yolov6lite_s"])
def test_another_family_teaches_through_its_own_preprocessing(data, name: str) -> None:
    teacher = lively(build(name, 2))
    config = CONFIG.model_copy(update={"epochs": 1, "distill": BY_MAPS})
    losses = train(tiny_model(), *data, SIZE, config, teacher=teacher).report.epochs[0].losses
    assert all(math.isfinite(value) and value > 0 for part, value in losses.items() if part.startswith("distill"))


def test_a_teacher_that_does_not_fit_is_refused(data) -> None:
    with pytest.raises(TrainingError, match="3 classes in the teacher, 2 in the student"):
        train(tiny_model(), *data, SIZE, CONFIG, teacher=tiny_model(classes=3))
    with pytest.raises(TrainingError, match="distill is set"):
        train(tiny_model(), *data, SIZE, CONFIG)
    coarse = replace(build("yolov6n6", 2).spec, strides=(128,))
    other = tiny_model()
    other.spec = coarse
    with pytest.raises(TrainingError, match="no level of the student"):
        Teacher(other, tiny_model(), DISTILL)
    drawn = CONFIG.model_copy(update={"multi_scale": (0.5, 1.5)})
    with pytest.raises(TrainingError, match="coarsest stride 64"):
        train(tiny_model(), *data, SIZE, drawn, teacher=build("yolov6n6", 2))
