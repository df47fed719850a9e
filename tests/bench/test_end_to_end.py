"""What the way from files to boxes costs: sums, shares and order; and one real run of every arrangement."""

from __future__ import annotations

import pytest

from repq.bench import ServedModel, time_service
from repq.errors import RepqError
from repq.recipe import BenchConfig
from repq.results import ModelInfo


class Clock:
    """Time that moves only while a step works."""

    def __init__(self) -> None:
        self.now, self.log = 0, []

    def __call__(self) -> int:
        return self.now

    def step(self, name: str, milliseconds: float):
        def work(value):
            self.log.append((name, len(value)))
            self.now += round(1e6 * milliseconds * len(value))
            return value

        return work

    def model(self, label: str, *costs: float) -> ServedModel:
        names = ("decode", "preprocess", "infer", "postprocess")
        steps = (self.step(f"{label}:{name}", cost) for name, cost in zip(names, costs, strict=True))
        info = ModelInfo(model=label, engine="fake", variant="float32", precision="float32", size_bytes=None)
        return ServedModel(info, "opencv", "host", "host", *steps)


def test_every_step_is_timed_per_image() -> None:
    clock = Clock()
    config = BenchConfig(rounds=2)
    models = [clock.model("a", 4, 2, 10, 1), clock.model("b", 12, 0, 3, 0)]
    first, second = time_service(models, [b"file"] * 7, 2, 1, config, clock=clock)
    assert (first.decode_ms, first.preprocess_ms, first.infer_ms, first.postprocess_ms) == (4, 2, 10, 1)
    assert first.images == 6, "the last file fills no batch"
    assert first.images_per_s == pytest.approx(1e3 / 17)
    assert (first.bottleneck, second.bottleneck) == ("infer", "decode")
    assert second.bottleneck_share == pytest.approx(12 / 15)


def test_models_take_turns_in_both_directions() -> None:
    clock = Clock()
    models = [clock.model("a", 1, 1, 1, 1), clock.model("b", 1, 1, 1, 1)]
    time_service(models, [b"file"], 1, 1, BenchConfig(rounds=2), clock=clock)
    decoded = "".join(name[0] for name, _ in clock.log if name.endswith(":decode"))
    assert decoded == "ab" + "aabb" + "bbaa", "a first pass; in each round every model step by step, then overlapped"


def test_too_few_files() -> None:
    with pytest.raises(RepqError, match="a batch of 4"):
        time_service([Clock().model("a", 1, 1, 1, 1)], [b"file"] * 3, 4, 1, BenchConfig())
