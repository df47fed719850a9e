"""What calibration saw of every layer: ranges, scales and noise; and what is wrong with some."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from repq.recipe import EngineName, engine_title
from repq.report.blocks import Block, Column, Columns, Figure, Level, Table, Text, number, table
from repq.report.findings import unproven
from repq.report.numbers import (
    change,
    compact,
    decibels,
    difference,
    fraction,
    gain,
    percent,
    plural,
    significant,
    span,
)
from repq.report.plots import layer_noise, layer_ranges
from repq.report.summary import PTQ, ReportSummary, Section
from repq.results import (
    Diagnosis,
    LayerDiagnosis,
    LayerQuantization,
    PresetTrial,
    PtqReport,
    PtqTrial,
    Way,
    metric_of,
    noise,
)

_LOW_SNR_DB = 20.0
ADVICE = {
    "ptq": "plain post-training quantization is enough",
    "corrected": "post-training quantization with corrections, as `repq ptq` does it",
    "partial": "keep a few layers in float",
    "repopt": "retrain with RepOptimizer: the fused weights are to blame",
    "qat": "quantization-aware training: the loss is spread over weights and activations",
}


def _blocks(summary: ReportSummary) -> list[Block]:
    ptq = summary[PTQ]
    if not ptq.layers:
        return []
    alt = "largest weight and activation of every layer, log scale"
    figures: list[Block] = [Figure("Ranges", partial(layer_ranges, ptq.layers), alt, wide=True)]
    if any(layer.weight_snr_db is not None or layer.activation_snr_db is not None for layer in ptq.layers):
        alt = "signal-to-noise ratio of every layer's weight and input"
        figures.append(Figure("Quantization noise", partial(layer_noise, ptq.layers), alt, wide=True))
    blocks = ptq_blocks(ptq)
    tables = [block for block in blocks if isinstance(block, Table)]
    return [*(block for block in blocks if block not in tables), *figures, *tables]


LAYERS = Section("layers", "Ranges and scales by layer", _blocks, needs=(PTQ,), short="Layers")


_LEADING = (("AP", "ap"), ("AP50", "ap50"))


def ptq_blocks(ptq: PtqReport, in_target: tuple[EngineName, float] | None = None) -> list[Block]:
    """What quantization cost, what each setting gained, and ranges and errors per layer.

    Args:
        in_target: AP in an engine, beside that of the simulation.
    """
    before, after = ptq.accuracy_float, ptq.accuracy_quantized
    int8 = sum(row.precision == "int8" for row in ptq.layers)
    lead = (
        f"{ptq.model}: {int8} of {plural(len(ptq.layers), 'layer')} in INT8, {percent(ptq.int8_macs_share)} of the "
        f"multiply-adds. Ranges over {plural(ptq.images, 'calibration image')} ({ptq.method}, {ptq.scheme}). "
    )
    if before is not None or after is not None:
        changes = (f"{title} {_became(metric_of(before, name), metric_of(after, name))}" for title, name in _LEADING)
        lead += f"{', '.join(changes)}."
        if in_target is not None:
            name, ap = in_target
            lead += f" In {engine_title(name)}: AP {_became(metric_of(before), ap)}."
    else:
        lead += "Not evaluated: no AP is known."
    if ptq.accuracy_own_scales is not None:
        own = ptq.accuracy_own_scales
        lead += (
            f" {plural(ptq.shared_groups, 'group')} of layers share a scale, which changes AP by "
            f"{change(difference(own.defined(), metric_of(after)))} against scales of their own."
        )
    costs = [f"{row.title} {f'({row.cost})' if row.cost else 'at no cost in the engine'}" for row in ptq.corrections]
    lead += f" Corrections: {'; '.join(costs)}." if costs else ""
    trials = [_trial_table(ptq)] if ptq.trials else []
    return [Text(lead), *unproven(metric_of(before)), *trials, _layer_table(ptq.layers)]


def _became(before: float | None, after: float | None) -> str:
    told = "not measurable" if before == 0 else change(difference(before, after))
    return f"{fraction(before)} → {fraction(after)} ({told})"


def _trial_table(ptq: PtqReport) -> Table:
    columns: Columns[PtqTrial] = (
        Column("Settings", "name"),
        Column("Kept", lambda row: "yes" if row.kept else "no", level=lambda row: "" if row.kept else "muted"),
        Column("In INT8", lambda row: "inputs" if row.inputs_alone else "all"),
        number("Head SNR, dB", "head_snr_db", decibels, hint="of the detections, against the float model"),
        number("Gain, dB", "gain_db", gain, hint="against the last row that was kept before",
               note=lambda row: "nothing was kept before" if row.gain_db is None else ""),
        number("AP on train", "ap_train", fraction),
        number("Seconds", "seconds", "{:.1f}".format),
    )  # fmt: skip
    note = "On images of the train split: those that accuracy is reported on decide nothing."
    if ptq.extra_macs_share:
        note += f" Split layers add {percent(ptq.extra_macs_share)} to the multiply-adds."
    return table("What each setting gained", columns, ptq.trials, note)


def _snr(title: str, attribute: str) -> Column[LayerQuantization]:
    def level(row: LayerQuantization) -> Level:
        value = getattr(row, attribute)
        return "warn" if value is not None and value < _LOW_SNR_DB else ""

    def why(row: LayerQuantization) -> str:
        if row.precision == "float":
            return "the layer stays in float"
        return "there is no error, or no signal" if getattr(row, attribute) is None else ""

    return number(title, attribute, decibels, level=level, note=why)


def _layer_table(layers: Sequence[LayerQuantization]) -> Table:
    columns: Columns[LayerQuantization] = (
        Column("Layer", "layer", code=True),
        Column("Plan", lambda row: "INT8" if row.precision == "int8" else "float",
               level=lambda row: "" if row.precision == "int8" else "muted"),
        number("MACs, M", lambda row: row.macs / 1e6, significant, hint="million multiply-adds for one image",
               detail=True),
        number("Weights", "weight_range", span, hint="smallest and largest; sorted by the larger magnitude", wide=True),
        number("Channel ratio", "weight_channel_ratio", significant,
               hint="largest over smallest per-channel weight maximum"),
        _snr("Weight SNR, dB", "weight_snr_db"),
        number("Input", "activation_range", span, hint="smallest and largest; sorted by the larger magnitude",
               wide=True),
        number("Input scale", "activation_scale", compact, detail=True),
        number("Zero point", "activation_zero_point", str, detail=True),
        _snr("Input SNR, dB", "activation_snr_db"),
    )  # fmt: skip
    note = f"SNR under {_LOW_SNR_DB:.0f} dB is marked: such a layer is worth keeping in float or calibrating otherwise."
    return table(f"All {len(layers)} layers", columns, layers, note, fold=13, numbered=True, badness=noise)


_DIAGNOSIS_NOTE = (
    "W ratio: the largest over the smallest channel of the weight. W crest: the largest weight of a channel over the "
    "channel's root mean square. Tail: the largest input over its 99.9th percentile. Channels: the largest over the "
    "median channel of the input. dB: SNR of the layer's output with its weight, or its input, alone in INT8."
)


def diagnosis_blocks(diagnosis: Diagnosis) -> list[Block]:
    """All layers, what is wrong with some, the ways to INT8 with their evidence, and the advice."""
    layers: Columns[LayerDiagnosis] = (
        Column("Layer", "layer"),
        number("W ratio", "weight_channel_ratio", "{:.1f}".format),
        number("W crest", "weight_crest", "{:.1f}".format),
        number("W dB", "weight_snr_db", decibels),
        number("Input", "activation_range", span, wide=True),
        number("Tail", "activation_tail", "{:.1f}".format),
        number("Channels", "activation_channel_ratio", "{:.1f}".format),
        number("Input dB", "activation_snr_db", decibels),
    )
    findings: Columns[LayerDiagnosis] = (Column("Layer", "layer"), Column("What", lambda row: "; ".join(row.findings)))
    ways: Columns[Way] = (
        Column("", lambda way: "*" if way.name == diagnosis.advice else ""),
        Column("Way", "name"),
        number("AP lost", "ap_drop", fraction, optional=True),
        number("Head dB", "head_snr_db", decibels),
        Column("Enough", _enough),
        Column("Evidence", "evidence", wrap=True),
        Column("How", "command", code=True),
    )
    title = f"{diagnosis.model}, {diagnosis.scheme}, {plural(diagnosis.images, 'image')}"
    enough = (
        f"Ways to INT8; enough is a loss of at most {compact(diagnosis.max_drop)} AP on images that calibrated "
        f"nothing, and a head SNR of {diagnosis.threshold_db:.0f} dB"
    )
    advice = f"advice: {ADVICE[diagnosis.advice]}"
    if diagnosis.ap_float is None:
        advice += ". No labels, no AP: what that loses is not known"
    elif diagnosis.ap_float == 0:
        advice += ". The float model finds no object (AP 0): what that loses is not known"
    return [
        *_preset_blocks(diagnosis),
        table(title, layers, diagnosis.layers, _DIAGNOSIS_NOTE, badness=noise),
        table("Findings", findings, [row for row in diagnosis.layers if row.findings], badness=noise),
        table(enough, ways, diagnosis.ways),
        Text(advice),
    ]


def _preset_blocks(diagnosis: Diagnosis) -> list[Block]:
    """Which preprocessing fits; nothing without labels."""
    if not diagnosis.presets:
        return []
    columns: Columns[PresetTrial] = (
        Column("", lambda row: "*" if row.taken else ""),
        Column("Preset", "name"),
        number("AP", "ap", "{:.4f}".format),
    )
    best = max(diagnosis.presets, key=lambda row: (row.ap, row.taken))
    found = "the preprocessing fits" if best.taken else f"--preset {best.name} fits better than what was taken (*)"
    title = f"AP in float by preset, {plural(diagnosis.labelled, 'image')}"
    return [table(title, columns, diagnosis.presets), Text(found)]


def _enough(way: Way) -> str:
    if way.sufficient is None:
        return "not tried" if way.head_snr_db is None else "not known"
    return "yes" if way.sufficient else "no"
