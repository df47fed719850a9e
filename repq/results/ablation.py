"""What an ablation measured."""

from __future__ import annotations

import statistics

from pydantic import Field

from repq.results.base import Result


class Spread(Result):
    """A figure over the seeds of one variant; ``seeds``: those that have it."""

    seeds: int
    mean: float
    low: float
    high: float
    deviation: float | None  # of the sample; None with one seed


class Shipped(Result):
    """An engine in the precision that a variant ships; what it takes is for one image, with all passes of TTA.

    ``latency_ms`` is None where other processes had the cores while it was timed.
    """

    ap: float
    ap50: float
    parameters: int
    macs: int
    latency_ms: float | None
    size_bytes: int


class TrialFigures(Result):
    """What one run measured, by the figure's name, and what it ships by the engine's title where that was asked for."""

    variant: str
    seed: int
    figures: dict[str, float]
    shipped: dict[str, Shipped] = Field(default_factory=dict)


class AblationReport(Result):
    """All trials, in the order of the variants.

    ``effects``: the variant that others are compared with, and that which makes all changes, of which each of the
    others makes one; None: they are not told apart.
    """

    name: str
    trials: tuple[TrialFigures, ...]
    effects: tuple[str, str] | None = None

    def figures(self) -> tuple[str, ...]:
        """Names of the figures, those of the first trial first."""
        return tuple(dict.fromkeys(name for trial in self.trials for name in trial.figures))

    def spreads(self) -> dict[str, dict[str, Spread]]:
        """By variant and figure, over the seeds that have it."""
        found: dict[str, dict[str, list[float]]] = {}
        for trial in self.trials:
            for name, value in trial.figures.items():
                found.setdefault(trial.variant, {}).setdefault(name, []).append(value)
        return {
            variant: {name: spread_of(values) for name, values in figures.items()} for variant, figures in found.items()
        }


def spread_of(values: list[float]) -> Spread:
    """Mean and range of a figure over the seeds, of which there is at least one."""
    return Spread(
        seeds=len(values),
        mean=statistics.fmean(values),
        low=min(values),
        high=max(values),
        deviation=statistics.stdev(values) if len(values) > 1 else None,
    )
