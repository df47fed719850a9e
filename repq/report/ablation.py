"""An ablation as one table: figures down, variants across, mean and spread over the seeds."""

from __future__ import annotations

from functools import partial

from repq.report.blocks import Block, Column, number, table
from repq.report.markdown import escape, render_markdown
from repq.report.numbers import ABSENT
from repq.report.text import render_text
from repq.results import AblationReport, Spread, TrialFigures


def ablation_table(report: AblationReport) -> str:
    """For the terminal."""
    return render_text(ablation_blocks(report)[:1])


def ablation_markdown(report: AblationReport) -> str:
    """The means with their spreads, then every single run."""
    return f"# {escape(report.name)}\n\n{render_markdown(ablation_blocks(report))}\n"


def ablation_blocks(report: AblationReport) -> list[Block]:
    """The means with their spreads, and every single run."""
    spreads, figures = report.spreads(), report.figures()
    seeds = len({trial.seed for trial in report.trials})
    title = f"{report.name}: {'one seed' if seeds == 1 else f'mean of {seeds} seeds (lowest … highest)'}"
    variants = (number(name, found.get, _spread) for name, found in spreads.items())
    runs = (number(name, partial(_figure, name), _number) for name in figures)
    run = Column[TrialFigures]("Run", lambda trial: f"{trial.variant}, seed {trial.seed}")
    return [table(title, [Column("", str), *variants], figures), table("Runs", [run, *runs], report.trials)]


def _figure(name: str, trial: TrialFigures) -> float | None:
    return trial.figures.get(name)


def _spread(spread: Spread) -> str:
    if spread.low == spread.high:
        return _number(spread.mean)
    return f"{_number(spread.mean)} ({_number(spread.low)} … {_number(spread.high)})"


def _number(value: float | None) -> str:
    if value is None:
        return ABSENT
    return f"{value:.4f}" if abs(value) < 1 else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
