"""The HTML form: one page with everything inside it, nothing fetched."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

import repq
from repq.printable import printable_lines
from repq.report.blocks import Block, Figure
from repq.report.summary import FilledSection, ReportSummary

_TEMPLATES = Path(__file__).resolve().parent / "templates"


def to_html(summary: ReportSummary, sections: Sequence[FilledSection]) -> str:
    """Print the sections as one HTML page; every text is escaped, only our own drawings are put in as they are."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        precision_slot=_precision_slot,
        precision_legend=_precision_legend,
        figure_rows=_figure_rows,
        drawing=Markup,
        sorted_by=_sorted_by,
        code_spans=_code_spans,
    )
    page = environment.get_template("report.html")
    return page.render(
        summary=summary,
        sections=sections,
        version=repq.__version__,
        style=Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup((_TEMPLATES / "report.js").read_text(encoding="utf-8")),
    )


def _shown(value: Any) -> Any:
    """A value of a template; texts that are not our own markup steer and turn nothing around."""
    return printable_lines(value) if isinstance(value, str) and not isinstance(value, Markup) else value


_OPTION, _WHOLE = re.compile(r"--?[a-z][a-z-]*"), r'<span class="whole">\g<0></span>'  # a line may end at a hyphen


def _code_spans(text: str) -> Markup:
    """A sentence as markup, with what stands between backticks as code."""
    parts = [escape(part) for part in printable_lines(text).split("`")]
    if len(parts) % 2 == 0:  # one without its other
        return escape(printable_lines(text))
    spans = (
        Markup(f"<code>{_OPTION.sub(_WHOLE, str(part))}</code>") if n % 2 else part for n, part in enumerate(parts)
    )
    return Markup("").join(spans)


def colours() -> str:
    """The part of the page's style that defines its colours, light and dark."""
    style = (_TEMPLATES / "report.css").read_text(encoding="utf-8")
    return style[: style.index("\n* {")]


def _sorted_by(value: float) -> str:
    """A number as JavaScript reads it."""
    return repr(value) if math.isfinite(value) else "Infinity" if value > 0 else "-Infinity"


def _precision_slot(precision: str) -> str:
    """The colour class of a precision in the layer map."""
    if precision in ("int8", "uint8"):
        return "int8"
    return "half" if precision in ("float16", "bfloat16") else "float"


def _precision_legend(precisions: Sequence[str]) -> list[tuple[str, str]]:
    """Colour classes with the precisions that share each."""
    slots = sorted({_precision_slot(precision) for precision in precisions})
    return [(slot, ", ".join(name for name in precisions if _precision_slot(name) == slot)) for slot in slots]


def _figure_rows(blocks: Sequence[Block]) -> list[list[Block]]:
    """Group small figures that follow one another; every other block stands alone."""
    rows: list[list[Block]] = []
    for block in blocks:
        small = isinstance(block, Figure) and not block.wide
        if small and rows and isinstance(rows[-1][-1], Figure) and not rows[-1][-1].wide:
            rows[-1].append(block)
        else:
            rows.append([block])
    return rows
