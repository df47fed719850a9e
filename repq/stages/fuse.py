"""Fusing as a stage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from repq.api.quantizing import open_float
from repq.files import scratch_folder
from repq.log import Log, quiet
from repq.machine.torch_device import resolve_device
from repq.recipe import DemoConfig, FuseConfig, GraphConfig
from repq.results import FusionReport
from repq.stages.data import read_data
from repq.stages.stage import Job, Section, Stage

if TYPE_CHECKING:
    from repq.data import DetectionDataset
    from repq.model import Spec


def fuse_checkpoint(
    weights: Path,
    out: Path,
    config: FuseConfig,
    *,
    data: Path | None = None,
    split: str = "val",
    imgsz: tuple[int, int] = (640, 640),
    graph: GraphConfig = GraphConfig(),
    device: str = "cpu",
    seed: int = 0,
    log: Log = quiet,
) -> FusionReport:
    """Fuse a checkpoint, prove it on images and write it to ``out``. Without ``data``, drawn images serve as proof.

    Raises:
        CheckpointError: the file cannot be read, or is quantized already.
        ToleranceError: a block or the whole model differs by more than the tolerance; nothing is written.
    """
    import torch

    from repq.model import save_checkpoint
    from repq.reparam import fuse_with_proof

    dataset = None if data is None else read_data(data, split, log)
    opened = open_float(weights, log, imgsz, graph)
    model = opened.model.to(resolve_device(device))
    images = _proof_images(dataset, model.spec, imgsz, config.images, seed, log)
    fused, report = fuse_with_proof(model, torch.from_numpy(images).to(device), config.tolerance)
    save_checkpoint(out, fused.cpu(), names=opened.names, metadata=opened.metadata)
    return report


def _proof_images(
    dataset: DetectionDataset | None, spec: Spec, imgsz: tuple[int, int], count: int, seed: int, log: Log
) -> NDArray[np.float32]:
    from repq.data import batches, load_dataset, make_demo_set

    if dataset is not None:
        return next(iter(batches(dataset, imgsz, count, preprocessing=spec.preprocessing))).images
    log("no --data given: the proof uses drawn images")
    with scratch_folder() as folder:
        config = DemoConfig(train_images=1, val_images=count, seed=seed)
        dataset = load_dataset(make_demo_set(folder / "demo", config), "val")
        return next(iter(batches(dataset, imgsz, count, preprocessing=spec.preprocessing))).images


def _fuse(job: Job) -> FusionReport:
    recipe = job.recipe
    report = fuse_checkpoint(
        job.weights, job.payload / "fused.safetensors", job.section("fuse", FuseConfig), data=job.data,
        split=recipe.data.val, imgsz=recipe.imgsz, graph=recipe.graph, device=recipe.device, seed=recipe.seed,
        log=job.log,
    )  # fmt: skip
    job.log(f"  {len(report.blocks)} blocks, error {report.max_rel_error:.1e} of the output's range")
    return report


STAGE = Stage(
    "fuse", _fuse, {"fuse": Section(FuseConfig)}, ("weights", "imgsz", "graph", "device"),
    reads=("train/weights.safetensors", "prune/pruned.safetensors"), splits=("val",), result=FusionReport,
)  # fmt: skip
