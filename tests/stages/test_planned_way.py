"""A checkpoint whose INT8 is over the budget: layers are measured and kept in float, for real, on drawn images."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from finding_detector import with_boxes

from repq.api.opening import load
from repq.data import load_dataset, make_demo_set
from repq.model import save_checkpoint
from repq.recipe import CalibrationConfig, DemoConfig, EvalConfig, PtqConfig
from repq.report.blocks import Figure
from repq.results import PlanReport
from repq.stages import Context, PtqJob, budget, ptq_checkpoint, quantize_within
from repq.stages.budget import Held
from repq.stages.sensitivity import PLAN_REPORT

SIZE = (64, 64)
EVAL = EvalConfig(batch=4, confidence=0.0, iou=0.3, max_detections=50, multi_label=False)
CALIBRATION = CalibrationConfig(images=4, bins=128)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_checkpoint(path, with_boxes())
    return path


@pytest.fixture(scope="module")
def data(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images whose labels are what the float model finds: any noise of INT8 loses AP."""
    folder = tmp_path_factory.mktemp("data")
    data = make_demo_set(folder, DemoConfig(train_images=6, val_images=4, size=64, classes=1))
    model = load(weights)
    for record in load_dataset(data, "val").records:
        found = model.detect(record.path, imgsz=64, conf=0.0, iou=EVAL.iou, max_detections=20)
        boxes = np.column_stack([(found[:, :2] + found[:, 2:4]) / 2, found[:, 2:4] - found[:, :2]]) / 64
        rows = [" ".join(map(str, (0, *box))) for box in boxes]
        next(folder.rglob(f"labels/val/{record.path.stem}.txt")).write_text("\n".join(rows))
    return data


def test_what_was_measured_before_stands_and_the_model_is_the_same(data: Path, weights: Path, tmp_path: Path) -> None:
    config = PtqConfig(auto=False, calibration=CALIBRATION, correct={"rounding": "adaptive"})
    reports = []
    for name, before in (("a", None), ("b", "a")):
        reports.append(
            ptq_checkpoint(
                weights, tmp_path / f"{name}.safetensors", config, Context(SIZE, data, EVAL),
                before=None if before is None else reports[0],
            )
        )  # fmt: skip
    one, other = reports
    assert len(one.trials) == 2 and other.trials == one.trials  # with the seconds that they took
    assert other.accuracy_float == one.accuracy_float
    assert other.accuracy_quantized == one.accuracy_quantized and other.layers == one.layers
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@dataclass(frozen=True)
class Noted(PtqJob):
    """Keeps what each of its runs made."""

    made: list[Held] = field(default_factory=list)

    def run(self, out: Path) -> Held:
        self.made.append(super().run(out))
        return self.made[-1]


def test_what_is_over_the_budget_gets_layers_in_float_and_settings_chosen_for_them(
    data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "SHARES", budget.SHARES[1:])  # the first chooses settings, another one has the same
    monkeypatch.setattr(Figure, "svg", "<svg></svg>")  # no report is looked at
    out, said = tmp_path / "int8.safetensors", []
    job = Noted(weights, PtqConfig(calibration=CALIBRATION), Context(SIZE, data, EVAL, log=said.append))
    held = quantize_within(job, out, -1.0)  # nothing is good enough
    first = job.made[0]
    assert first.drop is not None and first.report.trials and not first.planned
    assert any("looking for layers" in line for line in said)
    plan = PlanReport.model_validate_json((tmp_path / "int8.safetensors.sensitivity" / PLAN_REPORT).read_text())
    assert plan.max_float in budget.SHARES and plan.gain_db is not None
    assert held.planned and held.drop is not None and held.drop < first.drop
    floats = {row.layer for row in held.report.layers if row.precision == "float"}
    assert floats and floats == set(plan.float_layers) and held.report.int8_macs_share >= 1 - plan.max_float
    assert held.report.trials and not held.report.settings["auto"]
