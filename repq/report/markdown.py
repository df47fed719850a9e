"""The Markdown form (GitHub's dialect): the same sections; drawings where they lie beside it as files."""

from __future__ import annotations

import re
from collections.abc import Sequence

from repq.report.blocks import (
    Block,
    Cards,
    Cell,
    Column,
    Facts,
    Figure,
    Findings,
    LayerMap,
    Level,
    Listing,
    PicturePair,
    Section,
    Table,
)
from repq.report.summary import ReportSummary

_MARKS: dict[Level, str] = {"good": "✅", "warn": "⚠️", "bad": "❌"}


def to_markdown(summary: ReportSummary, sections: Sequence[Section]) -> str:
    """Print the sections as Markdown."""
    parts = [f"# {escape(summary.title)}"]
    for section in sections:
        parts.append(f"## {escape(section.title)}")
        if section.lead:
            parts.append(escape(section.lead))
        parts += [text for block in section.blocks if (text := _block(block))]
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """Keep Markdown and HTML from reading anything into a text, on one line."""
    text = re.sub(r"([\\`*|\[\]~])", r"\\\1", " ".join(text.split()))
    text = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)  # inside a word an underscore is plain
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _block(block: Block) -> str:
    match block:
        case Table():
            return _titled_table(block)
        case Facts():
            rows = [(Cell(name), Cell(value)) for name, value in block.items]
            return _table([Column("", numeric=False), Column("", numeric=False)], rows)
        case Cards():
            return _cards(block)
        case Findings():
            return "\n".join(f"- {_MARKS.get(item.level, '')} {escape(item.text)}" for item in block.items)
        case PicturePair():
            return f"- {escape(block.title)}: {escape(block.left.caption)}, {escape(block.right.caption)}"
        case Listing():
            fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", block.text)), default=0))
            return _folded(block.title, f"{fence}json\n{block.text}\n{fence}")
        case Figure():  # the figures of the others are in the tables
            return f"![{escape(block.alt)}]({block.file})" if block.file else ""
        case LayerMap():
            return ""


def _cards(block: Cards) -> str:
    names = list(dict.fromkeys(metric.name for card in block.items for metric in card.metrics))
    columns = [Column("Engine", False), *(Column(name, False) for name in names), Column("", False), Column("", False)]
    rows = []
    for card in block.items:
        metrics = {metric.name: metric for metric in card.metrics}
        cells = [Cell(card.title)]
        for name in names:
            metric = metrics.get(name)
            words = f" ({metric.change})" if metric and metric.change else ""
            cells.append(Cell(f"{metric.before} → {metric.after}{words}" if metric else ""))
        rows.append([*cells, Cell(f"{_MARKS.get(card.level, '')} {card.verdict}".strip()), Cell(card.note)])
    return _table(columns, rows)


def _titled_table(block: Table) -> str:
    text = _table(block.columns, block.rows) + (f"\n\n{escape(block.note)}" if block.note else "")
    return _folded(block.title, text) if block.collapsed else f"**{escape(block.title)}**\n\n{text}"


def _table(columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> str:
    lines = [
        [escape(column.title) for column in columns],
        ["---:" if column.numeric else "---" for column in columns],
        *([_cell(cell) for cell in row] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(cell: Cell) -> str:
    mark = _MARKS[cell.level] if cell.level in ("warn", "bad") else ""
    return f"{mark} {escape(cell.text)}".strip()


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{escape(title)}</summary>\n\n{text}\n\n</details>"
