"""Results as text for the terminal."""

from repq.report.text.graphs import engine_table, export_text, lint_table
from repq.report.text.measurement import (
    accuracy_table,
    bench_table,
    check_table,
    device_table,
    estimate_tables,
    service_table,
)
from repq.report.text.quantization import ptq_table, sensitivity_table, trial_table
from repq.report.text.runs import doctor_table, run_table
from repq.report.text.tables import fraction, span, table_text
from repq.report.text.training import fusion_table, qat_table, train_table

__all__ = [
    "accuracy_table",
    "bench_table",
    "check_table",
    "device_table",
    "doctor_table",
    "engine_table",
    "estimate_tables",
    "export_text",
    "fraction",
    "fusion_table",
    "lint_table",
    "ptq_table",
    "qat_table",
    "run_table",
    "sensitivity_table",
    "service_table",
    "span",
    "table_text",
    "train_table",
    "trial_table",
]
