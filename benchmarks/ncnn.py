"""NCNN on this CPU in FP32, FP16 and INT8, one thread, side by side in one run; the weights are random.

python benchmarks/ncnn.py                      # YOLOv6-N (v2), 640x640
"""

from __future__ import annotations

import datetime
import tempfile
from pathlib import Path

import click
from compare_int8_cpu import RESULTS, markdown, random_model, repq_model, smooth_noise
from torch import from_numpy

from repq.bench import bench
from repq.engine.ncnn import X86_NOTE
from repq.export import export_float, export_quantized, save_onnx
from repq.graph import to_fp16
from repq.quant import quantize
from repq.recipe import BenchConfig, CalibrationConfig, PtqConfig


@click.command(help=__doc__)
@click.option("--model", "name", default="yolov6n_v2", show_default=True)
@click.option("--imgsz", default=640, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--runs", default=5, show_default=True, help="Runs of each model in a round.")
def main(name: str, imgsz: int, rounds: int, runs: int) -> None:
    size = (imgsz, imgsz)
    model = random_model(name, size, 0)
    ptq = PtqConfig(scheme="symmetric", calibration=CalibrationConfig(method="max", images=2))
    int8 = quantize(model, [from_numpy(image) for image in smooth_noise(2, size, 1)], ptq).model
    plain, integers = export_float(model, size), export_quantized(int8, size)
    graphs = {"FP32": plain, "FP16": to_fp16(plain)[0], "INT8 and FP16": to_fp16(integers)[0]}
    with tempfile.TemporaryDirectory() as scratch:
        models = []
        for label, graph in graphs.items():
            path = Path(scratch) / f"{label}.onnx"
            save_onnx(path, graph)
            models.append(repq_model(label, "ncnn", path, Path(scratch)))
        config = BenchConfig(threads=(1,), warmup=2, rounds=rounds, runs_per_round=runs, end_to_end=False)
        report = bench(models, size, config, seed=0)
    times = [row.latency_ms_median for row in report.rows]
    text = (
        markdown(report, f"NCNN: {name} at {imgsz}x{imgsz}")
        + f"\nINT8 over FP16: {times[2] / times[1]:.2f}. {X86_NOTE}.\n"
    )
    stem = RESULTS / f"{datetime.date.today():%Y-%m-%d}-ncnn-{name}-{imgsz}"
    stem.with_suffix(".json").write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    stem.with_suffix(".md").write_text(text, encoding="utf-8")
    click.echo(text)


if __name__ == "__main__":
    main()
