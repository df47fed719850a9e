"""Two real processes over gloo measure and plan what one does, and the death of one is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from sensitivity_worker import measured, prepare
from two_processes import all_end_well, start_two

from repq.api import plan_latency
from repq.quant.sensitivity import measurement
from repq.recipe import BenchConfig
from repq.report.blocks import Figure
from repq.results import PlanReport, Sensitivity
from repq.stages import sensitivity as stage

WORKER = Path(__file__).with_name("sensitivity_worker.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    prepare(folder)
    return folder


@pytest.fixture(scope="module")
def alone(folder: Path) -> tuple[Sensitivity, PlanReport | None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "_write_report", lambda *_: None)  # it is drawn in another test
        return measured(folder, folder / "alone")


def without_times(sensitivity: Sensitivity) -> Sensitivity:
    return sensitivity.model_copy(update={"seconds": {}})


def written(out: Path) -> tuple[Sensitivity, PlanReport]:
    return (
        Sensitivity.model_validate_json((out / "sensitivity.json").read_text()),
        PlanReport.model_validate_json((out / "plan.json").read_text()),
    )


def test_two_processes_are_one(folder: Path, alone: tuple[Sensitivity, PlanReport | None]) -> None:
    all_end_well(WORKER, folder, folder / "two")
    sensitivity, plan = written(folder / "two")
    assert without_times(sensitivity) == without_times(alone[0])
    assert plan == alone[1] and plan.trials
    assert (folder / "two/plan.yaml").read_text() == (folder / "alone/plan.yaml").read_text()
    journals = [(folder / f"two/journal/sweep-{rank}.jsonl").read_text().splitlines() for rank in range(2)]
    kinds = [[json.loads(line)["kind"] for line in journal[1:]] for journal in journals]
    assert abs(kinds[0].count("ap.only_int8") - kinds[1].count("ap.only_int8")) <= 1
    assert abs(kinds[0].count("end_to_end") - kinds[1].count("end_to_end")) <= 1


def test_hosts_need_no_common_disk(folder: Path, alone: tuple[Sensitivity, PlanReport | None]) -> None:
    all_end_well(WORKER, folder, folder / "disk{rank}")
    sensitivity, plan = written(folder / "disk0")
    assert without_times(sensitivity) == without_times(alone[0]) and plan == alone[1]
    assert [path.name for path in (folder / "disk1").rglob("*.*")] == ["sweep-1.jsonl"]


def test_latency_may_be_what_is_weighed(
    folder: Path, alone: tuple[Sensitivity, PlanReport | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder / "alone/journal", folder / "fast/journal")
    quick = BenchConfig(threads=(1,), warmup=1, rounds=2, runs_per_round=2, settle_ms=0)
    monkeypatch.setattr(plan_latency, "TIMING", quick)
    only_front = property(lambda figure: figure.draw() if figure.file == "front.svg" else "<svg></svg>")
    monkeypatch.setattr(Figure, "svg", only_front)  # another test draws all
    sensitivity, plan = measured(folder, folder / "fast", latency="openvino")
    assert sensitivity == alone[0]  # from its journal
    assert plan and plan.latency and (folder / "fast/front.svg").is_file()
    layers = {row.layer for row in sensitivity.layers}
    assert set(plan.latency.layer_ms) == layers
    points = plan.latency.points
    assert {0, len(layers), len(plan.float_layers)} <= {point.float_layers for point in points}
    assert [point.float_layers for point in points if point.chosen] == [len(plan.float_layers)]
    assert next(point.drop for point in points if point.float_layers == len(layers)) == 0
    assert points[0].efficient and all(point.latency_ms > 0 for point in points)


def test_a_dead_process_ends_the_other_with_a_word_and_leaves_what_it_measured(
    folder: Path, alone: tuple[Sensitivity, PlanReport | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = folder / "broken"
    (first, message), (second, _) = start_two(WORKER, folder, out, 1)
    assert (first, second) == (2, 3)
    assert "another of the 2 processes of this command ended" in message
    assert "run the same command again" in message
    assert not (out / "sensitivity.json").exists() and not (out / "plan.yaml").exists()

    monkeypatch.setattr(stage, "_write_report", lambda *_: None)
    swept: list[str] = []
    original = measurement.ap_with_changes
    monkeypatch.setattr(measurement, "ap_with_changes", lambda *given: (swept.extend(given[2]), original(*given))[1])
    sensitivity, plan = measured(folder, out)
    assert without_times(sensitivity) == without_times(alone[0]) and plan == alone[1]
    assert 0 < len(swept) < len(sensitivity.layers) / 2  # only what the dead process had not reached
