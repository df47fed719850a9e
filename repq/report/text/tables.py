"""Tables and numbers for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from io import StringIO

from rich.console import Console
from rich.markup import escape
from rich.table import Table

WIDTH = 140


def table_text(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """Draw a table; the first ``left`` columns are aligned left, numbers right."""
    table = Table(title=escape(title), title_justify="left", header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    with StringIO() as buffer:
        Console(file=buffer, width=WIDTH, color_system=None).print(table)
        return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


def fraction(value: float | None) -> str:
    """An AP in 0..1 with four digits; a dash where there is none."""
    return "–" if value is None else f"{value:.4f}"


def span(bounds: tuple[float, float]) -> str:
    """A range of values."""
    return f"{bounds[0]:.3g} … {bounds[1]:.3g}"
