"""What a run does while INT8 loses too much: the ways that are left, and the verdict on the engines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from repq.amounts import percent_asked
from repq.artifact import Artifact
from repq.recipe import PlanConfig, PtqConfig, QatConfig, ap_drop
from repq.recipe.whole import Recipe
from repq.results import Accuracies, PtqReport
from repq.stages.budget import RANKED_BY, chosen_settings, plans, reduced_range
from repq.stages.verdict import Budgeted, drops

_LESS_MOVED = {"epochs": 10, "learning_rate": 2e-4}
"""Of a training that starts from the best that corrections reach: as in recipes/qat.yaml."""


@dataclass(frozen=True)
class Attempt:
    """A recipe that was run up to its AP.

    Attributes:
        drop: what INT8 loses; None where that cannot be measured.
        made: False for a plan that keeps nothing: the rest is that of the best attempt before.
    """

    name: str
    recipe: Recipe
    artifacts: Mapping[str, Artifact]
    drop: float | None
    made: bool = True

    @property
    def loss(self) -> float:
        """The drop as a number to compare with others; 0 where there is none."""
        return self.drop or 0.0


def ways(recipe: Recipe, done: Sequence[Attempt]) -> Iterator[tuple[str, Recipe]]:
    """The recipe, and what is left where it loses too much.

    That is, in this order: corrections; a reduced range of weights where an engine's sums saturate on this machine;
    plans (`repq.stages.budget.plans`); and training if it is allowed, from the plan that loses least. What a recipe
    asks for by name it keeps; a plan in it is one that somebody asked for. The first plan that keeps a layer chooses
    its settings, as in `repq.stages.budget`, and larger ones have the same.

    Args:
        done: what came of the recipes that were given so far; the caller adds to it. The reduced range stays if it
            loses less.
    """
    is_auto = recipe.ptq.auto
    yield _name(recipe, is_auto), recipe
    engines = recipe.build.engines if recipe.target is None else (recipe.target,)
    if (smaller := reduced_range(recipe.ptq, engines)) is not None:
        reduced = recipe.model_copy(update={"ptq": smaller})
        yield _name(reduced, is_auto), reduced
        recipe = min(done, key=lambda attempt: attempt.loss).recipe
    if recipe.plan is None:
        tried = list[Recipe]()
        for plan in plans():
            planned = [attempt for attempt in done if attempt.recipe in tried and attempt.made]
            ptq = _as_chosen(planned[0]) if planned else recipe.ptq
            changed = {"ptq": ptq, "sensitivity": recipe.sensitivity or RANKED_BY, "plan": plan}
            tried.append(recipe.model_copy(update=changed))
            yield _name(tried[-1], is_auto), tried[-1]
        recipe = min((a for a in done if a.recipe in tried), key=lambda attempt: attempt.loss).recipe
    if recipe.qat is None and recipe.allow_qat:
        recipe = recipe.model_copy(update={"qat": QatConfig(**_LESS_MOVED)})
        yield _name(recipe, is_auto), recipe


def _as_chosen(attempt: Attempt) -> PtqConfig:
    """The settings that were chosen for an attempt, if its recipe left the choice."""
    return chosen_settings(attempt.recipe.ptq, attempt.artifacts["ptq"].result(PtqReport))


def _name(recipe: Recipe, is_auto: bool) -> str:
    parts = ["corrections" if is_auto else "as asked for"]
    parts += ["a reduced range"] if recipe.ptq.reduce_range else []
    if recipe.plan is not None:
        parts.append(_plan_name(recipe.plan))
    return " + ".join([*parts, *(["training"] if recipe.qat is not None else [])])


def _plan_name(plan: PlanConfig) -> str:
    if plan.max_float is not None:
        return f"a plan of {percent_asked(plan.max_float)} in float"
    return "a plan" if plan.top is None else f"a plan of {plan.top} layers"


def lost(recipe: Budgeted, measured: Accuracies) -> float | None:
    """AP that INT8 loses: in the target, or in the engine that loses most. None: it cannot be measured in any."""
    found = drops(measured)
    chosen = {recipe.target: found[recipe.target]} if recipe.target in found else found
    measurable = [drop for before, after in chosen.values() if (drop := ap_drop(before, after)) is not None]
    return max(measurable, default=None)
