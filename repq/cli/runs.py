"""The whole job in one command, once or in several variants."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from repq.cli.shell import Shell
from repq.recipe import load_ablation, load_recipe
from repq.recipe.base import AnyPath, Device, ImageSize, Seed, setting

RecipeFile = Annotated[AnyPath, setting(flag="RECIPE", help="YAML file.")]
AblationFile = Annotated[AnyPath, setting(flag="ABLATION", help="YAML file.")]
Work = Annotated[AnyPath | None, setting(flag="--work", writes=("*",), help="Run folder.  [default: runs/NAME]")]
OwnWeights = Annotated[AnyPath | None, setting(flag="--weights", help="Checkpoint instead of the recipe's.")]
OwnData = Annotated[AnyPath | None, setting(flag="--data", help="data.yaml instead of the recipe's.")]
OwnSize = Annotated[ImageSize | None, setting(flag="--imgsz", help="640 or HEIGHTxWIDTH instead of the recipe's.")]
OwnDevice = Annotated[Device | None, setting(flag="--device", help="Instead of the recipe's: cpu, cuda …")]
OwnSeed = Annotated[Seed | None, setting(flag="--seed", help="Instead of the recipe's.")]
Seeds = Annotated[tuple[Seed, ...], setting(flag="--seeds", help="Instead of the file's; repeat for several.")]
Overrides = Annotated[
    tuple[str, ...], setting(flag="--set", metavar="KEY=VALUE", help="Override: ptq.calibration.images=256")
]


def run_command(
    shell: Shell, recipe: RecipeFile, work: Work = None, weights: OwnWeights = None, data: OwnData = None,
    imgsz: OwnSize = None, overrides: Overrides = (), device: OwnDevice = None, seed: OwnSeed = None,
) -> None:  # fmt: skip
    """Stages: train or import, fuse, quantize, export, build, check, evaluate, time, report.
    What is already there is reused; a killed run goes on where it stopped.
    """
    from repq.pipeline import run_recipe
    from repq.report.text import run_table

    given = _overrides(weights=weights, data=data, imgsz=imgsz, device=device, seed=seed)
    loaded = load_recipe(recipe, [*overrides, *given])
    outcome = run_recipe(loaded, work or Path("runs") / loaded.name, progress=shell.progress, log=shell.log)
    values = {
        **outcome.headline,
        "report": str(outcome.report),
        "artifacts": {name: str(artifact.folder) for name, artifact in outcome.artifacts.items()},
        "reused": [name for name, artifact in outcome.artifacts.items() if artifact.reused],
    }
    shell.finish(values, lambda: run_table(outcome.headline) + f"\nreport: {outcome.report}")


def ablation_command(
    shell: Shell, ablation: AblationFile, work: Work = None, weights: OwnWeights = None, data: OwnData = None,
    imgsz: OwnSize = None, seeds: Seeds = (), overrides: Overrides = (), device: OwnDevice = None,
) -> None:  # fmt: skip
    """Ends with one table, mean and spread, in WORK/ablation.md and ablation.json. What variants have in common is made
    once; a killed ablation goes on where it stopped.
    """
    from repq.pipeline.ablation import run_ablation
    from repq.report.ablation import ablation_table

    given = _overrides(weights=weights, data=data, imgsz=imgsz, device=device)
    loaded, trials = load_ablation(ablation, [*overrides, *given], seeds)
    folder = work or Path("runs") / loaded.name
    report = run_ablation(loaded.name, trials, folder, progress=shell.progress, log=shell.log)
    shell.finish({**report.values(), "out": str(folder)}, lambda: ablation_table(report))


def _overrides(weights: Path | None, data: Path | None, **others: Any) -> list[str]:
    """Options that were given, as overrides of the recipe."""
    paths = {"weights": weights, "data.path": data}
    values = {**{key: path and str(path.resolve()) for key, path in paths.items()}, **others}
    return [f"{key}={json.dumps(value)}" for key, value in values.items() if value is not None]
