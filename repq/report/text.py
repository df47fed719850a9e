"""Results as text for the terminal: the same blocks as in the report, without its drawings."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from io import StringIO
from textwrap import fill
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from repq.recipe import EngineName
from repq.report.blocks import Block, Cards, Cell, Facts, Findings, Table, Text
from repq.report.findings import disturbed
from repq.report.sections import (
    accuracy,
    contest,
    engines,
    graph,
    overview,
    profile,
    pruning,
    quantization,
    sensitivity,
    timing,
    training,
)
from repq.report.verdict import sentences
from repq.results import (
    Accuracy,
    Availability,
    BenchReport,
    CheckReport,
    Contest,
    Diagnosis,
    EngineDescription,
    Environment,
    Estimate,
    ExportReport,
    FusionReport,
    PlanReport,
    ProfileReport,
    PruneReport,
    PtqReport,
    QatReport,
    Sensitivity,
    TrainReport,
    Verdict,
)

WIDTH = 120
_BETWEEN = 2  # blanks between columns
_READABLE = 24  # columns of the terminal that sentences get where that can be
SHOWN = 10
"""Rows of a long table whose rows have an order of badness."""

_screen: ContextVar[tuple[int, bool]] = ContextVar("screen", default=(WIDTH, True))
_MARKS = {"good": "+ ", "warn": "! ", "bad": "x "}


@contextmanager
def shown_on(width: int, *, everything: bool) -> Iterator[None]:
    """Within the block, texts are for a terminal of so many columns, with long tables whole or their worst rows."""
    token = _screen.set((max(width, 40), everything))
    try:
        yield
    finally:
        _screen.reset(token)


def render_text(blocks: Sequence[Block], width: int | None = None) -> str:
    """Print blocks as plain text of so many columns; drawings, pictures and listings are left out."""
    width = _screen.get()[0] if width is None else width
    return "\n".join(text for block in blocks if (text := _block(block, width)))


def _verdict_last(blocks: Sequence[Block]) -> list[Block]:
    """Long tables first, so that what they come to is in sight at the end."""
    return sorted(blocks, key=lambda block: not isinstance(block, Table))


def _block(block: Block, width: int) -> str:
    match block:
        case Table():
            return _table(block, width)
        case Text():
            return "\n".join(fill(line, width, break_on_hyphens=False) for line in block.text.splitlines())
        case Facts():
            return "\n".join(f"{name}: {value}" for name, value in block.items)
        case Cards():
            return _table(block.as_table(), width)
        case Findings():
            lines = (f"{_MARKS.get(item.level, '')}{item.text} {item.remedy}".rstrip() for item in block.items)
            return "\n".join(fill(line, width, subsequent_indent="  ", break_on_hyphens=False) for line in lines)
        case _:
            return ""


def _table(block: Table, width: int) -> str:
    rows, note = block.rows, block.note
    if len(rows) > SHOWN and block.worst and not _screen.get()[1]:
        rows = [rows[place] for place in block.worst[:SHOWN]]
        note = "\n".join(filter(None, [f"the worst {SHOWN} of {len(block.rows)} rows; --all shows all", note]))
    shown = [place for place, column in enumerate(block.columns) if not column.detail]
    told = (max(_needed(block, place, rows), _readable(block, place, rows, width)) for place in shown)
    if sum(columns + _BETWEEN for columns in told) > width:
        shown = [place for place in shown if not block.columns[place].wide]
    texts = [(block.columns[place].title, *(row[place].text for row in rows)) for place in shown]
    fits = sum(max(map(cell_len, column)) + _BETWEEN for column in texts) <= width
    drawn = RichTable(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    least, wanted = [], []
    for place, text in zip(shown, texts, strict=True):
        column = block.columns[place]
        longest = max((cell_len(row[place].text) for row in rows), default=1)
        words = [cell_len(word) for row in rows for word in row[place].text.split()]
        whole_words = min(max(words, default=1), width // 3 if column.code else width // 8)
        least.append(longest if column.numeric else max(whole_words, _readable(block, place, rows, width)))
        wanted.append(max(map(cell_len, text)) if fits or not column.numeric else _needed(block, place, rows))
    for place, columns in zip(shown, _widths(least, wanted, width - _BETWEEN * len(shown)), strict=True):
        column = block.columns[place]
        justify: Literal["left", "right"] = "right" if column.numeric else "left"
        drawn.add_column(escape(column.title), justify=justify, overflow="fold", width=columns)
    for row in rows:
        drawn.add_row(*(escape(row[place].text) for place in shown))
    with StringIO() as buffer:
        Console(file=buffer, width=width, color_system=None).print(drawn)
        lines = [line.rstrip() for line in buffer.getvalue().splitlines()]
    title = fill(block.title, width, break_on_hyphens=False).splitlines()  # the table may be narrower
    return "\n".join([*title, *lines, *(fill(line, width, break_on_hyphens=False) for line in note.splitlines())])


def _widths(least: Sequence[int], wanted: Sequence[int], room: int) -> list[int]:
    """What each column gets of ``room``: the widest give first, and keep what they need at least where that can be."""
    widths = list(wanted)
    while sum(widths) > room and max(widths, default=0) > 1:
        able = [place for place, width in enumerate(widths) if width > least[place]] or range(len(widths))
        widths[max(able, key=widths.__getitem__)] -= 1
    return widths


def _readable(block: Table, place: int, rows: Sequence[Sequence[Cell]], width: int) -> int:
    """Columns of the terminal in which the sentences of a column can be read; 0 where it has none."""
    longest = max((cell_len(row[place].text) for row in rows), default=0) if block.columns[place].wrap else 0
    return min(_READABLE, width // 3, longest // 3)


def _needed(block: Table, place: int, rows: Sequence[Sequence[Cell]]) -> int:
    """Columns of the terminal that a column takes without breaking a cell."""
    column = block.columns[place]
    words = [cell_len(word) for word in column.title.split()]
    return max([0 if column.wrap else cell_len(row[place].text) for row in rows] + words, default=1)


def accuracy_table(report: Accuracy, title: str) -> str:
    return render_text(_verdict_last(accuracy.accuracy_blocks(report, title)))


def check_table(report: CheckReport) -> str:
    return render_text(_verdict_last(engines.check_blocks(report)))


def bench_table(report: BenchReport) -> str:
    return render_text(_verdict_last(timing.bench_blocks(report)))


def contest_table(report: Contest) -> str:
    return render_text(_verdict_last(contest.contest_blocks(report)))


def contest_choice(report: Contest) -> str:
    """Which one to ship and why, with what speaks against the times."""
    assert report.choice is not None
    return "\n".join([*(note.text for note in disturbed(report)), *report.choice.reasons])


def profile_table(report: ProfileReport) -> str:
    return render_text(_verdict_last(profile.profile_blocks(report)))


def doctor_table(environment: Environment, rows: Sequence[Availability]) -> str:
    return render_text(overview.doctor_blocks(environment, rows))


def engine_table(description: EngineDescription) -> str:
    return render_text(engines.engine_blocks(description))


def layer_table(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    return render_text([engines.model_table(title, rows)])


def estimate_tables(found: Sequence[Estimate], top: int) -> str:
    return render_text(graph.estimate_blocks(found, top))


def export_text(report: ExportReport) -> str:
    return render_text(graph.export_blocks(report))


def lint_table(report: Mapping[str, Any]) -> str:
    return render_text(graph.lint_blocks(report, shown=sys.maxsize if _screen.get()[1] else SHOWN))


def ptq_table(report: PtqReport, in_target: tuple[EngineName, float] | None = None) -> str:
    return render_text(_verdict_last(quantization.ptq_blocks(report, in_target)))


def sensitivity_table(measured: Sensitivity, plan: PlanReport) -> str:
    return render_text(sensitivity.terminal_blocks(measured, plan))


def diagnosis_table(diagnosis: Diagnosis) -> str:
    return render_text(quantization.diagnosis_blocks(diagnosis))


def fusion_table(report: FusionReport) -> str:
    return render_text(_verdict_last(training.fusion_blocks(report)))


def prune_table(report: PruneReport) -> str:
    return render_text(_verdict_last(pruning.terminal_blocks(report)))


def train_table(report: TrainReport) -> str:
    return render_text(_verdict_last(training.train_blocks(report)))


def qat_table(report: QatReport) -> str:
    return render_text(_verdict_last(training.qat_blocks(report)))


def settings_table(section: str, rows: Sequence[Mapping[str, Any]], about: str) -> str:
    return render_text(overview.settings_blocks(section, rows, about))


def run_table(headline: Mapping[str, Any], verdict: Verdict | None) -> str:
    said = [] if verdict is None else [Text("\n".join(sentences(verdict)))]
    return render_text([overview.run_table(headline), *said])
