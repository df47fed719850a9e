"""The whole job in one command, once or in several variants."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from repq.cli.options import Data, Weights
from repq.cli.options import OwnSize as ModelSize
from repq.cli.shell import Shell
from repq.errors import ToleranceError
from repq.recipe import as_overrides, load_ablation
from repq.recipe.base import AnyPath, Device, ImageSize, OneOf, Seed, Share, setting
from repq.recipe.deployment import EngineName

if TYPE_CHECKING:
    from repq.pipeline import RunOutcome

RecipeFile = Annotated[AnyPath, setting(flag="RECIPE", help="YAML file, or the name of one that repq ships.")]
AblationFile = Annotated[AnyPath, setting(flag="ABLATION", help="YAML file, or the name of one that repq ships.")]
Work = Annotated[AnyPath | None, setting(flag="--work", writes=("*",), help="Run folder.  [default: runs/NAME]")]
OwnWeights = Annotated[AnyPath | None, setting(flag="--weights", help="Checkpoint instead of the recipe's.")]
OwnData = Annotated[AnyPath | None, setting(flag="--data", help="data.yaml instead of the recipe's.")]
OwnSize = Annotated[ImageSize | None, setting(flag="--imgsz", help="640 or HEIGHTxWIDTH instead of the recipe's.")]
OwnDevice = Annotated[Device | None, setting(flag="--device", help="Instead of the recipe's: auto, cpu, cuda …")]
OwnSeed = Annotated[Seed | None, setting(flag="--seed", help="Instead of the recipe's.")]
OwnTarget = Annotated[
    EngineName | None, setting(flag="--target", help="The runtime to ship: all that is not given follows it.")
]
OwnDrop = Annotated[
    Share | None, setting(flag="--max-drop", help="AP that INT8 may lose, instead of the recipe's.  [default: 0.005]")
]
OwnQat = Annotated[
    bool, setting(flag="--allow-qat", help="Train (QAT) where neither corrections nor a plan hold --max-drop.")
]
Seeds = Annotated[tuple[Seed, ...], setting(flag="--seeds", help="Instead of the file's; repeat for several.")]
Overrides = Annotated[
    tuple[str, ...], setting(flag="--set", metavar="KEY=VALUE", help="Override: ptq.calibration.images=256")
]


def run_command(
    shell: Shell, recipe: RecipeFile, work: Work = None, weights: OwnWeights = None, data: OwnData = None,
    imgsz: OwnSize = None, target: OwnTarget = None, max_drop: OwnDrop = None, allow_qat: OwnQat = False,
    overrides: Overrides = (), device: OwnDevice = None, seed: OwnSeed = None,
) -> None:  # fmt: skip
    """RECIPE is a YAML file, or one that repq ships: ptq, onnx, partial, qat, quickstart, tensorrt, yolov6lite, yolox,
    compare. Stages: train or import, fuse, quantize, export, build, check, evaluate, time, report.
    What is already there is reused; a killed run goes on where it stopped. Where an engine loses more than --max-drop,
    what is left is tried: a plan of layers in float, then training. Ends with 1 if no engine is good enough to ship.
    """
    from repq.pipeline import RunError
    from repq.pipeline.whole_run import run

    failure = None
    try:
        outcome = run(
            recipe, work=work, weights=weights, data=data, imgsz=imgsz, target=target, max_drop=max_drop,
            allow_qat=allow_qat or None, device=device, seed=seed, overrides=overrides, progress=shell.progress,
            log=shell.log,
        )  # fmt: skip
    except RunError as error:
        outcome, failure = error.outcome, error
    deploy = outcome.report.parent / "deploy"
    values = {
        **outcome.headline,
        "verdict": outcome.verdict.values(),
        "report": str(outcome.report),
        "deploy": str(deploy),
        "artifacts": {name: str(artifact.folder) for name, artifact in outcome.artifacts.items()},
        "reused": [name for name, artifact in outcome.artifacts.items() if artifact.reused],
    }
    engine = deploy / "engine"
    shell.finish(
        values, lambda: _run_text(outcome, deploy, failed=failure is not None),
        next=f"repq predict {engine} IMAGES" if failure is None and engine.is_dir() else "",
    )  # fmt: skip
    if failure is not None:
        raise failure


def _run_text(outcome: RunOutcome, deploy: Path, *, failed: bool) -> str:
    """The figures, and where they lie; of a run that failed, the error says what they come to."""
    from repq.report.text import run_table

    places = f"report: {outcome.report}\ndeploy: {deploy} (README.md there says what it is)"
    return f"{run_table(outcome.headline, None if failed else outcome.verdict)}\n{places}"


def ablation_command(
    shell: Shell, ablation: AblationFile, work: Work = None, weights: OwnWeights = None, data: OwnData = None,
    imgsz: OwnSize = None, seeds: Seeds = (), overrides: Overrides = (), device: OwnDevice = None,
) -> None:  # fmt: skip
    """ABLATION is a YAML file, or one that repq ships: activations, calibration, distillation, granularity, lightening,
    results, table15, table16, table21, yolox. Ends with one table, mean and spread, in WORK/ablation.md and
    ablation.json. What variants have in common is made once; a killed ablation goes on where it stopped.
    """
    from repq.pipeline.ablation import run_ablation
    from repq.report.ablation import ablation_table

    given = as_overrides(weights=weights, data=data, imgsz=imgsz, device=device)
    loaded, trials = load_ablation(ablation, [*overrides, *given], seeds)
    folder = work or Path("runs") / loaded.name
    report = run_ablation(loaded.name, trials, folder, effects=loaded.effects, progress=shell.progress, log=shell.log)
    shell.finish({**report.values(), "out": str(folder)}, lambda: ablation_table(report))


def compare_command(
    shell: Shell, weights: Weights, data: Data,
    out: Annotated[AnyPath, setting(flag="-o --out", writes=("*",), help="Folder for report, figures and artifacts.")],
    engines: Annotated[
        tuple[Annotated[str, OneOf("repq.engine:ENGINES", also=("all",))], ...],
        setting(flag="--engines", min_length=1, help="Repeat for several; all: every engine that works here."),
    ] = ("all",),
    recipe: Annotated[
        AnyPath, setting(flag="--recipe", help="YAML file, or the name of one that repq ships: what all share.")
    ] = Path("compare"),
    imgsz: ModelSize = None,
    best: Annotated[bool, setting(flag="--best", help="Say only which one to ship; end with 1 if none is.")] = False,
    max_drop: OwnDrop = None,
    max_ms: Annotated[
        float | None, setting(flag="--max-ms", gt=0, le=1e6, help="Largest median latency of the one to ship, ms.")
    ] = None,
    overrides: Overrides = (), device: OwnDevice = None, seed: OwnSeed = None,
) -> None:  # fmt: skip
    """AP, latency, throughput, memory of the process, size, and what really ran in INT8, all timed in one run. Engines
    that are not here are listed with the reason. What is in the folder is reused; a killed comparison goes on.
    """
    from repq.pipeline.contest import compare
    from repq.report.text import contest_choice, contest_table

    found = compare(
        weights, data, out, engines=engines, recipe=recipe, imgsz=imgsz, max_drop=max_drop, max_ms=max_ms,
        device=device, seed=seed, overrides=overrides, progress=shell.progress, log=shell.log,
    )  # fmt: skip
    assert found.choice is not None
    shell.finish({**found.values(), "out": str(out)}, lambda: (contest_choice if best else contest_table)(found))
    if best and found.choice.ship is None:
        reasons = "\n".join(found.choice.reasons)
        raise ToleranceError("no engine is good enough to ship", found=reasons, fix="a larger --max-drop or --max-ms")
