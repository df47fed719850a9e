"""What a run does while INT8 loses too much: the ways that are left, and the verdict on the engines."""

from __future__ import annotations

from collections.abc import Iterator

from repq.recipe import PlanConfig, QatConfig, ap_drop
from repq.recipe.whole import Recipe
from repq.results import Accuracies
from repq.stages.verdict import Budgeted, drops

_LESS_MOVED = {"epochs": 10, "learning_rate": 2e-4}
"""Of a training that starts from the best that corrections reach: as in recipes/qat.yaml."""


def ways(recipe: Recipe) -> Iterator[tuple[str, Recipe]]:
    """The recipe, and what is left where it loses too much: corrections, a plan, and training if it is allowed.

    What a recipe asks for by name it keeps; a plan of so many layers is one that somebody asked for.
    """
    yield _name(recipe), recipe
    if recipe.plan is None:
        recipe = recipe.model_copy(update={"plan": PlanConfig(max_drop=recipe.max_drop)})
        yield _name(recipe), recipe
    if recipe.qat is None and recipe.allow_qat:
        yield _name(recipe := recipe.model_copy(update={"qat": QatConfig(**_LESS_MOVED)})), recipe


def _name(recipe: Recipe) -> str:
    parts = ["corrections" if recipe.ptq.auto else "as asked for"]
    parts += ["a plan"] if recipe.plan is not None else []
    return " + ".join([*parts, *(["training"] if recipe.qat is not None else [])])


def lost(recipe: Budgeted, measured: Accuracies) -> float | None:
    """AP that INT8 loses: in the target, or in the engine that loses most. None: it cannot be measured in any."""
    found = drops(measured)
    chosen = {recipe.target: found[recipe.target]} if recipe.target in found else found
    measurable = [drop for before, after in chosen.values() if (drop := ap_drop(before, after)) is not None]
    return max(measurable, default=None)
