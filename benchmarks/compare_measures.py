"""Which measure picks the layers best: AP in the engine with the top k layers of each measure in float.

(YOLOv6 report, table 21, asks the same of mAP, MSE, SNR and cosine similarity.) The measures are taken on train images,
AP on val images in OpenVINO. Everything measured is kept in a journal, so that a run that was stopped goes on.

    python benchmarks/compare_measures.py --weights yolov6lite_s_coco.pt --data coco128/data.yaml --imgsz 320
"""

from __future__ import annotations

import datetime
import json
import tempfile
from pathlib import Path

import click
from onnx import ModelProto

from repq.bench import plan_engines
from repq.data import DetectionDataset, batches, calibration_set, load_dataset
from repq.evaluate import evaluate
from repq.export import export_float
from repq.layers import LayerId, QuantPlan
from repq.machine.environment import capture_environment
from repq.model import Detector, load_checkpoint
from repq.progress import on_terminal
from repq.quant import quantize, scale_table
from repq.quant.sensitivity import MEASURES, Entry, Journal, Measurement, collect, measure_layers, top_plan
from repq.recipe import BenchConfig, CalibrationConfig, EvalConfig, ExportConfig, PtqConfig, SensitivityConfig
from repq.reparam import fuse
from repq.results import Sensitivity
from repq.scales import ScaleTable

RESULTS = Path(__file__).parent / "results"
COUNTS = (6, 12, 24)
Row = dict[str, str | int | float | None]


def engine_ap(
    graph: ModelProto,
    scales: ScaleTable,
    plan: QuantPlan,
    val: DetectionDataset,
    imgsz: tuple[int, int],
    journal: Journal,
) -> float:
    """AP on ``val`` of the OpenVINO engine with these layers in INT8."""
    item = ",".join(plan.float_)
    known = journal.entries().get(("engine", item))
    if known is not None:
        return known.values["ap"]
    with plan_engines("openvino", graph, scales, [plan.int8], BenchConfig(threads=(1,))) as (engine,):
        output = engine.manifest.outputs[0].name
        ap = evaluate(lambda images: engine.infer(images)[output], val, imgsz, EvalConfig(), on_terminal).ap
    journal.append(Entry("engine", item, {"ap": ap}, 0.0))
    return ap


def sensitivity_of(
    model: Detector, train: DetectionDataset, imgsz: tuple[int, int], ap_images: int, folder: Path
) -> tuple[Sensitivity, Journal]:
    """All measures of all layers on train images."""
    config = SensitivityConfig(ap=("only_int8", "only_float"), ap_images=ap_images)
    records = calibration_set(train, CalibrationConfig(images=config.images))
    job = Measurement(model, records, imgsz, config, EvalConfig(), train.subset(train.records[:ap_images]))
    journal = Journal(folder, job.key)
    measure_layers(job, journal, progress=on_terminal)
    return collect(job, journal), journal


@click.command(help=__doc__)
@click.option("--weights", type=Path, required=True)
@click.option("--data", type=Path, required=True)
@click.option("--imgsz", default=320, show_default=True)
@click.option("--scheme", "schemes", multiple=True, default=("symmetric", "asymmetric"), show_default=True)
@click.option("--ap-images", default=32, show_default=True, help="Train images for the AP sweeps.")
@click.option("--journal", "folder", type=Path, help="Folder to go on from.  [default: a new one]")
@click.option("--out", type=Path, default=RESULTS, show_default=True)
def main(
    weights: Path, data: Path, imgsz: int, schemes: tuple[str, ...], ap_images: int, folder: Path | None, out: Path
) -> None:
    size = (imgsz, imgsz)
    train, val = load_dataset(data, "train"), load_dataset(data, "val")
    fused = fuse(load_checkpoint(weights).model)
    records = calibration_set(train, CalibrationConfig())
    folder = folder or Path(tempfile.mkdtemp())
    rows: list[Row] = []
    for scheme in schemes:
        settings = PtqConfig(scheme=scheme)  # type: ignore[arg-type]
        model = quantize(fused, (batch.images for batch in batches(records, size, 16)), settings).model.eval()
        measured, journal = sensitivity_of(model, train, size, ap_images, folder / scheme)
        graph, scales = export_float(model, size, ExportConfig(batch=None)), scale_table(model)
        layers = tuple(LayerId(row.layer) for row in measured.layers)
        macs, total = {row.layer: row.macs for row in measured.layers}, sum(row.macs for row in measured.layers)
        plans = [("none", QuantPlan(int8=layers))]
        plans += [(name, top_plan(measured, name, count)) for name in MEASURES for count in COUNTS]
        for name, plan in plans:
            share = 1 - sum(macs[layer] for layer in plan.float_) / total
            ap = engine_ap(graph, scales, plan, val, size, journal)
            kind = name if name in measured.seconds else "local" if name.startswith("local") else "end_to_end"
            seconds = measured.seconds.get(kind) if name != "none" else None
            rows.append(
                {"scheme": scheme, "measure": name, "float_layers": len(plan.float_), "int8_macs_share": share,
                 "ap": ap, "seconds": seconds}
            )  # fmt: skip
            click.echo(f"{scheme:11} {name:15} top {len(plan.float_):3}  {share:.1%} INT8  AP {ap:.4f}")
    write(rows, weights, imgsz, len(val), ap_images, out)


def write(rows: list[Row], weights: Path, imgsz: int, images: int, ap_images: int, out: Path) -> None:
    """Write the rows as JSON and as a table."""
    environment = capture_environment()
    lines = [
        f"# Layers kept in float by each measure: {weights.stem}, {imgsz}x{imgsz}",
        "",
        f"AP in OpenVINO on {images} val images, calibrated by MSE on 128 train images; similarities on 16 of them, AP "
        f"sweeps on {ap_images}. Seconds are those of all measures of a kind (MSE, SNR and cosine come together), at a "
        f"load of {environment.load_average:.1f}. {environment.cpu}.",
        "",
        "| scheme | measure | float layers | multiply-adds INT8 | AP | seconds |",
        "|---|---|---|---|---|---|",
        *(
            f"| {r['scheme']} | {r['measure']} | {r['float_layers']} | {r['int8_macs_share']:.1%} | {r['ap']:.4f} | "
            f"{'' if r['seconds'] is None else format(r['seconds'], '.0f')} |"
            for r in rows
        ),
    ]
    out.mkdir(parents=True, exist_ok=True)
    stem = f"{datetime.date.today():%Y-%m-%d}-measures-{weights.stem}-{imgsz}"
    values = {"rows": rows, "ap_images": ap_images, "environment": environment.model_dump(mode="json")}
    (out / f"{stem}.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    (out / f"{stem}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
