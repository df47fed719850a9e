"""What an ablation measured."""

from __future__ import annotations

import statistics

from repq.results.base import Result


class Spread(Result):
    """A figure over the seeds of one variant."""

    mean: float
    low: float
    high: float
    deviation: float | None  # of the sample; None with one seed


class TrialFigures(Result):
    """What one run measured, by the figure's name."""

    variant: str
    seed: int
    figures: dict[str, float]


class AblationReport(Result):
    """All trials, in the order of the variants."""

    name: str
    trials: tuple[TrialFigures, ...]

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
            variant: {name: _spread(values) for name, values in figures.items()} for variant, figures in found.items()
        }


def _spread(values: list[float]) -> Spread:
    return Spread(
        mean=statistics.fmean(values),
        low=min(values),
        high=max(values),
        deviation=statistics.stdev(values) if len(values) > 1 else None,
    )
