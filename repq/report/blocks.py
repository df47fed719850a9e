"""What a section is made of. The HTML and the Markdown form both print these, so they hold the same figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

Level = Literal["", "good", "warn", "bad", "muted"]


@dataclass(frozen=True)
class Cell:
    """One table cell. ``sort``: the full-precision value that sorting uses, where the text is rounded."""

    text: str
    sort: float | None = None
    level: Level = ""
    hint: str = ""


@dataclass(frozen=True)
class Column:
    title: str
    numeric: bool = True
    hint: str = ""
    code: bool = False  # identifiers: monospaced, printed as they are


@dataclass(frozen=True)
class Table:
    kind: ClassVar = "table"
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    collapsed: bool = False  # long: folded away until it is opened

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows), f"ragged table {self.title!r}"


@dataclass(frozen=True)
class Facts:
    """Name and value pairs."""

    kind: ClassVar = "facts"
    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Figure:
    """An inline SVG drawing; ``alt`` says what it shows. With ``file``, it is written beside the report as well."""

    kind: ClassVar = "figure"
    title: str
    svg: str
    alt: str
    wide: bool = False
    file: str = ""


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


@dataclass(frozen=True)
class Finding:
    level: Level
    text: str


@dataclass(frozen=True)
class Findings:
    kind: ClassVar = "findings"
    items: Sequence[Finding]


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
class PicturePair:
    kind: ClassVar = "pictures"
    title: str
    left: Picture
    right: Picture


@dataclass(frozen=True)
class Listing:
    """Preformatted text, such as a manifest's JSON, folded away."""

    kind: ClassVar = "listing"
    title: str
    text: str


Block = Table | Facts | Figure | Cards | Findings | LayerMap | PicturePair | Listing


@dataclass(frozen=True)
class Section:
    """``anchor`` is the section's id in links, ``short`` its title in the list of sections."""

    anchor: str
    title: str
    blocks: Sequence[Block]
    lead: str = ""
    short: str = ""
