"""What `quantize_within` tries where the target loses too much, and what it leaves behind."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repq.engine.openvino import OpenVino
from repq.errors import EngineError
from repq.recipe import EngineName, PlanConfig, PtqConfig
from repq.results import Accuracy, PlanReport, PtqReport
from repq.stages import Context
from repq.stages.budget import SCATTER, SHARES, SIMULATION, Held, PtqJob, gain_for, judges, quantize_within
from repq.stages.sensitivity import PLAN

RANGES = ("full", "reduced")


def accuracy(ap: float) -> Accuracy:
    none = dict.fromkeys(("ap_small", "ap_medium", "ap_large"))
    return Accuracy(ap=ap, ap50=ap, ap75=ap, **none, per_class=(), images=1, objects=1, detections=1)


@dataclass(frozen=True)
class Known(PtqJob):
    """A job whose AP in the target is known, with the full and with a reduced range; it writes which one it had."""

    aps: tuple[float, float] = (0.3, 0.4)  # FP32 has 0.4

    def run(self, out: Path) -> Held:
        out.write_text(RANGES[self.config.reduce_range])
        chosen = self.config.model_copy(update={"auto": False})
        report = PtqReport(
            model="m", scheme="asymmetric", method="max", images=1, int8_macs_share=1.0, layers=(),
            accuracy_float=accuracy(0.4), accuracy_quantized=accuracy(0.4), settings=chosen.model_dump(mode="json"),
        )  # fmt: skip
        return Held(report, self.aps[self.config.reduce_range], self.target or "the simulation", planned=False)


def job(tmp_path: Path, config: PtqConfig, aps: tuple[float, float]) -> Known:
    return Known(tmp_path / "w.pt", config, Context((64, 64), tmp_path / "data.yaml"), target="openvino", aps=aps)


@pytest.mark.parametrize("saturates", [False, True])
def test_a_reduced_range_is_tried_where_sums_saturate_alone(
    saturates: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OpenVino, "saturation", lambda self: "they do" if saturates else None)
    asked: list[PtqConfig] = []

    def no_more(_weights: Path, _out: Path, _s: object, config: PtqConfig, *_args: object, **_rest: object) -> None:
        asked.append(config)
        raise LookupError("layers are measured")

    monkeypatch.setattr("repq.stages.budget.measured_layers", no_more)
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
    other = tmp_path / ".out"  # what lies beside is somebody else's: another file, or that of a run at the same time
    other.write_text("another's")
    for aps, better in (((0.3, 0.35), True), ((0.3, 0.29), False)):
        with pytest.raises(LookupError):
            quantize_within(replace(cured, aps=aps), out, 0.005)
        wanted = better and saturates
        assert (out.read_text(), asked.pop().reduce_range) == (RANGES[wanted], wanted)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out", "out"] and other.read_text() == "another's"
    assert quantize_within(replace(cured, config=PtqConfig(auto=False)), out, 0.005).ap == 0.3
    assert quantize_within(replace(cured, aps=(0.399, 0.4)), out, 0.005).ap == 0.399


@dataclass(frozen=True)
class Planned(Known):
    """What it loses depends on the plan alone; it writes which one it had, and what it was told."""

    lost: dict[str, float] = field(default_factory=dict)
    told: list[tuple[PtqConfig, PtqReport | None]] = field(default_factory=list)

    def run(self, out: Path) -> Held:
        held = super().run(out)
        self.told.append((self.config, self.before))
        kept = "whole" if self.plan is None else self.plan.read_text()
        out.write_text(kept)
        chosen = self.config.model_copy(update={"auto": False, "correct": CORRECTED, "keep_float": (kept,)})
        report = held.report.model_copy(update={"settings": chosen.model_dump(mode="json")})
        return replace(held, report=report, ap=0.4 - self.lost[kept], planned=self.plan is not None)


CORRECTED = PtqConfig(correct={"rounding": "adaptive", "outputs": "moments"}).correct


@dataclass(frozen=True)
class MeasuredHere:
    """Plans of so many layers, and what they gain in dB."""

    folder: Path
    found: dict[float, tuple[int, float]]
    wrote: list[float]

    def planned(self, config: PlanConfig) -> PlanReport:
        assert config.max_float is not None
        count, gain = self.found[config.max_float]
        self.folder.mkdir(exist_ok=True)
        (self.folder / PLAN).write_text(f"{count} layers")
        self.wrote.append(config.max_float)
        kept = ("mean", *(f"layer{i}" for i in range(count)))
        return PlanReport(
            measure="head.snr", float_layers=kept, kept_layers=("mean",), int8_macs_share=1.0, snr_db=20 + gain,
            snr_db_int8=20.0,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("found", "lost", "tried", "left"),
    [
        ((1, 2, 3), (0.02, 0.004, 0.0), ["whole", "1", "2"], "2"),  # it is good enough: no larger one is tried
        ((1, 2, 3), (0.02, 0.019, 0.006), ["whole", "1", "2", "3"], "3"),
        ((1, 2, 3), (0.006, 0.009, 0.007), ["whole", "1", "2", "3"], "1"),
        ((0, 2, 2), (0.0, 0.006, 0.006), ["whole", "2"], "2"),  # one keeps nothing more, one is the same
        ((1, 2, 3), (0.03, 0.03, 0.03), ["whole", "1", "2", "3"], "whole"),
    ],
)
def test_larger_plans_are_tried_until_one_is_good_enough_and_what_loses_least_stays(
    found: tuple[int, ...], lost: tuple[float, ...], tried: list[str], left: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out, sweeps, wrote = tmp_path / "out", [], []
    losses = {"whole": 0.021, **{f"{count} layers": loss for count, loss in zip(found, lost, strict=True)}}

    @contextmanager
    def measured(
        _weights: Path, folder: Path, _s: object, config: PtqConfig, *_args: object, **_: object
    ) -> Iterator[MeasuredHere]:
        sweeps.append(config)
        yield MeasuredHere(folder, {share: (count, 10.0) for share, count in zip(SHARES, found, strict=True)}, wrote)

    monkeypatch.setattr(OpenVino, "saturation", lambda self: None)
    monkeypatch.setattr("repq.stages.budget.measured_layers", measured)
    start = Planned(**vars(job(tmp_path, PtqConfig(keep_float=("mean",)), (0, 0))), lost=losses)
    held = quantize_within(start, out, 0.005)
    names = {"whole": "whole", **{str(count): f"{count} layers" for count in found}}
    assert out.read_text() == names[left] and held.planned and held.drop == pytest.approx(losses[names[left]])
    assert len(start.told) == len(tried) and len(sweeps) == 1
    if left != "whole":
        assert out.with_name("out.sensitivity").joinpath(PLAN).read_text() == names[left]
    # the first plan chooses its settings, larger ones have those, and what hangs on no plan is not measured again
    assert [config.auto for config, _ in start.told] == [True, True, *[False] * (len(tried) - 2)][: len(tried)]
    assert all(config.correct == CORRECTED for config, _ in start.told[2:])
    assert all(config.keep_float == start.config.keep_float for config, _ in start.told)
    assert all(before is not None for _, before in start.told[1:])
    assert sweeps[0].correct == CORRECTED


@pytest.mark.parametrize(
    ("gains", "tried"), [((7.0, 8.0, 9.0), 3), ((1.0, 7.0, 9.0), 2), ((1.0, 2.0, 9.0), 1), ((1.0, 2.0, 3.0), 1)]
)
def test_plans_that_gain_too_little_are_passed_over_but_for_the_largest(
    gains: tuple[float, ...], tried: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def measured(_weights: Path, folder: Path, *_: object, **_rest: object) -> Iterator[MeasuredHere]:
        yield MeasuredHere(folder, dict(zip(SHARES, enumerate(gains, start=1), strict=True)), [])

    monkeypatch.setattr(OpenVino, "saturation", lambda self: None)
    monkeypatch.setattr("repq.stages.budget.measured_layers", measured)
    losses = {"whole": 0.02, "1 layers": 0.012, "2 layers": 0.011, "3 layers": 0.01}
    start = Planned(**vars(job(tmp_path, PtqConfig(), (0, 0))), lost=losses)
    held = quantize_within(start, tmp_path / "out", 0.005)  # twice the scatter: 3 dB
    assert len(start.told) == 1 + tried and held.drop == pytest.approx(0.01)


@given(st.floats(1e-6, 1), st.floats(1e-6, 1))
def test_the_gain_asked_for_is_none_up_to_the_scatter_and_then_grows_with_the_loss(drop: float, bound: float) -> None:
    asked = gain_for(drop, bound)
    assert (asked > 0) == (10 * math.log10(drop / (SCATTER * bound)) > 0)
    if asked > 0:
        assert gain_for(2 * drop, bound) - asked == pytest.approx(10 * math.log10(2))
    assert gain_for(drop, 0.0) == gain_for(None, bound) == 0


@dataclass(frozen=True)
class Simulated(PtqJob):
    """A job that loses so much in the simulation and in engines."""

    loss: float = 0.0
    losses: dict[str, float | None] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def run(self, out: Path) -> Held:
        report = PtqReport(
            model="m", scheme="asymmetric", method="max", images=1, int8_macs_share=1.0, layers=(),
            accuracy_float=accuracy(0.4), accuracy_quantized=accuracy(0.4 - self.loss),
        )  # fmt: skip
        return Held(report, 0.4 - self.loss, SIMULATION, planned=True)  # so that nothing else is tried

    def ap_in(self, engine: EngineName, out: Path) -> float:
        self.asked.append(engine)
        loss = self.losses[engine]
        if loss is None:
            raise EngineError("it does not take the model")
        return 0.4 - loss


def simulated(tmp_path: Path, target: EngineName | None = None, **values: Any) -> Simulated:
    return Simulated(tmp_path / "w.pt", PtqConfig(), Context((64, 64), tmp_path / "data.yaml"), target=target, **values)


losses = st.none() | st.floats(-0.01, 0.1)


@given(st.floats(-0.01, 0.1), losses, losses)
def test_the_engine_that_loses_most_decides(loss: float, one: float | None, two: float | None) -> None:
    folder, known = Path("nowhere"), {"onnxruntime": one, "openvino": two}
    job = simulated(folder, loss=loss, losses=known)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("repq.stages.budget.judges", lambda: ("onnxruntime", "openvino"))
        held = quantize_within(job, folder / "out", 0.005)
    measured = {name: value for name, value in known.items() if value is not None}
    assert job.asked == ["onnxruntime", "openvino"]
    if not measured:
        assert held.where == SIMULATION and held.drop == pytest.approx(loss)
    else:
        assert held.drop == pytest.approx(max(measured.values())) and measured[held.where] == max(measured.values())


def test_engines_do_not_decide_where_a_target_is_named_or_nothing_is_asked(tmp_path: Path) -> None:
    known = {"onnxruntime": 0.2, "openvino": 0.2}
    for target, max_drop in (("openvino", 0.005), (None, 1.0)):
        job = simulated(tmp_path, target, loss=0.1, losses=known)
        assert quantize_within(job, tmp_path / "out", max_drop).where == SIMULATION and not job.asked


@pytest.mark.parametrize("saturates", [False, True])
def test_an_engine_whose_sums_saturate_here_is_no_judge(saturates: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr(OpenVino, "saturation", lambda self: "they do" if saturates else None)
    assert judges() == (("onnxruntime",) if saturates else ("onnxruntime", "openvino"))
