"""What each correction of post-training quantization is worth: alone, all together, and as ``--auto`` picks them.

AP on the val split, every convolution in INT8, in the engines. The reference material (checkpoints, images) lies beside
the project, or where REPQ_SHARED says; without it there is nothing to measure, and the script says so. What was
measured stays in the JSON file, so a run that was stopped goes on where it was.

    python benchmarks/ptq_methods.py
    python benchmarks/ptq_methods.py --checkpoint yolov6n_bccd_repvgg --data bccd --imgsz 256
"""

from __future__ import annotations

import datetime
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import torch

from repq.data import DetectionDataset, batches, calibration_set, load_dataset
from repq.engine import build
from repq.evaluate import evaluate
from repq.export import export_float, export_quantized, save_onnx
from repq.machine.environment import capture_environment
from repq.model import Detector, load_checkpoint
from repq.progress import on_terminal
from repq.quant import QuantizedModel, quantize, quantize_at_best
from repq.quant.similarity import head_snr_db, outputs_of
from repq.recipe import CalibrationConfig, CorrectionConfig, EngineName, EvalConfig, ExportConfig, PtqConfig
from repq.reparam import fuse

RESULTS = Path(__file__).parent / "results"
ENGINES: tuple[EngineName, ...] = ("openvino", "onnxruntime")
EVERYTHING: dict[str, Any] = {
    "channel_inputs": True, "equalize": True, "split_below_db": 25.0, "rounding": "adaptive", "outputs": "moments",
}  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {
    "plain": {},
    "channel inputs": {"channel_inputs": True},
    "equalization": {"equalize": True},
    "splitting below 25 dB": {"split_below_db": 25.0},
    "adaptive rounding": {"rounding": "adaptive"},
    "output means": {"outputs": "mean"},
    "output moments": {"outputs": "moments"},
    "all (moments)": EVERYTHING,
    "picked by --auto": {},
}
Row = dict[str, Any]


class Setup:
    """A checkpoint with its images: what is calibrated on, what settings are compared on, what AP is measured on."""

    def __init__(self, checkpoint: Path, data: Path, imgsz: int, images: int) -> None:
        self.size = (imgsz, imgsz)
        self.model: Detector = fuse(load_checkpoint(checkpoint).model)
        train = load_dataset(data, "train")
        self.val: DetectionDataset = load_dataset(data, "val")
        records = calibration_set(train, CalibrationConfig(images=images))
        shown = len(records) - len(records) // 4
        self.calibration = self._load(records[:shown])
        self.held_out = self._load(records[shown:])
        self.wanted = outputs_of(self.model, self.held_out)

    def quantized(self, method: str, scheme: str) -> QuantizedModel:
        correct = CorrectionConfig(**METHODS[method])
        config = PtqConfig(scheme=scheme, correct=correct)  # type: ignore[arg-type]
        if method == "picked by --auto":
            return quantize_at_best(self.model, self.calibration, self.held_out, config, progress=on_terminal)
        return quantize(self.model, self.calibration, config)

    def ap(self, onnx: Path, engine: EngineName) -> tuple[float, str]:
        built = build(engine, onnx)
        output = built.manifest.outputs[0].name
        accuracy = evaluate(lambda x: built.infer(x)[output], self.val, self.size, EvalConfig(), on_terminal)
        counts = built.describe().precision_counts()
        return accuracy.ap, " + ".join(f"{count} {precision}" for precision, count in counts.items())

    def _load(self, records: Iterable[Any]) -> list[torch.Tensor]:
        return [torch.from_numpy(batch.images) for batch in batches(list(records), self.size, 16)]


def measure(setup: Setup, method: str, scheme: str, folder: Path) -> Row:
    """Quantize, export, run in both engines."""
    started = time.perf_counter()
    path = folder / "model.onnx"
    row: Row = {"method": method, "scheme": scheme}
    if method == "FP32":
        save_onnx(path, export_float(setup.model, setup.size, ExportConfig(batch=None)))
    else:
        outcome = setup.quantized(method, scheme)
        row["seconds"] = time.perf_counter() - started
        row["head_snr_db"] = head_snr_db(outcome.model, setup.held_out, setup.wanted)
        row["settings"] = {
            "method": outcome.config.calibration.method,
            **outcome.config.correct.model_dump(exclude_defaults=True),
        }
        row["trials"] = [trial.values() for trial in outcome.trials]
        save_onnx(path, export_quantized(outcome.model, setup.size, ExportConfig(batch=None)))
    for engine in ENGINES:
        row[engine], row[f"{engine}_layers"] = setup.ap(path, engine)
    return row


@click.command(help=__doc__)
@click.option("--checkpoint", default="yolov6lite_s_coco", show_default=True)
@click.option("--data", default="coco128", show_default=True)
@click.option("--imgsz", default=320, show_default=True)
@click.option("--images", default=128, show_default=True, help="Train images; three quarters calibrate.")
@click.option("--scheme", "schemes", multiple=True, default=("asymmetric", "symmetric"), show_default=True)
@click.option("--method", "methods", multiple=True, default=tuple(METHODS), help="[default: all]")
@click.option("--out", type=Path, default=RESULTS, show_default=True)
def main(
    checkpoint: str, data: str, imgsz: int, images: int, schemes: tuple[str, ...], methods: tuple[str, ...], out: Path
) -> None:
    shared = Path(os.environ.get("REPQ_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    yaml = shared / "data" / data / "data.yaml"
    if not yaml.is_file():
        click.echo(f"skipped: the reference material is not at {shared} (set REPQ_SHARED to its folder)", err=True)
        sys.exit(0)
    stem = out / f"{datetime.date.today():%Y-%m-%d}-ptq-methods-{checkpoint}-{imgsz}"
    before = stem.with_suffix(".json")
    known: list[Row] = json.loads(before.read_text())["rows"] if before.exists() else []
    setup = Setup(shared / "checkpoints" / f"{checkpoint}.pt", yaml, imgsz, images)
    wanted = [("FP32", "–"), *((method, scheme) for scheme in schemes for method in methods)]
    for method, scheme in wanted:
        if any((row["method"], row["scheme"]) == (method, scheme) for row in known):
            continue
        with tempfile.TemporaryDirectory() as folder:
            known.append(measure(setup, method, scheme, Path(folder)))
        click.echo(json.dumps({key: value for key, value in known[-1].items() if key != "trials"}))
        write(stem, known, checkpoint, imgsz, len(setup.val.records), images)


def write(stem: Path, rows: list[Row], checkpoint: str, imgsz: int, val: int, images: int) -> None:
    """Write the rows as JSON and as a table."""
    environment = capture_environment()
    lines = [
        f"# Corrections of post-training quantization: {checkpoint}, {imgsz}x{imgsz}",
        "",
        f"AP on {val} val images; {images} train images, of which three quarters calibrate and the rest gives the "
        f"head's SNR, by which `--auto` chooses. Calibration by mse unless chosen. {environment.cpu}; "
        + ", ".join(f"{name} {version}" for name, version in environment.libraries.items())
        + ".",
        "",
        "| scheme | what | head SNR dB | AP OpenVINO | AP ONNX Runtime | OpenVINO runs |",
        "|---|---|---|---|---|---|",
        *(_line(row) for row in rows),
        "",
        *(_picked(row) for row in rows if row.get("trials")),
    ]
    stem.parent.mkdir(parents=True, exist_ok=True)
    values = {"rows": rows, "environment": environment.model_dump(mode="json")}
    stem.with_suffix(".json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _line(row: Row) -> str:
    snr = f"{row['head_snr_db']:.1f}" if "head_snr_db" in row else "–"
    aps = " | ".join(f"{row[engine]:.4f}" for engine in ENGINES)
    return f"| {row['scheme']} | {row['method']} | {snr} | {aps} | {row['openvino_layers']} |"


def _picked(row: Row) -> str:
    settings = ", ".join(f"{key}={value}" for key, value in row["settings"].items())
    return f"Picked, {row['scheme']}: {settings}."


if __name__ == "__main__":
    main()
