"""What a section is made of. Terminal, Markdown and HTML print these, so they hold the same figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from operator import attrgetter
from typing import Any, ClassVar, Generic, Literal, TypeVar

from repq.report.numbers import ABSENT

Level = Literal["", "good", "warn", "bad", "muted"]
Row = TypeVar("Row")


@dataclass(frozen=True)
class Cell:
    """One table cell. ``sort``: the full-precision value that sorting uses, where the text is rounded."""

    text: str
    sort: float | None = None
    level: Level = ""
    hint: str = ""
    link: str = ""


@dataclass(frozen=True)
class Column(Generic[Row]):
    """One column: where its value comes from, and how it is written. A value of None is a dash.

    Attributes:
        value: attribute of a row (dots reach deeper), or a function of the row.
        write: value to text.
        numeric: aligned right, and sorted by its value.
        hint: what the title does not say.
        code: identifiers, monospaced and never broken over lines.
        wrap: sentences, broken over lines.
        level: how good the value of a row is.
        note: what is to be said of a row's value; of None, why it is not there.
        link: the file beside the page that a row leads to.
        detail: left out in the terminal, where width is scarce.
        wide: left out in a terminal that is too narrow for all.
        optional: left out where every row has None.
    """

    title: str
    value: str | Callable[[Row], Any]
    write: Callable[[Any], str] = str
    numeric: bool = False
    hint: str = ""
    code: bool = False
    wrap: bool = False
    level: Callable[[Row], Level] | None = None
    note: Callable[[Row], str] | None = None
    link: Callable[[Row], str] | None = None
    detail: bool = False
    wide: bool = False
    optional: bool = False

    def cell(self, row: Row) -> Cell:
        value = attrgetter(self.value)(row) if isinstance(self.value, str) else self.value(row)
        return Cell(
            text=ABSENT if value is None else self.write(value),
            sort=_sortable(value) if self.numeric else None,
            level=self.level(row) if self.level else "",
            hint=self.note(row) if self.note else "",
            link=self.link(row) if self.link else "",
        )


Columns = Sequence[Column[Row]]


def number(title: str, value: str | Callable[[Row], Any], write: Callable[[Any], str], **more: Any) -> Column[Row]:
    """A column of numbers."""
    return Column(title, value, write, numeric=True, **more)


def _sortable(value: Any) -> float | None:
    """What a value is sorted by: a range by its largest magnitude, what is not a number not at all."""
    if isinstance(value, tuple):
        value = max(map(abs, value))
    return value if isinstance(value, int | float) and not math.isnan(value) else None


@dataclass(frozen=True)
class Table:
    kind: ClassVar = "table"
    title: str
    columns: Sequence[Column[Any]]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    collapsed: bool = False  # long: folded away until it is opened
    worst: Sequence[int] = ()  # places of the rows, the worst first; none: they have no such order

    @property
    def key(self) -> int:
        """The column that says what a row is about: the first one of words."""
        return next((place for place, column in enumerate(self.columns) if column.title and not column.numeric), 0)

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows), f"ragged table {self.title!r}"


def table(
    title: str,
    columns: Columns[Row],
    rows: Iterable[Row],
    note: str = "",
    *,
    fold: int | None = None,
    numbered: bool = False,
    badness: Callable[[Row], float] | None = None,
) -> Table:
    """A table of one row per object.

    Args:
        fold: folded away from this many rows on.
        numbered: whether the first column is the row's number, from 1.
        badness: what makes a row worth looking at; the terminal shows a long table's largest.
    """
    objects = list(rows)
    cells = [[column.cell(row) for row in objects] for column in columns]
    kept = [n for n, column in enumerate(columns) if not column.optional or any(c.text != ABSENT for c in cells[n])]
    heads: list[Column[Any]] = [columns[n] for n in kept]
    lines = [[cells[n][place] for n in kept] for place in range(len(objects))]
    if numbered:
        heads.insert(0, number("#", str, str, detail=True))
        lines = [[Cell(str(place), place), *line] for place, line in enumerate(lines, start=1)]
    worst = [] if badness is None else sorted(range(len(objects)), key=lambda place: -badness(objects[place]))
    return Table(title, heads, lines, note, collapsed=fold is not None and len(objects) >= fold, worst=worst)


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar = "text"
    text: str


@dataclass(frozen=True)
class Facts:
    """Name and value pairs."""

    kind: ClassVar = "facts"
    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Figure:
    """A drawing, made when it is first shown; ``alt`` says what it shows. With ``file``, it is a file as well."""

    kind: ClassVar = "figure"
    title: str
    draw: Callable[[], str]
    alt: str
    wide: bool = False
    file: str = ""

    @cached_property
    def svg(self) -> str:
        """An SVG element for inline use."""
        return self.draw()


@dataclass(frozen=True)
class Metric:
    """One figure before and after, with the change in words."""

    name: str
    before: str
    after: str
    change: str
    level: Level = ""


@dataclass(frozen=True)
class Card:
    title: str
    level: Level
    verdict: str
    metrics: Sequence[Metric]
    note: str = ""


@dataclass(frozen=True)
class Cards:
    kind: ClassVar = "cards"
    items: Sequence[Card]

    def as_table(self) -> Table:
        """The same for forms that have no cards."""
        names = dict.fromkeys(metric.name for card in self.items for metric in card.metrics)
        columns: Columns[Card] = [
            Column("Engine", "title"),
            *(Column(name, partial(_metric, name)) for name in names),
            Column("Verdict", "verdict", level=lambda card: card.level),
            Column("", "note", wrap=True),
        ]
        return table("", columns, self.items)


def _metric(name: str, card: Card) -> str:
    found = [metric for metric in card.metrics if metric.name == name]
    return "".join(f"{m.before} → {m.after}{f' ({m.change})' if m.change else ''}" for m in found)


@dataclass(frozen=True)
class Finding:
    level: Level
    text: str
    remedy: str = ""  # what to do about it


@dataclass(frozen=True)
class Findings:
    kind: ClassVar = "findings"
    items: Sequence[Finding]


def noted(findings: Sequence[Finding]) -> list[Block]:
    """A block of findings; none where there are none."""
    return [Findings(findings)] if findings else []


@dataclass(frozen=True)
class LayerStrip:
    """One row of a layer map: a title and, per layer in model order, its id and precision."""

    title: str
    layers: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class LayerMap:
    kind: ClassVar = "layer_map"
    strips: Sequence[LayerStrip]

    @property
    def precisions(self) -> list[str]:
        return sorted({precision for strip in self.strips for _, precision in strip.layers})


@dataclass(frozen=True)
class Picture:
    caption: str
    jpeg_base64: str


@dataclass(frozen=True)
class PictureRow:
    """Pictures beside each other."""

    kind: ClassVar = "pictures"
    title: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Listing:
    """Preformatted text, such as a manifest's JSON, folded away."""

    kind: ClassVar = "listing"
    title: str
    text: str


Block = Table | Text | Facts | Figure | Cards | Findings | LayerMap | PictureRow | Listing
