"""The engines against torch's simulation of the same quantized model."""

from __future__ import annotations

from repq.report.blocks import Cell, Column, Section, Table
from repq.report.comparison import engine_title
from repq.report.numbers import change, compact, count, decibels, fraction, plural
from repq.report.summary import ReportSummary


def agreement_section(summary: ReportSummary) -> Section | None:
    """SNR and largest error per output, and the AP gap, of each engine."""
    check = summary.check
    if check is None or not check.engines:
        return None
    outputs = list(dict.fromkeys(name for engine in check.engines for name in engine.snr_db))
    columns = [
        Column("Engine", numeric=False),
        *(Column(f"SNR, {name}, dB") for name in outputs),
        *(Column(f"Max error, {name}") for name in outputs),
        Column("AP"),
        Column("AP gap", hint="engine minus simulation"),
        Column("INT8 layers"),
        Column("Float layers"),
    ]
    rows = []
    for engine in check.engines:
        within = abs(engine.ap_gap) <= check.max_ap_gap
        snr = [engine.snr_db.get(name) for name in outputs]
        errors = [engine.max_abs_error.get(name) for name in outputs]
        low = check.min_snr_db if check.min_snr_db is not None else float("-inf")
        rows.append(
            [
                Cell(engine_title(engine.engine)),
                *(Cell(decibels(value), value, "bad" if value is not None and value < low else "") for value in snr),
                *(Cell(compact(value), value) for value in errors),
                Cell(fraction(engine.accuracy.ap), engine.accuracy.ap),
                Cell(change(engine.ap_gap), engine.ap_gap, "good" if within else "bad"),
                Cell(count(engine.int8_layers), engine.int8_layers),
                Cell(count(engine.float_layers), engine.float_layers),
            ]
        )
    demanded = f", SNR of at least {check.min_snr_db:.1f} dB" if check.min_snr_db is not None else ""
    lead = (
        f"{'Passed' if check.passed else 'Failed'} on {plural(check.images, 'image')}: torch's fake quantization has "
        f"AP {fraction(check.reference.ap)}; allowed gap ±{compact(check.max_ap_gap)} AP{demanded}."
    )
    return Section(
        "agreement", "Simulation against engines", [Table("Agreement", columns, rows)], lead, short="Agreement"
    )
