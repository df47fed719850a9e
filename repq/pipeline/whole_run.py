"""A recipe, given as a file, with what takes the place of its entries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from repq.api.sizes import size_for
from repq.log import Log, quiet
from repq.machine.torch_settings import usual_torch
from repq.pipeline.runner import RunOutcome, run_recipe
from repq.progress import Progress, silent
from repq.recipe import EngineName, Recipe, as_overrides, load_recipe


@usual_torch()
def run(
    recipe: str | Path,
    *,
    work: str | Path | None = None,
    weights: str | Path | None = None,
    data: str | Path | None = None,
    imgsz: int | tuple[int, int] | None = None,
    target: EngineName | None = None,
    max_drop: float | None = None,
    allow_qat: bool | None = None,
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
        weights, data, imgsz, target, max_drop, allow_qat, device, seed: in place of the recipe's own. Without any
            ``imgsz``, the weights' own is taken.
        overrides: further entries, such as ``ptq.calibration.images=256``.

    Returns:
        The artifacts by stage, the path of the report, the figures that matter most, and which engine to ship.

    Raises:
        RepqError: the recipe is not valid, or a stage failed; what was complete before stays.
        RunError: an engine is outside the bounds of the check, or none is good enough to ship; the report is written
            all the same, and ``outcome`` of the error is what would have been returned.
    """
    given = as_overrides(
        weights=weights, data=data, imgsz=imgsz, target=target, max_drop=max_drop, allow_qat=allow_qat, device=device,
        seed=seed,
    )  # fmt: skip
    loaded = sized(load_recipe(Path(recipe), [*overrides, *given]), log)
    return run_recipe(loaded, Path(work or Path("runs") / loaded.name), progress=progress, log=log)


def sized(recipe: Recipe, log: Log) -> Recipe:
    """The recipe with an image size: without one of its own that of its weights; see `size_for`."""
    if recipe.weights is None or not recipe.weights.exists():
        return recipe
    asked_for = recipe.imgsz if "imgsz" in recipe.model_fields_set else None
    return recipe.model_copy(update={"imgsz": size_for(recipe.weights, asked_for, log)})
