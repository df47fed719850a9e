"""The sections of the report, in reading order. A section that is appended here is in every form of the report."""

from __future__ import annotations

from repq.report.sections.accuracy import ACCURACY
from repq.report.sections.contest import SECTION as CONTEST
from repq.report.sections.engines import AGREEMENT, EXECUTION
from repq.report.sections.graph import GRAPH
from repq.report.sections.machines import SECTION as MACHINES
from repq.report.sections.overview import BOXES, ENVIRONMENT, HEADLINE, MANIFESTS, MEASURED
from repq.report.sections.profile import SECTION as PROFILE
from repq.report.sections.pruning import PRUNING
from repq.report.sections.quantization import LAYERS
from repq.report.sections.sensitivity import PLAN_SECTION, SENSITIVITY_SECTION
from repq.report.sections.timing import SIZE, TIMING
from repq.report.sections.training import FUSION, TRAINED_QUANTIZED, TRAINING
from repq.report.summary import FilledSection, ReportSummary, Section

SECTIONS: list[Section] = [
    HEADLINE,
    CONTEST,
    MEASURED,
    ACCURACY,
    TIMING,
    PROFILE,
    MACHINES,
    SIZE,
    BOXES,
    EXECUTION,
    GRAPH,
    AGREEMENT,
    PLAN_SECTION,
    SENSITIVITY_SECTION,
    TRAINED_QUANTIZED,
    LAYERS,
    FUSION,
    PRUNING,
    TRAINING,
    ENVIRONMENT,
    MANIFESTS,
]


def sections_of(summary: ReportSummary) -> list[FilledSection]:
    """The sections that the summary has something for, with their blocks, in reading order."""
    fitting = (section for section in SECTIONS if all(key.stage in summary.results for key in section.needs))
    return [(section, blocks) for section in fitting if (blocks := section.blocks(summary))]


__all__ = ["SECTIONS", "sections_of"]
