"""What calibration saw of every layer: ranges, scales and noise."""

from __future__ import annotations

from repq.report.blocks import Block, Cell, Column, Figure, Section, Table
from repq.report.numbers import ABSENT, compact, decibels, percent, plural, significant
from repq.report.plots import layer_noise, layer_ranges
from repq.report.summary import ReportSummary
from repq.results import LayerQuantization, PtqReport

_LOW_SNR_DB = 20.0


def quantization_section(summary: ReportSummary) -> Section | None:
    """Per-layer weight and activation ranges, as plots and a table."""
    ptq = summary.ptq
    if ptq is None or not ptq.layers:
        return None
    lead = (
        f"Ranges over {plural(ptq.images, 'calibration image')} ({ptq.method}, {ptq.scheme}). "
        f"{percent(ptq.int8_macs_share)} of the multiply-adds are in INT8."
    )
    blocks: list[Block] = [
        Figure("Ranges", layer_ranges(ptq.layers), "largest weight and activation of every layer, log scale", wide=True)
    ]
    if any(layer.weight_snr_db is not None or layer.activation_snr_db is not None for layer in ptq.layers):
        alt = "signal-to-noise ratio of every layer's weight and input"
        blocks.append(Figure("Quantization noise", layer_noise(ptq.layers), alt, wide=True))
    if ptq.trials:
        blocks.append(_trial_table(ptq))
    blocks.append(_layer_table(ptq))
    return Section("layers", "Ranges and scales by layer", blocks, lead, short="Layers")


def _trial_table(ptq: PtqReport) -> Table:
    columns = [
        Column("Settings", numeric=False),
        Column("Kept", numeric=False),
        Column("Head SNR, dB", hint="of the detections, against the float model"),
        Column("Gain, dB", hint="against the last row that was kept before"),
        Column("AP on train"),
        Column("Seconds"),
    ]
    rows = [
        [
            Cell(trial.name),
            Cell("yes" if trial.kept else "no", level="" if trial.kept else "muted"),
            Cell(decibels(trial.head_snr_db), trial.head_snr_db),
            Cell(ABSENT if trial.gain_db is None else f"{trial.gain_db:+.2f}", trial.gain_db),
            Cell(ABSENT if trial.ap_train is None else f"{trial.ap_train:.4f}", trial.ap_train),
            Cell(f"{trial.seconds:.1f}", trial.seconds),
        ]
        for trial in ptq.trials
    ]
    note = "On images of the train split: those that accuracy is reported on decide nothing."
    if ptq.extra_macs_share:
        note += f" Split layers add {percent(ptq.extra_macs_share)} to the multiply-adds."
    return Table("What each setting gained", columns, rows, note)


def _layer_table(ptq: PtqReport) -> Table:
    columns = [
        Column("#"),
        Column("Layer", numeric=False, code=True),
        Column("Plan", numeric=False),
        Column("MACs, M", hint="million multiply-adds for one image"),
        Column("Weight min"),
        Column("Weight max"),
        Column("Channel ratio", hint="largest over smallest per-channel weight maximum"),
        Column("Weight SNR, dB"),
        Column("Input min"),
        Column("Input max"),
        Column("Input scale"),
        Column("Zero point"),
        Column("Input SNR, dB"),
    ]
    rows = [_layer_cells(number, layer) for number, layer in enumerate(ptq.layers, start=1)]
    note = f"SNR under {_LOW_SNR_DB:.0f} dB is marked: such a layer is worth keeping in float or calibrating otherwise."
    return Table(f"All {len(rows)} layers", columns, rows, note, collapsed=len(rows) > 12)


def _layer_cells(number: int, layer: LayerQuantization) -> list[Cell]:
    zero_point = layer.activation_zero_point
    return [
        Cell(str(number), number),
        Cell(layer.layer),
        Cell("INT8" if layer.precision == "int8" else "float", level="" if layer.precision == "int8" else "muted"),
        Cell(significant(layer.macs / 1e6), layer.macs),
        *(Cell(compact(value), value) for value in layer.weight_range),
        Cell(significant(layer.weight_channel_ratio), layer.weight_channel_ratio),
        _snr_cell(layer.weight_snr_db),
        *(Cell(compact(value), value) for value in layer.activation_range),
        Cell(compact(layer.activation_scale), layer.activation_scale),
        Cell(ABSENT if zero_point is None else str(zero_point), zero_point),
        _snr_cell(layer.activation_snr_db),
    ]


def _snr_cell(value: float | None) -> Cell:
    return Cell(decibels(value), value, "warn" if value is not None and value < _LOW_SNR_DB else "")
