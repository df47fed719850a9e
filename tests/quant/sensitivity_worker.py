"""One of several processes of a measurement, for a test: ``sensitivity_worker.py FOLDER OUT [RANK THAT DIES]``.

``{rank}`` in OUT gives every process a folder of its own.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from finding_detector import with_boxes

from repq import roll_call
from repq.data import make_demo_set
from repq.errors import RepqError
from repq.model import save_checkpoint
from repq.quant.sensitivity import measurement
from repq.recipe import CalibrationConfig, DemoConfig, EvalConfig, PlanConfig, PtqConfig, SensitivityConfig
from repq.results import PlanReport, Sensitivity
from repq.stages import Context, measure_sensitivity, sensitivity


def prepare(folder: Path) -> None:
    """Write a small checkpoint and a data set to measure it on."""
    make_demo_set(folder / "set", DemoConfig(train_images=6, val_images=2, size=64, classes=1))
    save_checkpoint(folder / "weights.safetensors", with_boxes())


def measured(folder: Path, out: Path, **plan: Any) -> tuple[Sensitivity, PlanReport | None]:
    return measure_sensitivity(
        folder / "weights.safetensors",
        out,
        SensitivityConfig(images=2, ap=("only_int8",), ap_images=3, batch=2, group=8),
        PlanConfig(max_drop=0.0, min_int8=0.4, resamples=100, give_back=2, **plan),
        PtqConfig(calibration=CalibrationConfig(method="max", images=3, batch=2, bins=128)),
        Context(
            (64, 64),
            folder / "set" / "data.yaml",
            EvalConfig(batch=2, confidence=0.0, iou=0.3, max_detections=50, multi_label=False),
            log=lambda line: print(line, file=sys.stderr),
        ),
    )


def die_after_first_group() -> None:
    original = measurement.ap_with_changes

    def dying(*arguments: Any) -> Any:
        measurement.ap_with_changes = lambda *_: os._exit(3)
        return original(*arguments)

    measurement.ap_with_changes = dying


if __name__ == "__main__":
    torch.set_num_threads(1)
    roll_call.MOMENT, roll_call.LINGER = 0.5, 0.2
    sensitivity._write_report = lambda *_: None  # one process draws it for the test
    if os.environ["RANK"] in sys.argv[3:]:
        die_after_first_group()
    try:
        measured(Path(sys.argv[1]), Path(sys.argv[2].replace("{rank}", os.environ["RANK"])))
    except RepqError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    names = [task.joinpath("comm").read_text() for task in Path("/proc/self/task").iterdir()]
    if any("gloo" in name for name in names):  # they outlive the interpreter, and may abort it
        sys.exit(f"threads of the process group are left: {names}")
