"""The Markdown form (GitHub's dialect): the same sections; drawings where they lie beside it as files."""

from __future__ import annotations

import re
from collections.abc import Iterable

from repq.printable import printable_lines
from repq.report.blocks import (
    Block,
    Cards,
    Cell,
    Facts,
    Figure,
    Findings,
    LayerMap,
    Level,
    Listing,
    PictureRow,
    Table,
    Text,
)
from repq.report.summary import FilledSection, ReportSummary

_MARKS: dict[Level, str] = {"good": "✅", "warn": "⚠️", "bad": "❌"}


def to_markdown(summary: ReportSummary, sections: Iterable[FilledSection]) -> str:
    """Print the sections as Markdown."""
    parts = [f"# {escape(summary.title)}"]
    for section, blocks in sections:
        parts += [f"## {escape(section.title)}", escape(summary.subject(section)), render_markdown(blocks)]
    return "\n\n".join(filter(None, parts)) + "\n"


def render_markdown(blocks: Iterable[Block]) -> str:
    """Print blocks as Markdown."""
    return "\n\n".join(text for block in blocks if (text := _block(block)))


def escape(text: str) -> str:
    """Keep Markdown, HTML and terminals from reading anything into a text, on one line."""
    text = re.sub(r"([\\`*|\[\]~])", r"\\\1", printable_lines(" ".join(text.split())))
    text = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)  # inside a word an underscore is plain
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _block(block: Block) -> str:
    match block:
        case Table():
            return _titled_table(block)
        case Text():
            return escape(block.text)
        case Facts():
            rows = [f"| {escape(name)} | {escape(value)} |" for name, value in block.items]
            return "\n".join(["|  |  |", "| --- | --- |", *rows])
        case Cards():
            return _table(block.as_table())
        case Findings():
            return "\n".join(
                f"- {_MARKS.get(item.level, '')} {escape(f'{item.text} {item.remedy}')}" for item in block.items
            )
        case PictureRow():
            return f"- {escape(block.title)}: {escape('; '.join(picture.caption for picture in block.pictures))}"
        case Listing():
            fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", block.text)), default=0))
            return _folded(block.title, f"{fence}json\n{block.text}\n{fence}")
        case Figure():  # the figures of the others are in the tables
            return f"![{escape(block.alt)}]({block.file})" if block.file else ""
        case LayerMap():
            return ""


def _titled_table(block: Table) -> str:
    text = _table(block) + (f"\n\n{escape(block.note)}" if block.note else "")
    return _folded(block.title, text) if block.collapsed else f"**{escape(block.title)}**\n\n{text}"


def _table(block: Table) -> str:
    lines = [
        [escape(column.title) for column in block.columns],
        ["---:" if column.numeric else "---" for column in block.columns],
        *([_cell(cell) for cell in row] for row in block.rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(cell: Cell) -> str:
    mark = _MARKS[cell.level] if cell.level in ("warn", "bad") else ""
    return f"{mark} {escape(cell.text)}".strip()


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{escape(title)}</summary>\n\n{text}\n\n</details>"
