"""The whole job in one command, once or in several variants."""

from __future__ import annotations

import json
from pathlib import Path

import click

from repq.cli.options import Shell, Size


@click.command()
@click.argument("recipe", type=Path)
@click.option("--work", type=Path, help="Run folder.  [default: runs/NAME]")
@click.option("--weights", type=Path, help="Checkpoint instead of the recipe's.")
@click.option("--data", type=Path, help="data.yaml instead of the recipe's.")
@click.option("--imgsz", type=Size(), help="640 or HEIGHTxWIDTH instead of the recipe's.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override: ptq.calibration.images=256")
@click.option("--device", help="Instead of the recipe's: cpu, cuda …")
@click.option("--seed", type=int, help="Instead of the recipe's.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
def run(
    recipe: Path, work: Path | None, weights: Path | None, data: Path | None, imgsz: tuple[int, int] | None,
    overrides: tuple[str, ...], device: str | None, seed: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Run a whole recipe, from weights or data to a report.

    Stages: train or import, fuse, quantize, export, build, check, evaluate, time, report.
    What is already there is reused; a killed run goes on where it stopped.
    """
    from repq.pipeline import run_recipe
    from repq.recipe import load_recipe
    from repq.report.text import run_table

    given = _flags(weights=weights, data=data, imgsz=imgsz, device=device, seed=seed)
    loaded = load_recipe(recipe, [*overrides, *given])
    shell = Shell(as_json)
    outcome = run_recipe(loaded, work or Path("runs") / loaded.name, progress=shell.progress, log=shell.log)
    values = {
        **outcome.headline,
        "report": str(outcome.report),
        "artifacts": {name: str(artifact.folder) for name, artifact in outcome.artifacts.items()},
        "reused": [name for name, artifact in outcome.artifacts.items() if artifact.reused],
    }
    shell.finish(values, lambda: run_table(outcome.headline) + f"\nreport: {outcome.report}")


@click.command()
@click.argument("ablation", type=Path)
@click.option("--work", type=Path, help="Folder of all runs.  [default: runs/NAME]")
@click.option("--weights", type=Path, help="Checkpoint instead of the recipes'.")
@click.option("--data", type=Path, help="data.yaml instead of the recipes'.")
@click.option("--imgsz", type=Size(), help="640 or HEIGHTxWIDTH instead of the recipes'.")
@click.option("--seeds", type=int, multiple=True, help="Instead of the file's; repeat for several.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override in all variants: train.epochs=9")
@click.option("--device", help="Instead of the recipes': cpu, cuda …")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
def ablation(
    ablation: Path, work: Path | None, weights: Path | None, data: Path | None, imgsz: tuple[int, int] | None,
    seeds: tuple[int, ...], overrides: tuple[str, ...], device: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Run the variants of a recipe with several seeds.

    Ends with one table, mean and spread, in WORK/ablation.md and ablation.json. What variants have in common is made
    once; a killed ablation goes on where it stopped.
    """
    from repq.pipeline.ablation import run_ablation
    from repq.recipe import load_ablation
    from repq.report.ablation import ablation_table

    flags = _flags(weights=weights, data=data, imgsz=imgsz, device=device)
    loaded, trials = load_ablation(ablation, [*overrides, *flags], seeds)
    shell = Shell(as_json)
    folder = work or Path("runs") / loaded.name
    report = run_ablation(loaded.name, trials, folder, progress=shell.progress, log=shell.log)
    shell.finish({**report.values(), "out": str(folder)}, lambda: ablation_table(report))


def _flags(
    *, weights: Path | None, data: Path | None, imgsz: tuple[int, int] | None, device: str | None,
    seed: int | None = None,
) -> list[str]:  # fmt: skip
    """Flags that were given, as overrides of the recipe."""
    values = {
        "weights": weights and str(weights.resolve()),
        "data.path": data and str(data.resolve()),
        "imgsz": imgsz and list(imgsz),
        "device": device,
        "seed": seed,
    }
    return [f"{key}={json.dumps(value)}" for key, value in values.items() if value is not None]
