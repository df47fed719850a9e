"""What a run measured, as one HTML page that stands alone, as Markdown and as JSON."""

from __future__ import annotations

from repq.report.boxes import draw_boxes, draw_pair
from repq.report.render import headline, read_summary, render_report
from repq.report.summary import (
    ArtifactSize,
    BuiltEngine,
    DrawnImage,
    MachineBench,
    MeasuredAccuracy,
    ReportSummary,
    Variant,
)

__all__ = [
    "ArtifactSize",
    "BuiltEngine",
    "DrawnImage",
    "MachineBench",
    "MeasuredAccuracy",
    "ReportSummary",
    "Variant",
    "draw_boxes",
    "draw_pair",
    "headline",
    "read_summary",
    "render_report",
]
