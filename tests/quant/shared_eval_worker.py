"""One of several processes that evaluate, for a test: ``shared_eval_worker.py FOLDER CASE…``."""

from __future__ import annotations

from pathlib import Path

from finding_detector import with_boxes
from in_two_processes import compute_cases

from repq.data import make_demo_set
from repq.export import export_float
from repq.graph import save_onnx
from repq.model import save_checkpoint
from repq.recipe import DemoConfig, EvalConfig, TtaConfig
from repq.results import Accuracy
from repq.stages import Context, evaluate_model

SIZE = (64, 64)
FOUND = {"confidence": 0.0, "iou": 0.3, "max_detections": 50, "multi_label": False}
CASES = {
    "torch": ("weights.safetensors", {"batch": 3}),
    "fewer batches than processes": ("weights.safetensors", {"batch": 16}),
    "augmented": ("weights.safetensors", {"batch": 2, "tta": TtaConfig()}),
    "engine": ("graph.onnx", {"batch": 2}),
}


def prepare(folder: Path) -> None:
    make_demo_set(folder / "set", DemoConfig(train_images=2, val_images=7, size=64, classes=1))
    next((folder / "set" / "labels" / "val").glob("*.txt")).unlink()  # which is said
    save_checkpoint(folder / "weights.safetensors", with_boxes())
    save_onnx(folder / "graph.onnx", export_float(with_boxes(), SIZE))


def measured(folder: Path, case: str) -> Accuracy:
    name, settings = CASES[case]
    context = Context(SIZE, folder / "set" / "data.yaml", EvalConfig(**FOUND, **settings), log=said.append)
    accuracy, _ = evaluate_model(folder / name, context)
    return accuracy.model_copy(update={"tta": accuracy.tta and accuracy.tta.model_copy(update={"time_ratio": 1.0})})


said: list[str] = []

if __name__ == "__main__":
    folder, rank = compute_cases(measured)
    (folder / f"said{rank}.txt").write_text("\n".join(said))
