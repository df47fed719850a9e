"""A diagnosis as text for the terminal."""

from __future__ import annotations

from repq.report.sections.quantization import ADVICE, diagnosis_blocks
from repq.report.text import render_text
from repq.results import Diagnosis

__all__ = ["ADVICE", "diagnosis_table"]


def diagnosis_table(diagnosis: Diagnosis) -> str:
    return render_text(diagnosis_blocks(diagnosis))
