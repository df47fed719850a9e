"""Structured pruning: from weights to smaller weights, and what that cost."""

from __future__ import annotations

from pathlib import Path

from repq.api.fitting import fitted
from repq.api.images import with_sizes
from repq.api.opening import save_weights
from repq.api.pruning import pruned
from repq.api.quantizing import open_float
from repq.log import Log, quiet
from repq.progress import Progress, silent
from repq.recipe import EvalConfig, GraphConfig, PruneConfig
from repq.results import PruneReport
from repq.stages.data import labelled, read_data


def prune_checkpoint(
    weights: Path,
    out: Path,
    config: PruneConfig,
    *,
    data: Path | None = None,
    splits: tuple[str, str] = ("train", "val"),
    imgsz: tuple[int, int] = (640, 640),
    eval_config: EvalConfig = EvalConfig(),
    graph: GraphConfig = GraphConfig(),
    device: str = "cpu",
    seed: int = 0,
    evaluate: bool = True,
    progress: Progress = silent,
    log: Log = quiet,
) -> PruneReport:
    """Prune a float checkpoint or graph (it is fused first), let it recover by imitation of itself, and write it.

    Args:
        out: .safetensors, or .onnx for a graph of size ``imgsz``.
        data: images to rank channels by, to train on and to evaluate by; without it only weights are looked at.

    Raises:
        CheckpointError: the weights are quantized.
        RepqError: the target cannot be reached, or what ranks channels needs data or labels that are not there.
    """
    trained = open_float(weights, log, imgsz, graph)
    train_set = val_set = None
    if data is not None:
        train_set = fitted(with_sizes(read_data(data, splits[0], log, progress)), trained.names, weights.name, log)
        val_set = labelled(data, splits[1], log, progress) if evaluate else None
        val_set = None if val_set is None else fitted(val_set, trained.names, weights.name, log)
    smaller, report = pruned(
        trained, config, train_set=train_set, val_set=val_set, imgsz=imgsz, eval_config=eval_config, device=device,
        seed=seed, progress=progress, log=log,
    )  # fmt: skip
    save_weights(out, smaller, imgsz)
    return report
