"""AP of FP32 and INT8 on real images: repq's quantizer in both engines, NNCF, and ONNX Runtime's own quantizer.

The reference material (checkpoints trained on COCO, and 128 + 128 COCO images) lies beside the project, or where
REPQ_SHARED says; without it there is nothing to compare, and the script says so.

    python benchmarks/compare_accuracy.py
    python benchmarks/compare_accuracy.py --model yolov6lite_m --keep-float 'backbone.*.conv_dw_*'
"""

from __future__ import annotations

import datetime
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from peers import NncfPeer, OnnxRuntimePeer, summary

from repq.bench import capture_environment
from repq.data import DetectionDataset, batches, calibration_set, load_dataset
from repq.engine import build
from repq.evaluate import Predict, evaluate
from repq.export import export_float, export_quantized, save_onnx
from repq.model import load_checkpoint
from repq.progress import on_terminal
from repq.quant import quantize
from repq.recipe import CalibrationConfig, EngineName, EvalConfig, ExportConfig, PtqConfig
from repq.reparam import fuse

RESULTS = Path(__file__).parent / "results"
ENGINES: tuple[EngineName, ...] = ("openvino", "onnxruntime")
Row = dict[str, str | float]


def candidates(
    checkpoint: Path, images: list[NDArray[np.float32]], imgsz: tuple[int, int], keep: tuple[str, ...], folder: Path
) -> Iterator[tuple[str, str, Predict]]:
    """Every model to evaluate: its label, the precision of its convolutions, and how to run it."""
    model = fuse(load_checkpoint(checkpoint).model)
    config = ExportConfig(batch=None)
    files = {"FP32": folder / "float.onnx"}
    save_onnx(files["FP32"], export_float(model, imgsz, config))
    for scheme in ("symmetric", "asymmetric"):
        settings = PtqConfig(scheme=scheme, keep_float=keep, calibration=CalibrationConfig(images=len(images)))
        quantized = quantize(model, [torch.from_numpy(image) for image in images], settings, on_terminal)
        files[f"repq INT8 ({scheme})"] = folder / f"{scheme}.onnx"
        save_onnx(files[f"repq INT8 ({scheme})"], export_quantized(quantized.model, imgsz, config))
        yield f"repq INT8 ({scheme}), simulated", "float32", _torch_predict(quantized.model)
    for label, path in files.items():
        for engine in ENGINES:
            built = build(engine, path)
            output = built.manifest.outputs[0].name
            yield (
                f"{label}, {engine}",
                summary(built.describe().layers),
                lambda batch, built=built, output=output: built.infer(batch)[output],
            )
    for preset in ("performance", "mixed"):
        peer = NncfPeer(files["FP32"], images, preset)
        yield peer.label, summary(peer.layers()), peer.infer(2)
    ort_peer = OnnxRuntimePeer(files["FP32"], images, folder)
    yield ort_peer.label, summary(ort_peer.layers()), ort_peer.infer(2)


def _torch_predict(model: torch.nn.Module) -> Predict:
    def predict(images: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return np.asarray(model(torch.from_numpy(images)).numpy())

    return predict


def calibration_images(data: DetectionDataset, imgsz: tuple[int, int], count: int) -> list[NDArray[np.float32]]:
    """Letterboxed training images (1, 3, H, W)."""
    records = calibration_set(data, CalibrationConfig(images=count))
    return [batch.images for batch in batches(records, imgsz, 1)]


@click.command(help=__doc__)
@click.option("--model", "names", multiple=True, default=("yolov6lite_s", "yolov6lite_m"), show_default=True)
@click.option("--imgsz", default=320, show_default=True)
@click.option("--images", "count", default=128, show_default=True, help="Calibration images.")
@click.option("--keep-float", "keep", multiple=True, help="Layers that stay in float: ids or globs.")
@click.option("--out", type=Path, default=RESULTS, show_default=True)
def main(names: tuple[str, ...], imgsz: int, count: int, keep: tuple[str, ...], out: Path) -> None:
    shared = Path(os.environ.get("REPQ_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    data = shared / "data" / "coco128" / "data.yaml"
    if not data.is_file():
        click.echo(f"skipped: the reference material is not at {shared} (set REPQ_SHARED to its folder)", err=True)
        sys.exit(0)
    size = (imgsz, imgsz)
    images = calibration_images(load_dataset(data, "train"), size, count)
    val = load_dataset(data, "val")
    rows: list[Row] = []
    for name in names:
        with tempfile.TemporaryDirectory() as scratch:
            checkpoint = shared / "checkpoints" / f"{name}_coco.pt"
            for label, precision, predict in candidates(checkpoint, images, size, keep, Path(scratch)):
                accuracy = evaluate(predict, val, size, EvalConfig(), on_terminal)
                row: Row = {"model": name, "how": label, "convolutions": precision}
                rows.append(row | {"ap": accuracy.ap, "ap50": accuracy.ap50})
                click.echo(f"{name:14} {label:44} {precision:26} AP {accuracy.ap:.4f}  AP50 {accuracy.ap50:.4f}")
    write(rows, out, imgsz, count, len(val.records), keep)


def write(rows: list[Row], out: Path, imgsz: int, count: int, images: int, keep: tuple[str, ...]) -> None:
    """Write the rows as JSON and as a table."""
    environment = capture_environment()
    lines = [
        f"# AP in INT8, {imgsz}x{imgsz}, {images} COCO val2017 images, {count} calibration images",
        "",
        f"Kept in float by repq: {', '.join(keep) or 'nothing'}. {environment.cpu}; "
        + ", ".join(f"{name} {version}" for name, version in environment.libraries.items()),
        "",
        "| model | how | convolutions that run as | AP | AP50 |",
        "|---|---|---|---|---|",
        *(f"| {r['model']} | {r['how']} | {r['convolutions']} | {r['ap']:.4f} | {r['ap50']:.4f} |" for r in rows),
    ]
    out.mkdir(parents=True, exist_ok=True)
    stem = f"{datetime.date.today():%Y-%m-%d}-accuracy-coco128-{imgsz}"
    values = {"rows": rows, "keep_float": keep, "environment": environment.model_dump(mode="json")}
    (out / f"{stem}.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    (out / f"{stem}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
