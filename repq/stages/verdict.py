"""What INT8 costs and gains in the engines of a run, and which engine that makes the one to ship."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

from repq.recipe import ap_drop, holds
from repq.report.verdict import time_again
from repq.results import Accuracies, BenchReport, BenchRow, EngineVerdict, Verdict


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


def drops(measured: Accuracies) -> dict[str, tuple[float, float]]:
    """AP in FP32 and in INT8 by engine, of those that were measured in both."""
    found = measured.models
    names = [name.removesuffix("-int8") for name in found if name.endswith("-int8")]
    return {
        name: (found[f"{name}-float32"].ap, found[f"{name}-int8"].ap) for name in names if f"{name}-float32" in found
    }


def judged(
    recipe: Budgeted, measured: Accuracies, bench: BenchReport, tried: Sequence[tuple[str, float | None]]
) -> Verdict:
    """Which engine to ship, by AP and latency.

    Args:
        tried: what was tried to hold the budget, and what each loses.
    """
    timed = bench.inferences
    rows = [_row(recipe, engine, *aps, timed) for engine, aps in drops(measured).items()]
    good = [row for row in rows if row.good and recipe.target in (None, row.engine)]
    ship = min(good, key=lambda row: _int8_ms(row.engine, timed)).engine if good else None
    if recipe.target not in {None, *(row.engine for row in rows)} and rows and all(row.holds for row in rows):
        ship = recipe.target  # it cannot be run here; the engines that can say what the graph computes
    return Verdict(
        max_drop=recipe.max_drop, min_speedup=recipe.min_speedup, engines=tuple(rows), ways=tuple(tried), ship=ship,
        next=None if ship is not None else _next(recipe, rows, crowded=bench.crowded), crowded=bench.crowded,
    )  # fmt: skip


def _int8_ms(engine: str, timed: Mapping[str, BenchRow]) -> float:
    """The median latency of an engine in INT8; one that was not timed comes last."""
    found = timed.get(f"{engine}-int8")
    return math.inf if found is None else found.latency_ms_median


def need_no_agreement(recipe: Budgeted, verdict: Verdict) -> tuple[str, ...]:
    """Engines whose AP need not be near that of the simulation.

    Those whose own AP holds the budget, and where a target was named that runs here, all others.
    """
    runs_here = any(row.engine == recipe.target for row in verdict.engines)
    return tuple(row.engine for row in verdict.engines if row.holds or (runs_here and row.engine != recipe.target))


def _row(recipe: Budgeted, engine: str, before: float, after: float, timed: Mapping[str, BenchRow]) -> EngineVerdict:
    slow, quick, speedup = timed.get(f"{engine}-float32"), timed.get(f"{engine}-int8"), None
    if slow is not None and quick is not None and quick.latency_ms_median > 0:
        speedup = slow.latency_ms_median / quick.latency_ms_median
    drop = ap_drop(before, after)
    return EngineVerdict(
        engine=engine, ap_float=before, ap_int8=after, drop=drop, speedup=speedup,
        holds=holds(drop, recipe.max_drop), pays=speedup is None or speedup >= recipe.min_speedup,
    )  # fmt: skip


def _next(recipe: Budgeted, rows: list[EngineVerdict], *, crowded: bool) -> str:
    if not rows:
        return "build an engine in FP32 and INT8 that runs here: `repq doctor` lists them"
    others = [row.engine for row in rows if row.good]
    wanted = [row for row in rows if recipe.target in (None, row.engine)]
    if all(row.holds for row in wanted) and crowded:
        return time_again()
    if others:
        return f"repeat the command with --target {others[0]}"
    if all(row.holds for row in wanted):
        return "ship FP32, which is in the run's folder deploy, or try another runtime: `repq doctor` lists them"
    if any(row.drop is None for row in wanted):
        return "look at what the float model finds (repq predict MODEL IMAGES): its training, image size and preset"
    if not recipe.allow_qat:
        return "repeat the command with --allow-qat"
    return "train longer (repeat the command with --set qat.epochs=30), or allow a larger --max-drop"
