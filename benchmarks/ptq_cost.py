"""What post-training quantization costs: plain, and with the settings that the tool picks, beside NNCF's ``quantize``.

Seconds by the clock and of CPU time of one process, from an opened model to a quantized one, images loaded on the way;
NNCF gets them loaded, and the float graph. A tree without this script is timed with PYTHONPATH. Without the reference
material (REPQ_SHARED) there is nothing to time, and the script says so.

    python benchmarks/ptq_cost.py
    python benchmarks/ptq_cost.py --model onnx/yolox_nano_416.onnx --preset yolox --imgsz 416
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
from peers import NncfPeer

import repq
from repq.api.opening import load
from repq.data import batches, calibration_set, load_dataset
from repq.recipe import CalibrationConfig, GraphConfig


def timed(label: str, run: Callable[[], Any]) -> Any:
    """Run it and print what it took, with the load of the machine and the process's peak of memory so far."""
    clock, cpu = time.perf_counter(), time.process_time()
    result = run()
    row = {
        "what": label, "s": round(time.perf_counter() - clock, 1), "cpu_s": round(time.process_time() - cpu, 1),
        "load": round(os.getloadavg()[0], 1),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }  # fmt: skip
    click.echo(json.dumps(row))
    return result


@click.command(help=__doc__)
@click.option("--model", default="checkpoints/yolov6lite_s_coco.pt", show_default=True)
@click.option("--preset", default=None, help="Of an ONNX file.")
@click.option("--data", default="coco128", show_default=True)
@click.option("--imgsz", default=320, show_default=True)
@click.option("--images", default=128, show_default=True)
@click.option("--scheme", type=click.Choice(["symmetric", "asymmetric"]), default="symmetric", show_default=True)
def main(model: str, preset: str | None, data: str, imgsz: int, images: int, scheme: str) -> None:
    shared = Path(os.environ.get("REPQ_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    yaml = shared / "data" / data / "data.yaml"
    if not yaml.is_file():
        click.echo(f"skipped: the reference material is not at {shared} (set REPQ_SHARED to its folder)", err=True)
        sys.exit(0)
    click.echo(f"{model} at {imgsz}, {images} images, {scheme}; {Path(repq.__file__).parent}")
    graph = GraphConfig() if preset is None else GraphConfig(preset=preset)
    opened = load(shared / model, engine="torch" if model.endswith(".onnx") else None, graph=graph)
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "float.onnx"
        opened.fuse().export(plain, imgsz=imgsz)  # its structure is in the cache from now on
        timed("plain", lambda: opened.quantize(yaml, imgsz=imgsz, limit=images, scheme=scheme, auto=False))  # type: ignore[arg-type]
        best = timed("auto", lambda: opened.quantize(yaml, imgsz=imgsz, limit=images, scheme=scheme, auto=True))  # type: ignore[arg-type]
        for trial in best.report.trials:
            click.echo(
                f"  {trial.head_snr_db:7.3f} dB {'*' if trial.kept else ' '} {trial.name} {trial.ap_train or ''}"
            )
        if find_spec("nncf") is None:
            click.echo("NNCF is left out: it is not installed", err=True)
            return
        records = calibration_set(load_dataset(yaml, "train"), CalibrationConfig(images=images))
        form = opened.preprocessing
        loaded = [batch.images for batch in batches(records, (imgsz, imgsz), 1, preprocessing=form)]
        timed("NNCF", lambda: NncfPeer(plain, loaded, "mixed"))


if __name__ == "__main__":
    main()
