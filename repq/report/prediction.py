"""What was found in images, for the terminal."""

from __future__ import annotations

from repq.report.blocks import Block, Column, Columns, Table, Text, number, table
from repq.report.comparison import engine_title
from repq.report.numbers import compact, count, plural
from repq.report.text import render_text
from repq.results import PredictReport

_SHOWN = 10


def predict_table(report: PredictReport) -> str:
    """The classes that were found, what a second model changes, and where it was written."""
    columns: Columns[tuple[str, int]] = (
        Column("Class", lambda row: row[0]),
        number("Boxes", lambda row: row[1], count),
    )
    rows = list(report.per_class.items())
    blocks: list[Block] = []
    if rows:
        more = f"and {len(rows) - _SHOWN} more classes, in predictions.json" if len(rows) > _SHOWN else ""
        blocks.append(table("Found", columns, rows[:_SHOWN], more))
    blocks += _compared(report)
    skipped = f", {plural(report.skipped_count, 'image')} skipped" if report.skipped_count else ""
    speed = f"{compact(report.images_per_s)} images/s"
    blocks.append(Text(
        f"{report.model} ({engine_title(report.engine)}, {report.precision}) at {report.imgsz[0]}x{report.imgsz[1]}, "
        f"score above {report.confidence:g}\n"
        f"{plural(report.images, 'image')}, {count(report.boxes)} boxes{skipped}; {speed}\n"
        f"files: {', '.join(report.files)}"
    ))  # fmt: skip
    return render_text(blocks)


def _compared(report: PredictReport) -> list[Block]:
    found = report.compared
    if found is None:
        return []
    columns: Columns[tuple[str, int]] = (
        Column("Image", lambda row: row[0], code=True), number("Lost and new boxes", lambda row: row[1], count),
    )  # fmt: skip
    rows = list(found.changed.items())[:_SHOWN]
    changed: list[Table] = [table("Changed most", columns, rows)] if rows else []
    return [*changed, Text(f"against {found.other}: {found.same} boxes in both, {found.lost} lost, {found.new} new")]
