"""AP of FP32 and INT8 on real images: repq, NNCF, ONNX Runtime's own quantizer and ModelOpt, in one run and in engines.

Every tool gets the same float graph and the same calibration images and is asked to quantize all convolutions; repq
leaves out what is none but in form, means over bins. It stands there twice: plain, and with the corrections that
``repq ptq --auto`` picks on those images. A tool that is not
installed is left out with a note. The reference material lies beside the project, or where REPQ_SHARED says; without
it there is nothing to compare, and the script says so.

    python benchmarks/compare_accuracy.py
    python benchmarks/compare_accuracy.py --checkpoint yolov6n_bccd_repvgg --data bccd --imgsz 256
    python benchmarks/compare_accuracy.py --checkpoint yolox_nano_416.onnx --preset yolox --imgsz 416 --conf 0.01
"""

from __future__ import annotations

import datetime
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from peers import NncfOnnxPeer, NncfPeer, QuantizeStaticPeer, modelopt_int8, summary

from repq.api.model import Model
from repq.api.opening import load
from repq.api.quantizing import kept_float
from repq.data import DetectionDataset, batches, calibration_set, load_dataset
from repq.engine import Engine, build
from repq.evaluate import Predict, evaluate
from repq.export import export_float, export_quantized, save_onnx
from repq.files import write_text
from repq.layout import OutputLayout
from repq.machine.environment import capture_environment
from repq.model import Detector
from repq.preprocessing import Preprocessing
from repq.progress import on_terminal
from repq.quant import quantize, quantize_at_best
from repq.quant.scaling import Scheme
from repq.recipe import CalibrationConfig, EngineName, EvalConfig, ExportConfig, GraphConfig, PtqConfig

RESULTS = Path(__file__).parent / "results"
ENGINES: tuple[EngineName, ...] = ("openvino", "onnxruntime")
SCHEMES: tuple[Scheme, ...] = ("symmetric", "asymmetric")
Row = dict[str, str | float]


def candidates(
    model: Detector, images: list[NDArray[np.float32]], imgsz: tuple[int, int], folder: Path, batch: int | None
) -> Iterator[tuple[str, str, str, Predict]]:
    """Every model to evaluate: who made it and where it runs, the precision of its convolutions, and how to run it."""
    config = ExportConfig(batch=batch)
    plain = folder / "float.onnx"
    save_onnx(plain, export_float(model, imgsz, config))
    yield from in_engines("FP32", plain)
    tensors = [torch.from_numpy(image) for image in images]
    shown = len(tensors) - len(tensors) // 4  # the rest tells --auto what a correction gains
    for scheme in SCHEMES:
        settings = PtqConfig(scheme=scheme, keep_float=kept_float(model, PtqConfig()))
        plainly = quantize(model, tensors, settings, on_terminal)
        best = quantize_at_best(model, tensors[:shown], tensors[shown:], settings, progress=on_terminal)
        for label, quantized in ((f"repq, {scheme}", plainly), (f"repq --auto, {scheme}", best)):
            path = folder / f"{label}.onnx"
            save_onnx(path, export_quantized(quantized.model, imgsz, config))
            yield from in_engines(label, path)
    for preset in ("performance", "mixed"):
        peer = NncfPeer(plain, images, preset)
        yield peer.label, "openvino", summary(peer.layers()), peer.infer(2)
    onnx_peer = NncfOnnxPeer(plain, images, folder)
    yield onnx_peer.label, "onnxruntime", summary(onnx_peer.layers()), onnx_peer.infer(2)
    ort_peer = QuantizeStaticPeer(plain, images, folder)
    yield ort_peer.label, "onnxruntime", summary(ort_peer.layers()), ort_peer.infer(2)
    try:
        path = modelopt_int8(plain, images, folder)
    except ImportError as error:
        click.echo(f"ModelOpt is left out: {error}", err=True)
    else:
        yield from in_engines("ModelOpt INT8 (entropy)", path)


def in_engines(label: str, path: Path) -> Iterator[tuple[str, str, str, Predict]]:
    for name in ENGINES:
        engine = build(name, path)
        output = engine.manifest.outputs[0].name
        yield label, name, summary(engine.describe().layers), partial(_output_of, engine, output)


def _output_of(engine: Engine, output: str, images: NDArray[np.float32]) -> NDArray[np.float32]:
    return engine.infer(images)[output]


def calibration_images(
    data: DetectionDataset, imgsz: tuple[int, int], count: int, form: Preprocessing
) -> list[NDArray[np.float32]]:
    """Letterboxed training images (1, 3, H, W)."""
    records = calibration_set(data, CalibrationConfig(images=count))
    return [batch.images for batch in batches(records, imgsz, 1, preprocessing=form)]


def opened(shared: Path, name: str, preset: str | None) -> Model:
    """A checkpoint, or an ONNX file, of the reference material; fused."""
    if name.endswith(".onnx"):
        return load(shared / "onnx" / name, engine="torch", graph=GraphConfig(preset=preset))
    return load(shared / "checkpoints" / f"{name}.pt").fuse()


@click.command(help=__doc__)
@click.option("--checkpoint", "names", multiple=True, default=("yolov6lite_s_coco", "yolov6lite_m_coco"),
              show_default=True)  # fmt: skip
@click.option("--data", "data_name", default="coco128", show_default=True)
@click.option("--imgsz", default=320, show_default=True)
@click.option("--preset", default=None, help="How images become the input of an ONNX file.")
@click.option("--conf", default=EvalConfig().confidence, show_default=True, help="Score from which boxes count.")
@click.option("--images", "count", default=128, show_default=True, help="Calibration images.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(
    names: tuple[str, ...], data_name: str, imgsz: int, preset: str | None, conf: float, count: int, out: Path
) -> None:
    shared = Path(os.environ.get("REPQ_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    data = shared / "data" / data_name / "data.yaml"
    if not data.is_file():
        click.echo(f"skipped: the reference material is not at {shared} (set REPQ_SHARED to its folder)", err=True)
        sys.exit(0)
    size = (imgsz, imgsz)
    train, val = load_dataset(data, "train"), load_dataset(data, "val")
    for name in names:
        rows: list[Row] = []
        handle = opened(shared, name, preset)
        assert handle.weights is not None
        model, layout, form = handle.weights.model, handle.layout, handle.preprocessing
        batch = 1 if name.endswith(".onnx") else None  # a file's own batch may be fixed
        images = calibration_images(train, size, count, form)
        config = EvalConfig(confidence=conf, **({"batch": batch} if batch else {}))

        def detections(predict: Predict, images: NDArray[np.float32], layout: OutputLayout = layout) -> Any:
            return layout.decode([predict(images)], size)

        with tempfile.TemporaryDirectory() as scratch:
            for label, engine, precision, predict in candidates(model, images, size, Path(scratch), batch):
                accuracy = evaluate(
                    partial(detections, predict), val, size, config, on_terminal, layout=layout.decoded,
                    preprocessing=form,
                )  # fmt: skip
                row: Row = {"how": label, "engine": engine, "convolutions": precision}
                rows.append(row | {"ap": accuracy.ap, "ap50": accuracy.ap50})
                click.echo(f"{name:20} {label:40} {engine:12} {precision:26} AP {accuracy.ap:.4f}")
        stem = out / f"{datetime.date.today():%Y-%m-%d}-accuracy-{name.removesuffix('.onnx')}-{imgsz}"
        write(rows, stem, name, imgsz, count, len(val.records))


def write(rows: list[Row], stem: Path, name: str, imgsz: int, count: int, images: int) -> None:
    """Write the rows as JSON and as a table."""
    environment = capture_environment()
    lines = [
        f"# AP in INT8: {name}, {imgsz}x{imgsz}, {images} val images, {count} calibration images",
        "",
        f"{environment.cpu}; " + ", ".join(f"{name} {version}" for name, version in environment.libraries.items()),
        "",
        "| how | engine | convolutions that run as | AP | AP50 |",
        "|---|---|---|---|---|",
        *(f"| {r['how']} | {r['engine']} | {r['convolutions']} | {r['ap']:.4f} | {r['ap50']:.4f} |" for r in rows),
    ]
    values = {"checkpoint": name, "rows": rows, "environment": environment.model_dump(mode="json")}
    write_text(stem.with_suffix(".json"), json.dumps(values, indent=1) + "\n")
    write_text(stem.with_suffix(".md"), "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
