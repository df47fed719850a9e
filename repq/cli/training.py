"""Commands on float checkpoints: train and fuse."""

from __future__ import annotations

from typing import Annotated

from repq.cli.generated import Offer
from repq.cli.options import (
    SQUARE,
    AnySeed,
    CheckpointOut,
    Data,
    DataSplit,
    Imgsz,
    MaybeData,
    OwnSize,
    TorchDevice,
    Weights,
)
from repq.cli.shell import Shell
from repq.printable import command_line
from repq.recipe import DeployConfig, EvalConfig, FuseConfig, GraphConfig, PruneConfig, TrainConfig
from repq.recipe.base import AnyPath, Seed, setting

TRAINED = ("weights.safetensors", "last.safetensors", "results.csv", "train.json", "scales.safetensors", "*.svg",
           "state*", "board")  # fmt: skip
TrainOut = Annotated[AnyPath, setting(flag="-o --out", writes=TRAINED, help="Folder for the weights and the report.")]


def train_command(
    shell: Shell, data: Data, out: TrainOut,
    train: Annotated[
        TrainConfig,
        Offer("model", "weights", "rep_scales", "distill.teacher", "epochs", "batch", "precision", "loader"),
    ],
    eval: Annotated[EvalConfig, Offer("batch")], deploy: DeployConfig,
    imgsz: Imgsz = SQUARE, device: TorchDevice = "cpu", seed: AnySeed = 0,
) -> None:  # fmt: skip
    """The folder OUT gets weights.safetensors (the best), last.safetensors, results.csv, train.json, drawings of
    precision and recall and of confused classes, and from a hyper-search model (…_hs) scales.safetensors for the
    RepOptimizer training of the matching …_opt model. The same command goes on where it was stopped. Under torchrun
    several processes share the work.
    """
    from repq.report.text import train_table
    from repq.stages import Context, train_detector

    context = Context(imgsz, data, eval, device=device, seed=seed, progress=shell.progress, log=shell.log)
    report = train_detector(out, out / "state", train, context, deploy=deploy)
    size = f"{imgsz[0]}x{imgsz[1]}"
    then = command_line("repq", "run", "ptq", "--weights", out / "weights.safetensors", "--data", data, "--imgsz", size)
    shell.finish({**report.values(), "out": str(out)}, lambda: train_table(report), next=then)


def fuse_command(
    shell: Shell, weights: Weights, out: CheckpointOut, fuse: FuseConfig, data: MaybeData = None,
    split: DataSplit = "val",
    imgsz: OwnSize = None, device: TorchDevice = "cpu",
    seed: Annotated[Seed, setting(flag="--seed", excludes="--data", help="Seed of the drawn images.")] = 0,
) -> None:  # fmt: skip
    """Every block becomes one plain convolution; the error is measured on images: drawn ones without --data."""
    from repq.report.text import fusion_table
    from repq.stages import fuse_checkpoint

    context = shell.context(weights, imgsz, data, val_split=split, device=device, seed=seed)
    report = fuse_checkpoint(weights, out, fuse, context)
    shell.finish({**report.values(), "out": str(out)}, lambda: fusion_table(report))


def prune_command(
    shell: Shell, weights: Weights, out: CheckpointOut,
    prune: Annotated[
        PruneConfig,
        Offer(
            "ratio", "target_macs", "latency", "max_ms", "latency_ratio", "importance", "scope", "round",
            "unstructured", "recovery.epochs", "recovery.task_weight",
        ),
    ],
    eval: Annotated[EvalConfig, Offer("none")], graph: GraphConfig, data: MaybeData = None, split: DataSplit = "val",
    imgsz: OwnSize = None, device: TorchDevice = "cpu",
    seed: Annotated[Seed, setting(flag="--seed", needs="--epochs", help="Seed of the training after it.")] = 0,
    evaluate: Annotated[
        bool, setting(flag="--eval/--no-eval", needs="--data", help="Measure AP before and after.")
    ] = True,
) -> None:  # fmt: skip
    """Channels that are coupled go together: by additions, concatenations, shuffles and depthwise layers. What is
    written loads, evaluates, quantizes and exports like any fused model. With --epochs it learns on the train split to
    answer as the whole model does; that needs no labels, and the same command goes on where it was stopped. The sweep
    of --scope sensitivity is shown in OUT.sweep.
    """
    from repq.report.text import prune_table
    from repq.stages import prune_checkpoint, write_sweep

    context = shell.context(weights, imgsz, data, eval, val_split=split, graph=graph, device=device, seed=seed)
    state = out.with_name(f"{out.name}.state")
    report = prune_checkpoint(weights, out, prune, context, evaluate=evaluate, state=state)
    if any(group.sweep for group in report.groups):
        write_sweep(report, out.with_name(f"{out.name}.sweep"), data=str(data), imgsz=context.imgsz, log=shell.log)
    shell.finish({**report.values(), "out": str(out)}, lambda: prune_table(report))
