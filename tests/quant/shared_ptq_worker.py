"""One of several processes that quantize, for a test: ``shared_ptq_worker.py FOLDER CASE…``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finding_detector import with_boxes
from in_two_processes import compute_cases

from repq.data import make_demo_set
from repq.model import save_checkpoint
from repq.quant.corrections import Outputs, Rounding
from repq.recipe import CalibrationConfig, CorrectionConfig, DemoConfig, EvalConfig, PtqConfig
from repq.results import PtqReport
from repq.stages import Context, PtqJob, budget, quantize_within, sensitivity

CORRECTED = {"channel_inputs": True, "equalize": True, "rounding": "adaptive", "outputs": "moments", "images": 3}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], float]] = {  # calibration, corrections, rest
    "entropy": ({"method": "entropy"}, {}, {"share_scales": "joint", "scheme": "symmetric"}, 1.0),
    "fewer batches than processes": ({"method": "mse", "batch": 16}, {}, {}, 1.0),
    "corrected": ({"method": "mse"}, CORRECTED, {}, 1.0),
    "over the budget": ({}, {}, {"auto": True}, -1.0),  # nothing is good enough: layers are measured
}


FEWER: tuple[tuple[Any, str, Any], ...] = (
    (budget, "SHARES", (0.05,)),
    (budget, "judges", lambda: ("onnxruntime",)),
    (sensitivity, "_write_report", lambda *_: None),
    (Rounding, "tries", ()),
    (Outputs, "tries", ("mean",)),
)
"""One plan, judged in one engine, nothing drawn, and quick trials: what is tried is not what is tested."""


def prepare(folder: Path) -> None:
    make_demo_set(folder / "set", DemoConfig(train_images=7, val_images=5, size=64, classes=1))
    save_checkpoint(folder / "weights.safetensors", with_boxes())


def quantized(folder: Path, case: str, out: Path) -> PtqReport:
    calibration, correct, settings, max_drop = CASES[case]
    config = PtqConfig(
        calibration=CalibrationConfig(**{"images": 7, "batch": 2, "bins": 128, **calibration}),
        correct=CorrectionConfig(**correct),
        **{"auto": False, **settings},
    )
    found = EvalConfig(batch=2, confidence=0.0, iou=0.3, max_detections=50, multi_label=False)
    context = Context((64, 64), folder / "set" / "data.yaml", found)
    report = quantize_within(PtqJob(folder / "weights.safetensors", config, context), out, max_drop).report
    trials = tuple(trial.model_copy(update={"seconds": 0.0}) for trial in report.trials)
    return report.model_copy(update={"trials": trials})


if __name__ == "__main__":
    for where, name, value in FEWER:
        setattr(where, name, value)
    compute_cases(lambda folder, case: quantized(folder, case, folder / f"{case}.safetensors"))
