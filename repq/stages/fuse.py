"""Fusing as a stage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from repq.files import scratch_folder
from repq.machine.torch_device import resolve_device
from repq.recipe import DemoConfig, FuseConfig
from repq.results import FusionReport
from repq.stages.context import Context
from repq.stages.stage import Job, Section, Stage

if TYPE_CHECKING:
    from repq.data import DetectionDataset
    from repq.model import Spec


def fuse_checkpoint(weights: Path, out: Path, config: FuseConfig, context: Context) -> FusionReport:
    """Fuse a checkpoint, prove it on images and write it to ``out``. Without data, drawn images serve as proof.

    Raises:
        CheckpointError: the file cannot be read, or is quantized already.
        ToleranceError: a block or the whole model differs by more than the tolerance; nothing is written.
    """
    import torch

    from repq.model import save_checkpoint
    from repq.reparam import fuse_with_proof

    dataset = None if context.data is None else context.val_set()
    opened = context.open_float(weights)
    model = opened.model.to(resolve_device(context.device))
    images = _proof_images(dataset, model.spec, config.images, context)
    fused, report = fuse_with_proof(model, torch.from_numpy(images).to(context.device), config.tolerance)
    save_checkpoint(out, fused.cpu(), names=opened.names, metadata=opened.metadata)
    return report


def _proof_images(dataset: DetectionDataset | None, spec: Spec, count: int, context: Context) -> NDArray[np.float32]:
    from repq.data import batches, load_dataset, make_demo_set

    if dataset is not None:
        return next(iter(batches(dataset, context.imgsz, count, preprocessing=spec.preprocessing))).images
    context.log("no --data given: the proof uses drawn images")
    with scratch_folder() as folder:
        config = DemoConfig(train_images=1, val_images=count, seed=context.seed)
        drawn = load_dataset(make_demo_set(folder / "demo", config), "val")
        return next(iter(batches(drawn, context.imgsz, count, preprocessing=spec.preprocessing))).images


def _fuse(job: Job) -> FusionReport:
    config = job.section("fuse", FuseConfig)
    report = fuse_checkpoint(job.weights, job.payload / "fused.safetensors", config, job.context)
    job.log(f"  {len(report.blocks)} blocks, error {report.max_rel_error:.1e} of the output's range")
    return report


STAGE = Stage(
    "fuse", _fuse, {"fuse": Section(FuseConfig)}, ("weights", "imgsz", "graph", "device"),
    reads=("train/weights.safetensors", "prune/pruned.safetensors"), splits=("val",), result=FusionReport,
)  # fmt: skip
