"""An ablation as one table: figures down, variants across, mean and spread over the seeds."""

from __future__ import annotations

from repq.report.markdown import escape
from repq.report.text import table_text
from repq.results import AblationReport, Spread


def ablation_table(report: AblationReport) -> str:
    """For the terminal."""
    columns, rows = _cells(report)
    return table_text(_title(report), columns, rows)


def ablation_markdown(report: AblationReport) -> str:
    """The means with their spreads, then every single run."""
    columns, rows = _cells(report)
    runs = [
        (f"{trial.variant}, seed {trial.seed}", *(_number(trial.figures.get(name)) for name in report.figures()))
        for trial in report.trials
    ]
    parts = (f"# {escape(_title(report))}", _table(columns, rows), _table(("run", *report.figures()), runs))
    return "\n\n".join(parts) + "\n"


def _title(report: AblationReport) -> str:
    seeds = len({trial.seed for trial in report.trials})
    return f"{report.name}: {'one seed' if seeds == 1 else f'mean of {seeds} seeds (lowest … highest)'}"


def _cells(report: AblationReport) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    spreads = report.spreads()
    rows = [(name, *(_spread(found.get(name)) for found in spreads.values())) for name in report.figures()]
    return ("", *spreads), rows


def _spread(spread: Spread | None) -> str:
    if spread is None or spread.low == spread.high:
        return _number(None if spread is None else spread.mean)
    return f"{_number(spread.mean)} ({_number(spread.low)} … {_number(spread.high)})"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.4f}" if abs(value) < 1 else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    head = f"| {' | '.join(map(escape, columns))} |\n|---{'|---:' * (len(columns) - 1)}|"
    return "\n".join([head, *(f"| {' | '.join(map(escape, row))} |" for row in rows)])
