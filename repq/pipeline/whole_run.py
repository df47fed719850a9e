"""A recipe, given as a file, with what takes the place of its entries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from repq.log import Log, quiet
from repq.pipeline.runner import RunOutcome, run_recipe
from repq.progress import Progress, silent
from repq.recipe import as_overrides, load_recipe


def run(
    recipe: str | Path,
    *,
    work: str | Path | None = None,
    weights: str | Path | None = None,
    data: str | Path | None = None,
    imgsz: int | tuple[int, int] | None = None,
    device: str | None = None,
    seed: int | None = None,
    overrides: Sequence[str] = (),
    progress: Progress = silent,
    log: Log = quiet,
) -> RunOutcome:
    """Work through a recipe, from weights or data to a report; what is already there is reused.

    Args:
        recipe: a YAML file.
        work: run folder. Default: ``runs/NAME``.
        weights, data, imgsz, device, seed: in place of the recipe's own.
        overrides: further entries, such as ``ptq.calibration.images=256``.

    Returns:
        The artifacts by stage, the path of the report, and the figures that matter most.

    Raises:
        RepqError: the recipe is not valid, or a stage failed; what was complete before stays.
        ToleranceError: an engine is outside the bounds of the check; the report is written all the same.
    """
    given = as_overrides(weights=weights, data=data, imgsz=imgsz, device=device, seed=seed)
    loaded = load_recipe(Path(recipe), [*overrides, *given])
    return run_recipe(loaded, Path(work or Path("runs") / loaded.name), progress=progress, log=log)
