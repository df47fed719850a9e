"""What a run does while INT8 loses too much: the ways that are left, and the verdict on the engines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from repq.recipe import PlanConfig, QatConfig
from repq.recipe.whole import Recipe
from repq.results import Accuracies, BenchReport, BenchRow, EngineVerdict, Verdict

_LESS_MOVED = {"epochs": 10, "learning_rate": 2e-4}
"""Of a training that starts from the best that corrections reach: as in recipes/qat.yaml."""


class Budgeted(Protocol):
    """What the verdict needs to know of a recipe."""

    @property
    def target(self) -> str | None: ...
    @property
    def max_drop(self) -> float: ...
    @property
    def min_speedup(self) -> float: ...
    @property
    def allow_qat(self) -> bool: ...


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


def drops(measured: Accuracies) -> dict[str, tuple[float, float]]:
    """AP in FP32 and in INT8 by engine, of those that were measured in both."""
    found = measured.models
    names = [name.removesuffix("-int8") for name in found if name.endswith("-int8")]
    return {
        name: (found[f"{name}-float32"].ap, found[f"{name}-int8"].ap) for name in names if f"{name}-float32" in found
    }


def lost(recipe: Budgeted, measured: Accuracies) -> float:
    """AP that INT8 loses: in the target, or in the engine that loses most."""
    found = drops(measured)
    chosen = {recipe.target: found[recipe.target]} if recipe.target in found else found
    return max((before - after for before, after in chosen.values()), default=0.0)


def judged(recipe: Budgeted, measured: Accuracies, bench: BenchReport, tried: Sequence[tuple[str, float]]) -> Verdict:
    """Which engine to ship, by AP and latency.

    Args:
        tried: what was tried to hold the budget, and what each loses.
    """
    timed = {row.model: row for row in reversed(bench.rows) if row.scope == "infer"}
    rows = [_row(recipe, engine, *aps, timed) for engine, aps in drops(measured).items()]
    good = [row for row in rows if row.good and recipe.target in (None, row.engine)]
    ship = max(good, key=lambda row: row.speedup or 0.0).engine if good else None
    if recipe.target is not None and recipe.target not in {row.engine for row in rows} and all(r.holds for r in rows):
        ship = recipe.target  # it cannot be run here; the engines that can say what the graph computes
    return Verdict(
        max_drop=recipe.max_drop, min_speedup=recipe.min_speedup, engines=tuple(rows), ways=tuple(tried), ship=ship,
        next=None if ship is not None or not rows else _next(recipe, rows),
    )  # fmt: skip


def _row(recipe: Budgeted, engine: str, before: float, after: float, timed: Mapping[str, BenchRow]) -> EngineVerdict:
    slow, quick, speedup = timed.get(f"{engine}-float32"), timed.get(f"{engine}-int8"), None
    if slow is not None and quick is not None and quick.latency_ms_median > 0:
        speedup = slow.latency_ms_median / quick.latency_ms_median
    return EngineVerdict(
        engine=engine, ap_float=before, ap_int8=after, drop=before - after, speedup=speedup,
        holds=before - after <= recipe.max_drop, pays=speedup is None or speedup >= recipe.min_speedup,
    )  # fmt: skip


def _next(recipe: Budgeted, rows: list[EngineVerdict]) -> str:
    others = [row.engine for row in rows if row.good]
    wanted = [row for row in rows if recipe.target in (None, row.engine)]
    if others:
        return f"repq run … --target {others[0]}"
    if all(row.holds for row in wanted):
        return "ship the FP32 engine, or another runtime: repq doctor lists them"
    if not recipe.allow_qat:
        return "repq run … --allow-qat"
    return "repq run … --set qat.epochs=30, or a larger --max-drop"
