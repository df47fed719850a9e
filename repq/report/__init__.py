"""What a run measured, as one HTML page that stands alone, as Markdown and as JSON."""

from repq.report.render import headline, render_report
from repq.report.summary import Key, ReportSummary, Section

__all__ = ["Key", "ReportSummary", "Section", "headline", "render_report"]
