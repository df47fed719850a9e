"""What `quantize_within` tries where the target loses too much, and what it leaves behind."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from repq.engine.openvino import OpenVino
from repq.log import Log
from repq.progress import Progress
from repq.recipe import EvalConfig, PlanConfig, PtqConfig
from repq.results import Accuracy, PlanReport, PtqReport
from repq.stages.budget import Held, PtqJob, quantize_within
from repq.stages.sensitivity import PLAN

RANGES = ("full", "reduced")


def accuracy(ap: float) -> Accuracy:
    none = dict.fromkeys(("ap_small", "ap_medium", "ap_large"))
    return Accuracy(ap=ap, ap50=ap, ap75=ap, **none, per_class=(), images=1, objects=1, detections=1)


@dataclass(frozen=True)
class Known(PtqJob):
    """A job whose AP in the target is known, with the full and with a reduced range; it writes which one it had."""

    aps: tuple[float, float] = (0.3, 0.4)  # FP32 has 0.4

    def run(self, out: Path, progress: Progress, log: Log) -> Held:
        out.write_text(RANGES[self.config.reduce_range])
        report = PtqReport(
            model="m", scheme="asymmetric", method="max", images=1, int8_macs_share=1.0, layers=(),
            accuracy_float=accuracy(0.4), accuracy_quantized=accuracy(0.4),
        )  # fmt: skip
        return Held(report, self.aps[self.config.reduce_range], self.target or "the simulation", planned=False)


def job(tmp_path: Path, config: PtqConfig, aps: tuple[float, float]) -> Known:
    return Known(
        tmp_path / "w.pt", config, tmp_path / "data.yaml", "val", (64, 64), EvalConfig(), target="openvino", aps=aps
    )


@pytest.mark.parametrize("saturates", [False, True])
def test_a_reduced_range_is_tried_where_sums_saturate_alone(
    saturates: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OpenVino, "saturation", lambda self: "they do" if saturates else None)
    asked: list[PtqConfig] = []

    def no_more(_weights: Path, _out: Path, _s: object, _p: object, config: PtqConfig, **_rest: object) -> None:
        asked.append(config)
        raise LookupError("layers are measured")

    monkeypatch.setattr("repq.stages.budget.measure_sensitivity", no_more)
    out = tmp_path / "out"
    cured = job(tmp_path, PtqConfig(), (0.3, 0.399))
    if saturates:
        assert quantize_within(cured, out, 0.005).ap == 0.399
        assert out.read_text() == "reduced"
    else:
        with pytest.raises(LookupError):
            quantize_within(cured, out, 0.005)
        assert out.read_text() == "full"
    asked.clear()
    for aps, better in (((0.3, 0.35), True), ((0.3, 0.29), False)):
        with pytest.raises(LookupError):
            quantize_within(replace(cured, aps=aps), out, 0.005)
        wanted = better and saturates
        assert (out.read_text(), asked.pop().reduce_range) == (RANGES[wanted], wanted)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert quantize_within(replace(cured, config=PtqConfig(auto=False)), out, 0.005).ap == 0.3
    assert quantize_within(replace(cured, aps=(0.399, 0.4)), out, 0.005).ap == 0.399


@dataclass(frozen=True)
class Planned(Known):
    """What it loses depends on the plan alone; it writes which one it had."""

    def run(self, out: Path, progress: Progress, log: Log) -> Held:
        held = super().run(out, progress, log)
        kept = "whole" if self.plan is None else self.plan.read_text()
        out.write_text(kept)
        return replace(held, ap=0.3 if kept == "whole" else self.aps[kept == "8 layers"], planned=self.plan is not None)


@pytest.mark.parametrize(
    ("found", "aps", "left"),
    [
        (0, (0.0, 0.38), "8 layers"),  # train images hold the budget with every layer in INT8
        (2, (0.38, 0.39), "8 layers"),
        (2, (0.39, 0.38), "2 layers"),
        (2, (0.398, 0.4), "2 layers"),  # it is good enough
        (2, (0.2, 0.25), "whole"),
    ],
)
def test_of_the_plans_the_one_that_loses_least_stays(
    found: int, aps: tuple[float, float], left: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(_weights: Path, folder: Path, _s: object, plan: PlanConfig, *_: object, **_rest: object) -> object:
        kept = found if plan.top is None else plan.top
        folder.mkdir(exist_ok=True)
        (folder / PLAN).write_text(f"{kept} layers")
        return None, PlanReport(measure="local.snr", float_layers=tuple(map(str, range(kept))), int8_macs_share=1.0)

    monkeypatch.setattr(OpenVino, "saturation", lambda self: None)
    monkeypatch.setattr("repq.stages.budget.measure_sensitivity", measured)
    start, out = job(tmp_path, PtqConfig(), aps), tmp_path / "out"
    held = quantize_within(Planned(**vars(start)), out, 0.005)
    assert out.read_text() == left and held.planned
    assert held.ap == {"whole": 0.3, "8 layers": aps[1]}.get(left, aps[0])
