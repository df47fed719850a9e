"""Write a report in its three forms."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from repq.errors import RepqError
from repq.files import write_text
from repq.report.blocks import Figure
from repq.report.comparison import comparisons
from repq.report.drawing import standalone
from repq.report.findings import findings
from repq.report.markdown import to_markdown
from repq.report.sections import sections_of
from repq.report.summary import ReportSummary

_FORMAT = 2


def render_report(summary: ReportSummary, folder: Path) -> dict[str, Path]:
    """Write ``report.html``, ``report.md`` and ``report.json`` and return their paths by form.

    Drawings that have a file name are written beside them. The same summary gives the same bytes. Each file is written
    beside its place and renamed.

    Raises:
        RepqError: jinja2 or matplotlib is not installed.
    """
    try:
        from repq.report.html import to_html

        sections = sections_of(summary)
        texts = {
            "html": to_html(summary, sections),
            "md": to_markdown(summary, sections),
            "json": to_json(summary),
        }
    except ModuleNotFoundError as error:
        raise RepqError("the report cannot be drawn", found=str(error), fix="pip install 'repq[report]'") from None
    paths = {form: folder / f"report.{form}" for form in texts}
    for form, path in paths.items():
        write_text(path, texts[form])
    for block in (block for _, blocks in sections for block in blocks):
        if isinstance(block, Figure) and block.file:
            write_figure(block, folder)
    return paths


def write_figure(figure: Figure, folder: Path) -> None:
    """Write a drawing that has a file name as a file of its own.

    Raises:
        RepqError: jinja2 or matplotlib is not installed.
    """
    try:
        from repq.report.html import colours

        text = standalone(figure.svg, colours())
    except ModuleNotFoundError as error:
        raise RepqError("drawings cannot be made", found=str(error), fix="pip install 'repq[report]'") from None
    write_text(folder / figure.file, text)


def headline(summary: ReportSummary) -> list[dict[str, Any]]:
    """FP32 against INT8 per engine, as plain values."""
    return [comparison.figures() for comparison in comparisons(summary)]


def to_json(summary: ReportSummary) -> str:
    """The headline, the findings and the whole summary as one JSON object; infinities are strings."""
    values = {
        "format": _FORMAT,
        "headline": headline(summary),
        "findings": [asdict(row) for row in findings(summary, comparisons(summary))],
        "summary": json.loads(summary.model_dump_json()),
    }
    return json.dumps(values, indent=2) + "\n"
