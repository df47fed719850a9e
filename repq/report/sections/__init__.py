"""One function per section of the report; each returns None where its part of the run is absent."""

from __future__ import annotations

from repq.report.blocks import Section
from repq.report.sections.accuracy import accuracy_section
from repq.report.sections.agreement import agreement_section
from repq.report.sections.execution import execution_section
from repq.report.sections.fusion import fusion_section
from repq.report.sections.graph import graph_section
from repq.report.sections.machines import machines_section
from repq.report.sections.overview import headline_section, measured_section
from repq.report.sections.pictures import pictures_section
from repq.report.sections.provenance import environment_section, manifests_section
from repq.report.sections.qat import qat_section
from repq.report.sections.quantization import quantization_section
from repq.report.sections.sensitivity import plan_section, sensitivity_section
from repq.report.sections.timing import size_section, timing_section
from repq.report.sections.training import training_section
from repq.report.summary import ReportSummary

SECTIONS = (
    headline_section,
    measured_section,
    accuracy_section,
    timing_section,
    machines_section,
    size_section,
    pictures_section,
    execution_section,
    graph_section,
    agreement_section,
    plan_section,
    sensitivity_section,
    qat_section,
    quantization_section,
    fusion_section,
    training_section,
    environment_section,
    manifests_section,
)


def sections_of(summary: ReportSummary) -> list[Section]:
    """The sections that the summary has something for, in reading order."""
    return [section for make in SECTIONS if (section := make(summary))]


__all__ = ["SECTIONS", "sections_of"]
