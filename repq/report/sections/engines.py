"""The precision that each engine really used, layer by layer, and how the engines agree with torch's simulation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from repq.report.blocks import Block, Column, Columns, LayerMap, LayerStrip, Level, Table, Text, number, table
from repq.report.comparison import built_title, engine_title
from repq.report.numbers import ABSENT, change, compact, count, decibels, fraction, mebibytes, plural, release
from repq.report.summary import BUILD, CHECK, PTQ, ReportSummary, Section
from repq.results import Agreement, CheckReport, EngineDescription, LayerPrecision


def _execution(summary: ReportSummary) -> list[Block]:
    built, ptq = summary[BUILD], summary.get(PTQ)
    if not built:
        return []
    lead = "As the runtimes report it of the graph that they execute, not as asked for."
    blocks: list[Block] = [Text(lead), table("Engines", _ENGINE, built.items())]
    described = {name: engine for name, engine in built.items() if engine.layers}
    plan: dict[str, str] = {row.layer: row.precision for row in ptq.layers} if ptq is not None else {}
    if described:
        strips = [
            LayerStrip(built_title(name), [(row.layer, row.precision) for row in engine.layers])
            for name, engine in described.items()
        ]
        blocks.append(LayerMap([*([LayerStrip("Plan", list(plan.items()))] if plan else []), *strips]))
        blocks.append(_precision_table(described, plan))
    notes = [f"{built_title(name)}: {engine.note}." for name, engine in described.items() if engine.note]
    return [*blocks, *([Text("\n".join(notes))] if notes else [])]


_SIMULATION = "The reference is torch's fake quantization of the model that the engines were built from."
EXECUTION = Section("execution", "Executed precision", _execution, (BUILD,), (PTQ,), short="Precision")
AGREEMENT = Section(
    "agreement",
    "Simulation against engines",
    lambda summary: [Text(_SIMULATION), *check_blocks(summary[CHECK])] if summary[CHECK].engines else [],
    needs=(CHECK,),
    short="Agreement",
)

_ENGINE: Columns[tuple[str, EngineDescription]] = (
    Column("Engine", lambda item: built_title(item[0])),
    Column("Version", lambda item: item[1].version, release, note=lambda item: item[1].version),
    Column("Device", lambda item: item[1].device),
    Column("Input", lambda item: f"{item[1].input_name} {' × '.join(map(str, item[1].input_shape))}"),
    Column("Outputs", lambda item: ", ".join(item[1].output_names), wrap=True),
    number("Size", lambda item: item[1].size_bytes, mebibytes),
    Column("Layers by precision", lambda item: _counts(item[1].precision_counts()), wrap=True),
    Column("Conversions left", lambda item: _counts(item[1].extra_nodes), wrap=True,
           hint="nodes of the executed graph that only convert or reorder"),
)  # fmt: skip


def _precision_table(described: Mapping[str, EngineDescription], plan: Mapping[str, str]) -> Table:
    executed = {name: {row.layer: row for row in engine.layers} for name, engine in described.items()}
    columns: Columns[str] = [
        Column("Layer", str, code=True),
        Column("Plan", plan.get, optional=True),
        *(_precision_column(name, rows, plan) for name, rows in executed.items()),
    ]
    names = dict.fromkeys([*plan, *(layer for layers in executed.values() for layer in layers)])
    return table(f"All {len(names)} layers", columns, names, fold=13, numbered=True)


def _precision_column(name: str, rows: Mapping[str, LayerPrecision], plan: Mapping[str, str]) -> Column[str]:
    def level(layer: str) -> Level:
        if layer not in rows:
            return ""
        if rows[layer].precision == "int8":
            return "good"
        return "warn" if name.endswith("-int8") and plan.get(layer) == "int8" else ""

    return Column(
        built_title(name),
        rows.get,
        lambda row: f"{row.precision} ({row.kernel})" if row.kernel else row.precision,
        level=level,
        note=lambda layer: "" if layer in rows else "not reported by the runtime",
    )


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count(number)} {name}" for name, number in sorted(counts.items())) or ABSENT


def check_blocks(check: CheckReport) -> list[Block]:
    """Every model against the reference: SNR and largest error per output, and the AP gap."""
    outputs = dict.fromkeys(name for engine in check.engines for name in engine.snr_db)
    low = float("-inf") if check.min_snr_db is None else check.min_snr_db

    def snr(name: str) -> Column[Agreement]:
        return number(
            f"SNR, {name}, dB",
            lambda row: row.snr_db.get(name),
            decibels,
            level=lambda row: "bad" if row.snr_db.get(name, low) < low else "",
            note=lambda row: "the outputs are equal" if row.snr_db.get(name) == float("inf") else "",
        )

    columns: Columns[Agreement] = [
        Column("Engine", lambda row: engine_title(row.title)),
        *map(snr, outputs),
        *(number(f"Max error, {name}", partial(_error, name), compact) for name in outputs),
        number("AP", lambda row: row.accuracy.defined(), fraction),
        number("AP gap", "ap_gap", change, hint="model minus reference",
               level=lambda row: "" if row.ap_gap is None else "good" if abs(row.ap_gap) <= check.max_drop else "bad"),
        number("INT8 layers", "int8_layers", count, note=_untold),
        number("Float layers", "float_layers", count, note=_untold),
    ]  # fmt: skip
    demanded = f", SNR of at least {check.min_snr_db:.1f} dB" if check.min_snr_db is not None else ""
    lead = (
        f"{'Passed' if check.passed else 'Failed'} on {plural(check.images, 'image')}: the reference has "
        f"AP {fraction(check.reference.defined())}; allowed gap ±{compact(check.max_drop)} AP{demanded}."
    )
    blocks: list[Block] = [Text(lead), table("Agreement", columns, check.engines)]
    if check.typed is not None:
        note = "What TensorRT gets, run in ONNX Runtime, against the same graph without FP16 types."
        blocks.append(table("With FP16 types", columns, [check.typed], note))
    return blocks


def _error(output: str, row: Agreement) -> float | None:
    return row.max_abs_error.get(output)


def _untold(row: Agreement) -> str:
    return "the runtime does not tell" if row.int8_layers is None else ""


def engine_blocks(description: EngineDescription) -> list[Block]:
    """One engine for the terminal: what every layer runs in, and whether lint expected it."""
    columns: Columns[LayerPrecision] = (
        Column("Layer", "layer"),
        Column("Precision", "precision"),
        Column("Kernel", "kernel"),
    )
    title = f"{engine_title(description.engine)} {release(description.version)} on {description.device}"
    lines = [
        f"layers: {_counts(description.precision_counts())}; nodes beside them: {_counts(description.extra_nodes)}; "
        f"{mebibytes(description.size_bytes)}"
    ]
    lines += [description.note] if description.note else []
    return [table(title, columns, description.layers), Text("\n".join(lines + _against_lint(description)))]


def _against_lint(description: EngineDescription) -> list[str]:
    expected = description.expected
    if expected is None:
        return []
    lines = [f"expected: {_counts(Counter(expected.layers.values()))}; {expected.extra_kernels} kernels that only "
             "convert scales"]  # fmt: skip
    if description.int8_layers is not None:
        surprises = description.surprises()
        lines += [f"  {layer}: expected {wanted}, runs {found}" for layer, wanted, found in surprises]
        kernels = sum(description.extra_nodes.get(kind, 0) for kind in ("quantize", "dequantize", "requantize"))
        agree = "as expected" if not surprises else f"{len(surprises)} layers otherwise than expected"
        lines.append(f"it runs {agree}, with {kernels} such kernels")
    return lines


def model_table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """The layers of a checkpoint, given as plain values."""
    columns: Columns[Mapping[str, Any]] = (
        Column("Layer", lambda row: row["layer"]),
        Column("Precision", lambda row: row["precision"]),
        number("Weight", lambda row: tuple(row["weight_shape"]), lambda shape: " × ".join(map(str, shape))),
        number("Multiply-adds", lambda row: row["macs"], count),
    )
    return table(title, columns, rows)
