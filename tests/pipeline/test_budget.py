"""What a run does about a loss, and which engine it says to ship."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repq.engine.openvino import OpenVino
from repq.errors import RecipeError, ToleranceError
from repq.machine.environment import capture_environment
from repq.pipeline.budget import Attempt, lost, ways
from repq.pipeline.runner import run_recipe
from repq.recipe import Budget, PtqConfig, Recipe, ap_drop, engine_title, holds, parse_recipe
from repq.report.verdict import sentences, time_again
from repq.results import Accuracies, Accuracy, Agreement, BenchReport, BenchRow, CheckReport, PtqReport
from repq.stages.budget import SHARES, demand_measured
from repq.stages.package import shipped, why_shipped
from repq.stages.verdict import judged, need_no_agreement

ENVIRONMENT = capture_environment()
ENGINES = ("onnxruntime", "openvino")
Figures = dict[str, tuple[float, float, float]]  # AP in FP32, AP in INT8, speedup


def recipe(**values: Any) -> Recipe:
    fixed = {"name": "x", "data": {"path": "data.yaml"}, "weights": "w.pt"}
    return parse_recipe({**fixed, **values}, source="test", base=Path())


def measured(figures: Figures, float_ms: Mapping[str, float] | None = None) -> tuple[Accuracies, BenchReport]:
    """AP in FP32 and INT8 and the speedup of each engine; in FP32 all take 10 ms, or what ``float_ms`` says."""
    before = dict.fromkeys(figures, 10.0) if float_ms is None else float_ms

    def accuracy(ap: float) -> Accuracy:
        none = dict.fromkeys(("ap_small", "ap_medium", "ap_large"))
        return Accuracy(ap=ap, ap50=ap, ap75=ap, **none, per_class=(), images=1, objects=1, detections=1)

    def row(engine: str, variant: Any, ms: float) -> BenchRow:
        return BenchRow(
            model=f"{engine}-{variant}", engine=engine, variant=variant, precision=variant, size_bytes=1, batch=1,
            threads=1, scope="infer", latency_ms_median=ms, latency_ms_p95=ms, images_per_s=None, runs=1,
        )  # fmt: skip

    aps = {f"{name}-float32": accuracy(one) for name, (one, _, _) in figures.items()}
    aps |= {f"{name}-int8": accuracy(two) for name, (_, two, _) in figures.items()}
    rows = [row(name, "float32", before[name]) for name in figures]
    rows += [row(name, "int8", before[name] / speedup) for name, (_, _, speedup) in figures.items()]
    return Accuracies(models=aps), BenchReport(rows=tuple(rows), environment=ENVIRONMENT, imgsz=(64, 64), rounds=1)


ap, speed = st.sampled_from([0.3, 0.396, 0.394, 0.4]), st.sampled_from([0.5, 0.99, 1.01, 3.0])
figures = st.fixed_dictionaries({name: st.tuples(st.just(0.4), ap, speed) for name in ENGINES})


@settings(deadline=None)
@given(figures, st.sampled_from([None, *ENGINES, "tensorrt"]))
def test_what_is_to_be_shipped_holds_and_pays_and_else_there_is_a_next_step(found: Figures, target: str | None) -> None:
    accuracies, bench = measured(found)
    verdict = judged(recipe(target=target), accuracies, bench, [("corrections", 0.0)])
    good = {name for name, (before, after, speedup) in found.items() if before - after <= 0.005 and speedup >= 1}
    if target == "tensorrt":  # not measured here
        holds = all(before - after <= 0.005 for before, after, _ in found.values())
        assert verdict.ship == ("tensorrt" if holds else None)
    else:
        wanted = good if target is None else good & {target}
        assert (verdict.ship in wanted) if wanted else verdict.ship is None
    assert (verdict.next is None) == (verdict.ship is not None)
    text = "\n".join(sentences(verdict))
    for name, (before, after, speedup) in found.items():
        line = next(line for line in text.splitlines() if line.startswith(engine_title(name)))
        assert ("loses too much" in line) == (before - after > 0.005)
        assert ("does not pay" in line) == (speedup < 1)
        if speedup < 1:
            assert all(engine_title(other) in line for other in good)
    # an engine that loses too much has to agree with the simulation, where it may be the one to ship
    agreeing = set(ENGINES) - set(need_no_agreement(recipe(target=target), verdict))
    losing = {name for name, (before, after, _) in found.items() if before - after > 0.005}
    assert agreeing == (losing & {target} if target in ENGINES else losing)


@settings(deadline=None)
@given(figures, st.fixed_dictionaries({name: st.sampled_from([5.0, 10.0, 40.0]) for name in ENGINES}))
def test_of_the_good_engines_the_fastest_is_shipped_however_slow_its_fp32_is(
    found: Figures, float_ms: dict[str, float]
) -> None:
    verdict = judged(recipe(), *measured(found, float_ms), ())
    good = {row.engine: float_ms[row.engine] / found[row.engine][2] for row in verdict.engines if row.good}
    if good:
        assert verdict.ship is not None
        assert good[verdict.ship] == min(good.values())


@settings(deadline=None)
@given(figures, st.sampled_from([None, *ENGINES, "tensorrt"]), st.sampled_from([0.0, 1.0]))
def test_the_model_card_claims_what_was_measured(found: Figures, target: str | None, min_speedup: float) -> None:
    accuracies, bench = measured(found)
    verdict = judged(recipe(target=target, min_speedup=min_speedup), accuracies, bench, ())
    name = shipped(verdict, accuracies.models, {row.model: row for row in bench.rows}, target)
    text = " ".join(why_shipped(verdict, name))
    for engine, (before, after, speedup) in found.items():
        assert f"{engine_title(engine)}: AP {before:.4f} → {after:.4f}" in text
        assert f"{speedup:.2f} times as fast as FP32" in text
    assert "faster" not in text
    assert ("TensorRT was not built here: neither" in text) == (verdict.ship == "tensorrt") == (name is None)
    assert text.startswith("INT8 is not shipped") == (verdict.ship is None)
    if target in found and name is not None:
        assert name.rpartition("-")[0] == target, "what is shipped is for the target, in INT8 or in FP32"


@settings(deadline=None)
@given(figures, st.sampled_from([None, *ENGINES]))
def test_times_that_others_disturbed_are_taken_again_before_anything_else_is_given_up(
    found: Figures, target: str | None
) -> None:
    accuracies, bench = measured(found)
    disturbed = bench.model_copy(update={"crowded": True})
    quiet, busy = (judged(recipe(target=target), accuracies, times, ()) for times in (bench, disturbed))
    assert busy.ship == quiet.ship
    wanted = [before - after <= 0.005 for name, (before, after, _) in found.items() if target in (None, name)]
    assert (busy.next == time_again()) == (busy.ship is None and all(wanted))
    assert any(time_again() in line.lower() for line in sentences(busy))
    assert not any(time_again() in line.lower() for line in sentences(quiet))


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 0.999))
def test_a_model_that_finds_nothing_holds_no_bound(before: float, after: float, bound: float) -> None:
    drop = ap_drop(before, after)
    assert (drop is None) == (before == 0)
    assert holds(drop, bound) == (before > 0 and before - after <= bound)
    assert holds(drop, 1.0)


@given(st.sampled_from([None, 0.0, 1e-4, 0.5]), st.sampled_from([None, 0.0, 0.005, 0.999, 1.0]))
def test_a_bound_that_was_asked_for_is_measured(before: float | None, bound: float | None) -> None:
    budget = Budget() if bound is None else Budget(max_drop=bound)
    if before == 0 and bound is not None and bound < 1:
        with pytest.raises(ToleranceError, match="cannot be measured"):
            demand_measured(budget, before)
    else:
        demand_measured(budget, before)


@pytest.mark.parametrize("target", [None, "openvino"])
def test_nothing_is_shipped_where_fp32_finds_nothing(target: str | None) -> None:
    accuracies, bench = measured({"openvino": (0.0, 0.0, 2.0)})
    verdict = judged(recipe(target=target), accuracies, bench, [("corrections", lost(recipe(), accuracies))])
    assert verdict.ship is None and verdict.engines[0].drop is None and verdict.ways == (("corrections", None),)
    assert verdict.next is not None and "float model finds" in verdict.next
    assert "finds nothing" in sentences(verdict)[0]
    assert judged(recipe(max_drop=1.0), accuracies, bench, []).ship == "openvino"


@pytest.mark.parametrize("target", [None, "openvino", "tensorrt"])
def test_nothing_is_shipped_where_nothing_was_measured(target: str | None) -> None:
    verdict = judged(recipe(target=target), *measured({}), [("corrections", None)])
    assert verdict.ship is None and verdict.next is not None


@pytest.mark.parametrize(
    "asked", [{"build": {"engines": ["opencv"]}}, {"build": {"engines": ["onnxruntime"]}, "target": "opencv"}]
)
def test_a_run_without_int8_is_refused_before_anything_runs(asked: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no INT8 in opencv"):
        run_recipe(recipe(**asked), tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_the_loss_is_that_of_the_target_or_the_largest() -> None:
    accuracies, _ = measured({"onnxruntime": (0.4, 0.39, 1), "openvino": (0.4, 0.398, 1)})
    assert lost(recipe(), accuracies) == lost(recipe(target="onnxruntime"), accuracies) == pytest.approx(0.01)
    assert lost(recipe(target="openvino"), accuracies) == pytest.approx(0.002)


def tried(start: Recipe, *drops: float) -> tuple[list[str], list[Recipe]]:
    """Names and recipes of all ways, where they lose so much one after the other."""
    done: list[Attempt] = []
    for (name, found), drop in zip(ways(start, done), drops, strict=False):
        done.append(Attempt(name, found, {}, drop, made=False))  # nothing chooses settings
    return [attempt.name for attempt in done], [attempt.recipe for attempt in done]


@pytest.fixture(params=[False, True], ids=["exact sums", "sums saturate"])
def saturates(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(OpenVino, "saturation", lambda self: "they do" if request.param else None)
    return bool(request.param)


@pytest.mark.parametrize("better", [False, True])
def test_the_range_is_reduced_where_sums_saturate_and_as_long_as_that_loses_less(saturates: bool, better: bool) -> None:
    names, recipes = tried(recipe(allow_qat=True), 0.1, 0.05 if better else 0.2, 0.04, 0.03, 0.025, 0.02)
    reduced = [one.ptq.reduce_range for one in recipes]
    after = [better] * (1 + len(SHARES))
    assert reduced == ([False, True, *after] if saturates else [False, *(False for _ in after)])
    assert len(set(names)) == len(names) and ("a reduced range" in names[1]) == saturates
    for unchanged in ({"auto": False}, {"reduce_range": True}):
        reduced = [one.ptq.reduce_range for one in tried(recipe(ptq=unchanged), *[0.1] * 9)[1]]
        assert len(reduced) == 1 + len(SHARES) and len(set(reduced)) == 1
    assert len(tried(recipe(target="onnxruntime"), *[0.1] * 9)[0]) == 1 + len(SHARES)


@pytest.mark.parametrize("allow_qat", [False, True])
@pytest.mark.parametrize("given_plan", [False, True])
def test_what_is_left_is_tried_in_order_and_what_was_asked_for_stays(
    allow_qat: bool, given_plan: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OpenVino, "saturation", lambda self: None)
    start = recipe(allow_qat=allow_qat, max_drop=0.01, **({"plan": {"top": 3}} if given_plan else {}))
    names, recipes = tried(start, *[0.1] * 9)
    assert recipes[0] == start and len(set(names)) == len(names) == 1 + len(SHARES) * (not given_plan) + allow_qat
    if given_plan:
        assert all(one.plan.top == 3 for one in recipes)
    else:
        assert [one.plan.max_float for one in recipes[1 : 1 + len(SHARES)]] == list(SHARES)
    assert [one.qat is not None for one in recipes] == [False] * (len(recipes) - allow_qat) + [True] * allow_qat


@pytest.mark.parametrize("empty", range(len(SHARES)))
def test_larger_plans_have_the_settings_that_were_chosen_for_the_first_that_keeps_a_layer(
    empty: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OpenVino, "saturation", lambda self: None)
    chosen = PtqConfig(scheme="asymmetric", correct={"rounding": "adaptive"}, calibration={"method": "entropy"})
    report = PtqReport(
        model="m", scheme="asymmetric", method="entropy", images=1, int8_macs_share=1.0, layers=(), accuracy_float=None,
        accuracy_quantized=None, settings={**chosen.model_dump(mode="json"), "keep_float": ["a layer of the plan"]},
    )  # fmt: skip
    made: Any = SimpleNamespace(result=lambda kind: report)
    start, done = recipe(allow_qat=True), list[Attempt]()
    for name, found in ways(start, done):
        done.append(Attempt(name, found, {"ptq": made}, 0.1, made=not 1 <= len(done) <= empty))
    plans = [attempt.recipe.ptq for attempt in done[1 : 1 + len(SHARES)]]
    assert done[0].recipe.ptq == start.ptq and start.ptq.auto
    assert plans == [start.ptq] * (empty + 1) + [chosen] * (len(SHARES) - empty - 1)
    assert all(attempt.name.startswith("corrections") for attempt in done) and len(done) == len(SHARES) + 2


@pytest.mark.parametrize("drops", [(0.1, 0.05, 0.07, 0.06, 0.0), (0.1, 0.07, 0.05, 0.06, 0.0)])
def test_training_starts_from_the_plan_that_loses_least(
    drops: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OpenVino, "saturation", lambda self: None)
    _, recipes = tried(recipe(allow_qat=True), *drops)
    assert recipes[-1].qat is not None
    assert recipes[-1].plan == recipes[1 if drops[1] < drops[2] else 2].plan


@given(st.none() | st.floats(-1, 1), st.floats(0, 1), st.none() | st.floats(0, 60))
def test_a_check_holds_the_budget_as_everything_does(gap: float | None, bound: float, least: float | None) -> None:
    row = Agreement.model_construct(snr_db={"boxes": 30.0}, ap_gap=gap)
    report = CheckReport.model_construct(engines=(row,), max_drop=bound, min_snr_db=least)
    told_by_snr = least is not None and gap is None
    wanted = (least is None or least <= 30) and (told_by_snr or holds(None if gap is None else abs(gap), bound))
    assert report.within(row) == wanted
