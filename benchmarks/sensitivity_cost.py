"""What layer-wise sensitivity costs, in CPU seconds, beside what it is measured against.

- The three local measures together, over one fake-quantized forward pass of the same images. Goal: at most 4.
- The AP sweep with replays, over evaluating each layer from scratch. Goal: at most 0.6. Layers are sampled evenly, and
  both ways are timed on the same ones, in turns.

CPU time of the process, one thread: other processes on the machine change it little.

    python benchmarks/sensitivity_cost.py --weights model.pt --data data.yaml --imgsz 320
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch

from repq.data import DetectionDataset, batches, load_dataset
from repq.evaluate import Matcher, evaluate
from repq.layers import LayerId
from repq.model import Detector, layer_ids, load_checkpoint
from repq.quant import quantize, quantizing
from repq.quant.sensitivity import ap_with_changes, local_errors
from repq.recipe import CalibrationConfig, EvalConfig, PtqConfig
from repq.reparam import fuse


def cpu_seconds(run: Callable[[], object]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


def from_scratch(
    model: Detector, layers: list[LayerId], dataset: DetectionDataset, imgsz: tuple[int, int], config: EvalConfig
) -> None:
    for layer in layers:
        with torch.inference_mode(), quantizing(model, {layer}):
            evaluate(lambda images: model(torch.from_numpy(images)).numpy(), dataset, imgsz, config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--group", type=int, default=16, help="layers that share a recorded forward pass")
    parser.add_argument("--every", type=int, default=8, help="time every so many layers in the AP sweep")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)

    imgsz, config = (options.imgsz, options.imgsz), EvalConfig(batch=options.batch)
    train = load_dataset(options.data, "train")
    dataset = train.subset(train.records[: options.images])
    images = [batch.images for batch in batches(dataset, imgsz, options.batch)]
    fused = fuse(load_checkpoint(options.weights).model)
    model = quantize(fused, images, PtqConfig(calibration=CalibrationConfig(method="max"))).model.eval()
    layers = layer_ids(model)
    sampled = list(layers[options.every // 2 :: options.every])
    matcher = Matcher(dataset)

    @torch.inference_mode()
    def forward() -> None:
        for batch in images:
            model(torch.from_numpy(batch))

    def replayed() -> None:
        for start in range(0, len(sampled), options.group):
            ap_with_changes(
                model,
                "only_int8",
                sampled[start : start + options.group],
                dataset,
                lambda: batches(dataset, imgsz, options.batch),
                config,
                matcher,
            )

    jobs: dict[str, Callable[[], object]] = {
        "fake-quantized forward": forward,
        "local measures": lambda: local_errors(model, layers, images),
        "AP from scratch": lambda: from_scratch(model, sampled, dataset, imgsz, config),
        "AP by replay": replayed,
    }
    forward()
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(options.rounds):
        for name, job in jobs.items():
            seconds[name].append(cpu_seconds(job))

    def ratio(one: str, other: str) -> float:
        return float(np.median([a / b for a, b in zip(seconds[one], seconds[other], strict=True)]))

    figures = {
        "cpu_s": {name: round(median(values), 3) for name, values in seconds.items()},
        "local_over_forward": round(ratio("local measures", "fake-quantized forward"), 2),
        "replay_over_scratch": round(ratio("AP by replay", "AP from scratch"), 3),
        "layers": len(layers),
        "sampled": len(sampled),
        "images": len(dataset),
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
