"""An ablation as one table: figures down, variants across, mean and spread over the seeds."""

from __future__ import annotations

import hashlib
import re
from datetime import date
from functools import partial
from pathlib import Path

from repq.files import write_text
from repq.report.blocks import Block, Column, Figure, number, table
from repq.report.effects import effect_blocks
from repq.report.markdown import escape, render_markdown
from repq.report.numbers import ABSENT, plural
from repq.report.plots import variant_dots
from repq.report.summary import ReportSummary, Section
from repq.report.text import render_text
from repq.results import AblationReport, Environment, Spread, TrialFigures

REPORTS = "reports"
"""The folder of the reports of the single runs, beside the page."""


def ablation_table(report: AblationReport) -> str:
    """For the terminal."""
    return render_text([ablation_blocks(report)[0], *effect_blocks(report)])


def ablation_markdown(report: AblationReport) -> str:
    """The means with their spreads, then every single run."""
    blocks = [*effect_blocks(report), *ablation_blocks(report)]
    return f"# {escape(report.name)}\n\n{render_markdown(blocks)}\n"


def write_ablation_page(report: AblationReport, environment: Environment, folder: Path) -> None:
    """``ablation.html``: the variants in a drawing and in tables; every run leads to its own report."""
    from repq.report.html import to_html
    from repq.report.sections.overview import ENVIRONMENT

    summary = ReportSummary(title=report.name, created=date.today().isoformat(), environment=environment)
    shown = [name for name in report.figures() if name.startswith("AP ") and name != "AP lost"]
    spreads = {variant: {name: row[name] for name in shown if name in row} for variant, row in report.spreads().items()}
    drawn = Figure("AP by variant", partial(variant_dots, spreads), "dots of the AP of each variant", wide=True)
    section = Section("ablation", "Variants", lambda _: [])
    sections = [(section, [drawn, *ablation_blocks(report)]), (ENVIRONMENT, ENVIRONMENT.blocks(summary))]
    if effects := effect_blocks(report):
        sections.insert(0, (Section("effects", "What each change does", lambda _: []), effects))
    write_text(folder / "ablation.html", to_html(summary, sections))


def report_name(trial: TrialFigures) -> str:
    """Of the report of one run, in the folder `REPORTS`: each variant has a name of its own."""
    plain = re.sub(r"[^A-Za-z0-9]+", "-", trial.variant).strip("-")
    if not plain or plain != trial.variant:  # other names may come to the same
        digest = hashlib.sha256(trial.variant.encode("utf-8", "backslashreplace")).hexdigest()[:8]
        plain = f"{plain}-{digest}".removeprefix("-")
    return f"{plain}-seed-{trial.seed}.html"


def ablation_blocks(report: AblationReport) -> list[Block]:
    """The means with their spreads, and every single run."""
    spreads, figures = report.spreads(), report.figures()
    seeds = len({trial.seed for trial in report.trials})
    title = f"{report.name}: {'one seed' if seeds == 1 else f'mean of {seeds} seeds (lowest … highest)'}"
    variants = (number(name, found.get, partial(_spread, seeds)) for name, found in spreads.items())
    runs = (number(name, partial(_figure, name), _number) for name in figures)
    run = Column[TrialFigures](
        "Run", lambda trial: f"{trial.variant}, seed {trial.seed}", link=lambda trial: f"{REPORTS}/{report_name(trial)}"
    )
    return [table(title, [Column("", str), *variants], figures), table("Runs", [run, *runs], report.trials)]


def _figure(name: str, trial: TrialFigures) -> float | None:
    return trial.figures.get(name)


def _spread(seeds: int, spread: Spread) -> str:
    """A figure over the seeds, of which some may not have it: a time is none where other processes had the cores."""
    mean, low, high = map(_number, (spread.mean, spread.low, spread.high))
    fewer = f", of {plural(spread.seeds, 'seed')}" if spread.seeds < seeds else ""
    return f"{mean}{fewer}" if spread.low == spread.high else f"{mean} ({low} … {high}){fewer}"


def _number(value: float | None) -> str:
    if value is None:
        return ABSENT
    return f"{value:.4f}" if abs(value) < 1 else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
