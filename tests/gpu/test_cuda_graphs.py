"""Recorded passes compute what passes launched kernel by kernel do."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from small_training import QUICK, tiny_model
from torch import Tensor

from repq.data import ImageCache, load_dataset
from repq.model import Detector
from repq.train import Rates, Updater
from repq.train.cuda_graphs import MOST_GRAPHS, Answers
from repq.train.loader import TrainBatch, training_batches
from repq.train.precision import computing_in
from repq.train.trainer import moved

SIZE = (64, 64)
CUDA = torch.device("cuda")
RATES = Rates(0.01, 0.01, 0.9)


@pytest.fixture(autouse=True)
def _repeatable() -> Iterator[None]:
    torch.backends.cudnn.allow_tf32 = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def batches(demo) -> list[TrainBatch]:
    cache = ImageCache(load_dataset(demo, "train").records, SIZE, 1 << 24)
    return [
        batch for epoch in range(2) for batch in training_batches(cache, SIZE, QUICK, seed=0, epoch=epoch)
    ]  # fmt: skip


def trained(batches: list[TrainBatch], precision: str, *, graphs: bool, together: int, name: str) -> Updater:
    config = QUICK.model_copy(update={"precision": precision, "cuda_graphs": graphs})
    updater = Updater(moved(tiny_model(name=name, classes=3), CUDA).train(), config, CUDA)
    for start in range(0, len(batches), together):
        updater.update(batches[start : start + together], RATES)
    return updater


@pytest.mark.parametrize("name", ["yolov6n_v2", "yolov6n_v2_hs", "yolov6n_v2_opt"])
@pytest.mark.parametrize("together", [1, 2])
@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_updates_are_the_same(batches: list[TrainBatch], precision: str, together: int, name: str) -> None:
    own, other = (trained(batches, precision, graphs=graphs, together=together, name=name) for graphs in (True, False))
    assert own.answer._recorded and not other.answer._recorded
    wanted = other.model.state_dict()
    for entry, value in own.model.state_dict().items():
        torch.testing.assert_close(
            value, wanted[entry], rtol=1e-3, atol=1e-4, msg=lambda text, entry=entry: entry + text
        )


def inputs(count: int, size: int = 64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(2, 3, size, size, generator=generator).to(CUDA) for _ in range(count)]


def test_a_frozen_model_answers_the_same() -> None:
    model = moved(tiny_model(classes=3).eval(), CUDA).requires_grad_(False)
    answers = Answers(model, CUDA, frozen=True)
    for pixels in inputs(6):
        with torch.no_grad():
            found, wanted = answers(pixels), model.answer(model.features(pixels))
        torch.testing.assert_close(found.scores, wanted.scores)
        torch.testing.assert_close(found.features, wanted.features)
    assert answers._recorded


def test_recording_changes_no_statistics() -> None:
    own, other = (moved(tiny_model(classes=3), CUDA).train() for _ in range(2))
    answers = Answers(own, CUDA)
    for pixels in inputs(5):
        answers(pixels)
        other.answer(other.features(pixels))
    assert answers._recorded
    for name, value in other.state_dict().items():
        torch.testing.assert_close(own.state_dict()[name], value, msg=lambda text, name=name: name + text)


class Waiting(torch.nn.Module):
    """Waits for the device, which no recording may do."""

    def __init__(self, model: Detector) -> None:
        super().__init__()
        self.model = model

    def features(self, pixels: Tensor) -> tuple[Tensor, ...]:
        maps = self.model.features(pixels)
        return tuple(part + part.sum().item() * 0 for part in maps)

    def answer(self, maps: tuple[Tensor, ...]):
        return self.model.answer(maps)


def test_what_cannot_be_recorded_is_launched_kernel_by_kernel() -> None:
    model = moved(tiny_model(classes=3), CUDA).train()
    other = copy.deepcopy(model)
    answers = Answers(Waiting(model), CUDA)  # type: ignore[arg-type]
    for pixels in inputs(5):
        found, wanted = answers(pixels).scores, other.answer(other.features(pixels)).scores
        torch.testing.assert_close(found, wanted)
        found.sum().backward()
        wanted.sum().backward()
    assert not answers.graphs
    for (name, own), parameter in zip(model.named_parameters(), other.parameters(), strict=True):
        if parameter.grad is not None:
            torch.testing.assert_close(own.grad, parameter.grad, msg=lambda text, name=name: name + text)


def test_sizes_beyond_the_most_are_launched_kernel_by_kernel() -> None:
    model = moved(tiny_model(classes=3).eval(), CUDA).requires_grad_(False)
    answers = Answers(model, CUDA, frozen=True)
    for size in range(32, 32 * (MOST_GRAPHS + 3), 32):
        for pixels in inputs(3, size):
            with torch.no_grad(), computing_in("float16", model, CUDA):
                assert answers(pixels).scores.isfinite().all()
    assert len(answers._recorded) == MOST_GRAPHS
