"""Write a report in its three forms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from repq.errors import DataError, RepqError
from repq.files import write_text
from repq.report.blocks import Figure
from repq.report.comparison import compare
from repq.report.drawing import standalone
from repq.report.findings import findings
from repq.report.markdown import to_markdown
from repq.report.sections import sections_of
from repq.report.summary import ReportSummary

_FORMAT = 1


def render_report(summary: ReportSummary, folder: Path) -> dict[str, Path]:
    """Write ``report.html``, ``report.md`` and ``report.json`` and return their paths by form.

    Drawings that have a file name are written beside them. The same summary gives the same bytes. Each file is written
    beside its place and renamed.

    Raises:
        RepqError: jinja2 or matplotlib is not installed.
    """
    try:
        from repq.report.html import colours, to_html

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
    for block in (block for section in sections for block in section.blocks):
        if isinstance(block, Figure) and block.file:
            write_text(folder / block.file, standalone(block.svg, colours()))
    return paths


def headline(summary: ReportSummary) -> list[dict[str, Any]]:
    """FP32 against INT8 per engine, as plain values."""
    return [comparison.figures() for comparison in compare(summary)]


def to_json(summary: ReportSummary) -> str:
    """The headline, the findings and the whole summary as one JSON object."""
    values = {
        "format": _FORMAT,
        "headline": headline(summary),
        "findings": [{"level": finding.level, "text": finding.text} for finding in findings(summary, compare(summary))],
        "summary": json.loads(summary.model_dump_json()),  # infinities as strings
    }
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def read_summary(path: Path) -> ReportSummary:
    """Read the summary back from a ``report.json``.

    Raises:
        DataError: the file cannot be read or is no report.
    """
    fix = "give a report.json that `repq report` wrote"
    try:
        return ReportSummary.model_validate(json.loads(path.read_text(encoding="utf-8"))["summary"])
    except OSError as error:
        raise DataError(f"cannot read {path}", found=error.strerror or str(error), fix=fix) from None
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        found = str(error).splitlines()[0]
        raise DataError(f"{path} is no report of repq", found=f"{type(error).__name__}: {found}", fix=fix) from None
